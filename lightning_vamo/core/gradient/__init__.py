"""Estimate gradients from function values alone, and move weights along directions in place."""
