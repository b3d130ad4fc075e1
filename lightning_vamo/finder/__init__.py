"""The finder: find out on a model's own gradients whether probes would pay."""
