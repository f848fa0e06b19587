"""NVIDIA GPUs: tile IR to PTX, PTX to cubins, and what the assembler has to say about them."""
