"""Which layer and which factor make the variance of a kernel's eigenvalues (T8)."""
