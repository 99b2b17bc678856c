"""Neural tangent kernels of implicit neural representations: compute, explain, predict, check.

The names of a first day are here, and the rest is in :mod:`ntk_inr.networks`, ``kernels``, ``infinite``, ``spectra``,
``closed_forms``, ``variance``, ``training``, ``tasks`` and ``study``. Each is imported when it is asked for.
"""

from ntk_inr import _lazy
from ntk_inr._version import __version__ as __version__

_RENAMED: dict[str, str] = {}
"""Names that were public in 0.1, each with what to write instead; those that only moved are found by themselves."""

__getattr__, __dir__, __all__ = _lazy.attach(__name__, _RENAMED)
