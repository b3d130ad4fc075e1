"""The manual training step, and the correction of its gradient."""
