"""The plan of an epoch: its batches, which are recorded, loaded before the epoch, and replayed."""
