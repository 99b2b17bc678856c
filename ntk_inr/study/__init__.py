"""Compare networks on a task, choose settings before training, keep the results and report them."""

from ntk_inr import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
