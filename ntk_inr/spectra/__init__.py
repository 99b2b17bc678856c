"""Moments, eigenvalues, eigenvectors and densities of kernels, and what they say about a signal."""

from ntk_inr import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
