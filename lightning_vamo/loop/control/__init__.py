"""Control variates in training: when a snapshot is taken, and how the row of each step is computed."""
