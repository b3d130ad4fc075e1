"""The state of a run in a checkpoint, and how a run resumes from a checkpoint."""
