"""The tree of loops, and what it becomes."""
