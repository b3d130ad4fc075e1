"""Gradients of training steps: by backpropagation, from forward passes alone, or replaced by direct search."""
