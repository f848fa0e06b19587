"""A GPU's blocks, threads, registers and shared memory; what runs beside what."""
