"""What makes the variance of a kernel's eigenvalues: closed forms and the budget layer by layer."""
