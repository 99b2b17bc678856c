"""Mean and variance of two-layer networks' kernels in closed form (T2 to T7)."""

from ntk_inr import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
