from ntk_inr.closed_forms.factors import TwoLayerFactors as TwoLayerFactors
from ntk_inr.closed_forms.two_layer import TwoLayerMoments as TwoLayerMoments
from ntk_inr.closed_forms.two_layer import two_layer_moments as two_layer_moments
