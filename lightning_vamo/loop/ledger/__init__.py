"""The costs and the benefit of a run: counts, times, reports and advice."""
