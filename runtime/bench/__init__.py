"""A model's training step held against the same model in PyTorch: `tcomp bench`."""
