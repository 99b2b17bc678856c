"""Signals to fit, and the scores of what is reconstructed."""

from ntk_inr import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
