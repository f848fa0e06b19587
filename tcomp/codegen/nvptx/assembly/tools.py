"""Programs of the CUDA toolkit that some commands use when they are there."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

PACKAGES = ("nvidia/*/bin", "triton/backends/nvidia/bin")
"""Where PyPI packages keep them, below a folder of sys.path."""


def cuda_tool(name: str) -> Path | None:
    """nvdisasm, nvcc, ...: from the variable TCOMP_NVDISASM, this environment's packages, or PATH; None without it."""
    named = os.environ.get(f"TCOMP_{name.upper()}")
    if named:
        return Path(named)
    for folder in map(Path, sys.path):
        for package in PACKAGES:
            found = sorted(folder.glob(f"{package}/{name}"))
            if found:
                return found[0]
    on_path = shutil.which(name)
    return Path(on_path) if on_path else None
