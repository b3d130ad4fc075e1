"""Gradients of training steps: by backpropagation, from forward passes alone, or by direct search."""
