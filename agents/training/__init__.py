"""Training of the learned policy."""
