"""The empirical neural tangent kernel of any pure function ``apply(params, x)``."""
