"""Gradients from function values alone."""
