"""Where the gradient of a training step comes from."""
