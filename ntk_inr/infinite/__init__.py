"""The kernel that a network tends to as it gets wider."""

from ntk_inr import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
