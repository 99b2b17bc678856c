"""Flax Linen modules: encodings, activations, normalization, modulation, whole networks."""
