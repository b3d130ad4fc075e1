"""The batches of an epoch: recorded, told beforehand, replayed."""
