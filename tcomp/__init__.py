"""tcomp: a small tensor compiler that trains GPT-2 and Llama class models from one `.tc` text.

A command begins in `__main__.py`. What it does with a model is `dsl/load.py`, `model/build.py` (a step, planned), a
device's `open` (`runtime/device.py`: its kernels compiled), and `runtime/train.py`. docs/design.md is the tour, and
docs/modules.md has every module in reading order.
"""

__version__ = "0.1.0"
