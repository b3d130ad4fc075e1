"""Leave no trace: put back what the user's code changes while it is evaluated."""
