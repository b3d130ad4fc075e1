"""The callbacks, one per method."""
