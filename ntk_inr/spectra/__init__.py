"""Eigenvalues of the kernel and what they say: moments, conditioning, alignment, stable steps."""
