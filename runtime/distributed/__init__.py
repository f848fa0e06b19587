"""A training step divided among processes: who they are, what they exchange, how an executor does it with others."""
