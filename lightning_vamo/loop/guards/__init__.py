"""Leave no trace: after each evaluation of the user's code, put back what the code has changed."""
