"""Where notebooks find :mod:`ntk_inr.style`."""

from ntk_inr.style import *  # noqa: F403
