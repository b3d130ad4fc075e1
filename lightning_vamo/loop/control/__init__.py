"""Control variates in training: when a snapshot is taken, and where the rows of its steps come from."""
