"""Random families of probe directions, one per file."""
