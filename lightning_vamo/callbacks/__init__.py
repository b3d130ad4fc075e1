"""The Lightning callbacks of the package: a callback for each training method."""
