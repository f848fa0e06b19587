"""Copies into shared memory: by threads, by cp.async, by the copy engine."""
