"""Calls of the CUDA driver, and what can be wrong with it, in words.

`call(cu.cuMemAlloc, size)` gives the results without the status, and raises one UserError where the status is not
success: what is missing on this machine where that is the reason (no driver, an old one, no GPU), the driver's own
name and text for the error otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cuda.bindings import driver as cu

from tcomp.errors import UserError

OLDEST_DRIVER = 12000
"""cuDriverGetVersion of CUDA 12.0: the first with tensor maps and the present form of graphs."""

STICKY = frozenset({
    "ECC_UNCORRECTABLE", "ILLEGAL_ADDRESS", "LAUNCH_TIMEOUT", "ASSERT", "HARDWARE_STACK_ERROR", "ILLEGAL_INSTRUCTION",
    "MISALIGNED_ADDRESS", "INVALID_ADDRESS_SPACE", "INVALID_PC", "LAUNCH_FAILED", "TENSOR_MEMORY_LEAK", "CONTAINED",
})  # fmt: skip
"""After one of these every call in the context fails with it, until the process ends."""

WITHOUT_GPU = "use --device cpu, or --device virtual to try GPU code without a GPU"
"""How a step runs without one: the end of each remedy that does not give the machine a GPU."""
_STATES = {
    "NO_DEVICE": ("the NVIDIA driver is there, but no GPU", "look at CUDA_VISIBLE_DEVICES and nvidia-smi; or "),
    "STUB_LIBRARY": ("the libcuda.so that was found is the CUDA toolkit's stub, not a driver",
                     "put the driver's own folder first in LD_LIBRARY_PATH; or "),
    "SYSTEM_DRIVER_MISMATCH": ("the NVIDIA driver's library and its kernel module are of different versions",
                               "restart the computer after the driver's update; or "),
    "COMPAT_NOT_SUPPORTED_ON_DEVICE": ("this GPU does not support CUDA's forward compatibility package",
                                       "remove the compat folder from LD_LIBRARY_PATH, or update the driver; or "),
    "SYSTEM_NOT_READY": ("the GPUs are not ready", "start nvidia-fabricmanager, or wait for it; or "),
    "DEVICE_UNAVAILABLE": ("the GPU is taken by another process (exclusive mode)", "wait for it to end; or "),
    "INSUFFICIENT_DRIVER": ("the NVIDIA driver is too old", "install a newer driver; or "),
    "CALL_REQUIRES_NEWER_DRIVER": ("the NVIDIA driver is too old", "install a newer driver; or "),
}  # fmt: skip


class CudaError(UserError):
    """A driver call that failed. `name` is the result's name without CUDA_ERROR_."""

    def __init__(self, name: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.name = name

    @property
    def sticky(self) -> bool:
        return self.name in STICKY


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """The driver function's results: None, one value, or a tuple."""
    try:
        status, *results = function(*arguments)
    except RuntimeError as e:  # of cuda-python's: there is no library, or it has no such function
        if str(e).startswith("Function"):
            raise CudaError(
                "CALL_REQUIRES_NEWER_DRIVER",
                f"the NVIDIA driver is too old: it has no {function.__name__}",
                f"install a driver for CUDA {_version_text(OLDEST_DRIVER)} or newer, or {WITHOUT_GPU}",
            ) from e
        raise CudaError(
            "NO_DRIVER",
            "no NVIDIA driver: the library libcuda.so.1 was not found",
            f"install the NVIDIA driver (nvidia-smi then lists the GPUs), or {WITHOUT_GPU}",
        ) from e
    if status != cu.CUresult.CUDA_SUCCESS:
        raise error_of(status, function.__name__)
    if not results:
        return None
    return results[0] if len(results) == 1 else tuple(results)


def error_of(status: Any, function: str) -> CudaError:
    """The error for a result of a driver function."""
    name = str(getattr(status, "name", status)).removeprefix("CUDA_ERROR_")
    if name in _STATES:
        message, hint = _STATES[name]
        return CudaError(name, message, hint + WITHOUT_GPU)
    said, text = cu.cuGetErrorString(status)
    words = text.decode(errors="replace") if said == cu.CUresult.CUDA_SUCCESS and text else "unknown error"
    return CudaError(
        name,
        f"the CUDA driver failed: {words} (CUDA_ERROR_{name} in {function})",
        "look at nvidia-smi and dmesg; launch by launch (--no-graph) the failing kernel is named",
    )


def start() -> int:
    """Load and initialise the driver; its version (13000 is CUDA 13.0). UserError names what is missing."""
    call(cu.cuInit, 0)
    version: int = call(cu.cuDriverGetVersion)
    if version < OLDEST_DRIVER:
        raise CudaError(
            "CALL_REQUIRES_NEWER_DRIVER",
            f"the NVIDIA driver is too old: it is for CUDA {_version_text(version)}",
            f"install a driver for CUDA {_version_text(OLDEST_DRIVER)} or newer, or {WITHOUT_GPU}",
        )
    return version


def _version_text(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
