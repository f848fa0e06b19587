"""Operands that are copied to where they are used."""
