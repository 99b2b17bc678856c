"""Mean and variance of two-layer networks' kernels in closed form (T2 to T7)."""

from ntk_inr.closed_forms.factors import TwoLayerFactors
from ntk_inr.closed_forms.two_layer import TwoLayerMoments, two_layer_moments

__all__ = ["TwoLayerFactors", "TwoLayerMoments", "two_layer_moments"]
