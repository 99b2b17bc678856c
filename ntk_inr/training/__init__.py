"""Training with optax, and the training curve that the kernel predicts."""
