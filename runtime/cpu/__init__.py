"""Running built steps on the CPU."""
