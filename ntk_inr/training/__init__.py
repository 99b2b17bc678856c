"""Train networks, and predict their training from the kernel."""

from ntk_inr import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
