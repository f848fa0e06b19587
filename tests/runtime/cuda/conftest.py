"""The virtual GPU as this process's driver, and a step whose kernels are PTX written by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A virtual H100 as this process's driver; skips where there is no C compiler to build it."""
    from tcomp.errors import UserError
    from tcomp.runtime.cuda import context
    from tcomp.runtime.vgpu.shim import install
    from tcomp.runtime.vgpu.shim.load import uninstall

    monkeypatch.setenv("TCOMP_VGPU_QUIET", "1")
    context.forget()  # those of a driver that another test used
    uninstall()
    try:
        driver = install("h100")
    except UserError as e:
        pytest.skip(str(e))
    yield driver
    context.forget()
    uninstall()


@pytest.fixture
def no_driver() -> None:
    """Skips on a computer that has an NVIDIA driver."""
    program = "import ctypes; ctypes.CDLL('libcuda.so.1')"  # in a process of its own: it would stay loaded in this one
    if subprocess.run([sys.executable, "-c", program], stderr=subprocess.DEVNULL, check=False).returncode == 0:
        pytest.skip("this computer has an NVIDIA driver")


@pytest.fixture
def hand_made(virtual: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes executors of the hand-made step (`hand_made(graph=False)`), and closes them."""
    from tcomp.machine.gpu import machine_named
    from tcomp.runtime.cuda import executor
    from tests.runtime.cuda import hand_made as kit

    made = []

    def make(
        graph: bool = True, machine: str = "h100", shared_bytes: int = 256, arena_bytes: int = 8192
    ) -> executor.CudaExecutor:
        m = machine_named(machine)
        kernels = kit.kernels(m.target, shared_bytes)
        monkeypatch.setattr(executor, "compile_all", lambda *_: kernels)
        made.append(executor.CudaExecutor(kit.step(arena_bytes), m, 0, graph))
        return made[-1]

    yield make
    for one in made:
        one.close()
