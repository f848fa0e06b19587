"""tcomp: a small tensor compiler that trains GPT-2 and Llama class models from one `.tc` text."""

__version__ = "0.1.0"
