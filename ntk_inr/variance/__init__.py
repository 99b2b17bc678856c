"""Which layer makes the variance of a kernel's eigenvalues, and by which factor."""

from ntk_inr import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
