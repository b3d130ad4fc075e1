"""Random families of probe directions."""
