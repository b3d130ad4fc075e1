"""Evaluate the user's loss: batches at a snapshot and at points around the snapshot."""
