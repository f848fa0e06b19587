"""Runs a kernel of a .cu file beside this one: compiled by nvcc, launched on the virtual GPU with every check on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcomp.runtime.vgpu import Device, Options, Report

FOLDER = Path(__file__).parent


class Cuda:
    """`run` gives the arrays as the kernel left them; `launch` the report, findings and all."""

    def __init__(self, nvcc: Callable[..., str]) -> None:
        self.nvcc = nvcc

    def launch(
        self, file: str, kernel: str, grid: int | Sequence[int], block: int | Sequence[int], *args: Any,
        shared: int = 0, arch: str = "sm_80", options: Options | None = None, **more: Any,
    ) -> tuple[Report, list[np.ndarray]]:  # fmt: skip
        gpu = Device(options=options)
        places = [(gpu.upload(a), a) if isinstance(a, np.ndarray) and a.ndim else None for a in args]
        values = [a if p is None else p[0] for p, a in zip(places, args, strict=True)]
        module = gpu.load(self.nvcc((FOLDER / f"{file}.cu").read_text(), arch))
        name = next((k for k in module.kernels() if k == kernel or f"{len(kernel)}{kernel}" in k), kernel)
        report = module.launch(name, grid, block, values, shared, **more)
        return report, [gpu.download(p[0], p[1].dtype, p[1].size).reshape(p[1].shape) for p in places if p]

    def run(self, *args: Any, **options: Any) -> list[np.ndarray]:
        report, arrays = self.launch(*args, **options)
        report.check()
        return arrays


@pytest.fixture(scope="session")
def cuda(nvcc: Callable[..., str]) -> Cuda:
    return Cuda(nvcc)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`arch`: both architectures, or those that the module names."""
    if "arch" in metafunc.fixturenames:
        metafunc.parametrize("arch", getattr(metafunc.module, "ARCHITECTURES", ("sm_80", "sm_90")))
