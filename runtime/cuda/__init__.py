"""NVIDIA GPUs, and the virtual GPU in their place: the step's executor on the CUDA driver, through cuda-python."""
