"""CUDA's driver interface, libcuda.so.1, on the virtual GPU: what cuda-python, Triton and others call.

driver = install("h100")            # before anything uses libcuda
from cuda.bindings import driver as cuda
cuda.cuInit(0); ...
driver.reports, driver.findings

Importing this package loads nothing: `register_cubin` works without a C compiler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcomp.runtime.vgpu.shim.cubins import register_cubin
from tcomp.runtime.vgpu.shim.options import ShimOptions

if TYPE_CHECKING:
    from tcomp.runtime.vgpu.shim.driver import VirtualDriver

__all__ = ["ShimOptions", "current", "install", "register_cubin"]


def install(machine: str = "h100", devices: int = 1, options: ShimOptions | None = None) -> VirtualDriver:
    """Makes this process's libcuda the virtual GPU's; see tcomp.runtime.vgpu.shim.load.install."""
    from tcomp.runtime.vgpu.shim.load import install as load

    return load(machine, devices, options)


def current() -> VirtualDriver | None:
    """The virtual driver of this process, if there is one."""
    from tcomp.runtime.vgpu.shim.state import installed

    return installed()
