"""What a run costs and what it was worth."""
