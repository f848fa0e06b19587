"""What a virtual driver is asked to be."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from tcomp.errors import UserError
from tcomp.runtime.vgpu.machine import Options


@dataclass(frozen=True)
class ShimOptions:
    """`device`: the virtual GPU's own options, by default without a profile, which takes a tenth of the time.
    `strict`: a finding that hardware would not notice (a race, a read of uninitialised memory) fails the launch too,
    with CUDA_ERROR_LAUNCH_FAILED; otherwise it is only recorded. `driver_version`: what cuDriverGetVersion says (13000
    is CUDA 13.0). `blocking`: work runs at the call, as under CUDA_LAUNCH_BLOCKING=1. `keep_reports`: older reports
    than this many are dropped."""

    device: Options = field(default_factory=lambda: Options(profile=False))
    strict: bool = False
    driver_version: int = 13000
    blocking: bool = False
    keep_reports: int = 100_000


def from_environment() -> tuple[str, int, ShimOptions]:
    """Machine, devices and options from TCOMP_VGPU_MACHINE, _DEVICES, _STRICT, _CHECKS, _ORDER and _DRIVER_VERSION,
    for a process that found the library by LD_LIBRARY_PATH."""
    get = os.environ.get
    try:
        devices, version = int(get("TCOMP_VGPU_DEVICES") or 1), int(get("TCOMP_VGPU_DRIVER_VERSION") or 13000)
        order = int(get("TCOMP_VGPU_ORDER") or 0)
        if order < 0:
            raise ValueError(f"TCOMP_VGPU_ORDER is {order}, the least is 0")
    except ValueError as e:
        raise UserError(
            f"TCOMP_VGPU_DEVICES, _DRIVER_VERSION and _ORDER are whole numbers: {e}", "unset or correct them"
        ) from e
    checks = get("TCOMP_VGPU_CHECKS", "1") != "0"
    options = ShimOptions(
        device=Options(checks=checks, profile=False, order=order),
        strict=get("TCOMP_VGPU_STRICT", "0") not in ("", "0"),
        driver_version=version,
        blocking=get("CUDA_LAUNCH_BLOCKING", "0") not in ("", "0"),
    )
    return get("TCOMP_VGPU_MACHINE") or "h100", devices, options
