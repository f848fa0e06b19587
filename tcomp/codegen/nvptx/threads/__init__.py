"""A `Compute` as a thread's code."""
