"""What a checkpoint holds of a run, and how a run resumes from it."""
