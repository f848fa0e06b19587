"""Results that leave through shared memory; sums in turns."""
