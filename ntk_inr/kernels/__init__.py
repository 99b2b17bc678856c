"""The exact neural tangent kernel of any function, as a matrix or as an operator."""

from ntk_inr import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
