"""What the code for CPUs and for GPUs shares: types, frames of instructions, expression graphs, affine forms, narrow
formats, vector math."""
