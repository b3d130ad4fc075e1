"""Directions that are learned from the gradients of training."""
