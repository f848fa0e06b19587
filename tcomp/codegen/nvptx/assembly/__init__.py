"""PTX to machine code, and what is to be said of it."""
