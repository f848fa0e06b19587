"""Compiles Triton kernels without a GPU and runs their PTX on the virtual one, with every check on.

Arguments are specialised as Triton's own launcher does it: pointers and integers that 16 divides are said to be
divisible, and the integer 1 becomes a constant, so that the PTX is what a user of Triton would get.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcomp.runtime.vgpu import Device, Options, Report

TYPES = {"float32": "fp32", "float16": "fp16", "float64": "fp64", "int32": "i32", "int64": "i64", "int8": "i8",
         "uint8": "u8", "uint16": "bf16", "uint32": "u32"}  # fmt: skip


def arch_of(cap: int) -> str:
    return f"sm_{cap}"


class Triton:
    """`run` gives the arrays as the kernel left them. A uint16 array is bf16; `types` overrides by position."""

    def __init__(self, cache: Path) -> None:
        os.environ["TRITON_CACHE_DIR"] = str(cache)
        warnings.filterwarnings("ignore", message=".*FP_FUSION.*")
        import triton.backends.compiler
        import triton.compiler

        self.triton = triton
        spec = importlib.util.spec_from_file_location("triton_kernels", Path(__file__).with_name("kernels.py"))
        assert spec and spec.loader
        self.kernels = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.kernels)

    def compile(self, name: str, args: Sequence[Any], constants: dict[str, Any], types: dict[int, str], cap: int,
                **options: int) -> Any:  # fmt: skip
        f = getattr(self.kernels, name)
        constants = dict(constants)
        signature: dict[str, str] = {}
        divisible: dict[tuple[int, ...], Any] = {}
        given = iter(args)
        for n, parameter in enumerate(f.arg_names):
            if parameter in constants:
                signature[parameter] = "constexpr"
                continue
            a = next(given)
            if n in types:
                signature[parameter] = types[n]
            elif isinstance(a, np.ndarray) and a.ndim:
                signature[parameter] = "*" + TYPES[str(a.dtype)]
            else:
                signature[parameter] = "fp32" if isinstance(a, float) else "i64" if abs(a) >= 2**31 else "i32"
            if isinstance(a, int) and a == 1:
                signature[parameter], constants[parameter] = "constexpr", 1
            elif (isinstance(a, np.ndarray) and a.ndim) or (isinstance(a, int) and a % 16 == 0):
                divisible[(n,)] = [["tt.divisibility", 16]]
        places = {(f.arg_names.index(k),): v for k, v in constants.items()}
        source = self.triton.compiler.ASTSource(f, signature=signature, constexprs=places, attrs=divisible)
        target = self.triton.backends.compiler.GPUTarget("cuda", cap, 32)
        return self.triton.compile(source, target=target, options=options)

    def launch(
        self, name: str, grid: int | Sequence[int], *args: Any, cap: int = 80, types: dict[int, str] | None = None,
        vgpu: Options | None = None, constants: dict[str, Any] | None = None, **options: int,
    ) -> tuple[Report, list[np.ndarray]]:  # fmt: skip
        options.setdefault("num_warps", 4)
        built = self.compile(name, args, constants or {}, types or {}, cap, **options)
        gpu = Device(sm=cap, options=vgpu)
        places = [(gpu.upload(a), a) if isinstance(a, np.ndarray) and a.ndim else None for a in args]
        values = [a if p is None else p[0] for p, a in zip(places, args, strict=True) if p or a != 1 or a is True]
        blocks = np.prod(grid, dtype=int)
        for size in (built.metadata.global_scratch_size, built.metadata.profile_scratch_size):
            values.append(gpu.allocate(int(size * blocks)) if size else 0)
        report = gpu.load(built.asm["ptx"]).launch(
            built.metadata.name, grid, 32 * built.metadata.num_warps, values, built.metadata.shared
        )
        return report, [gpu.download(p[0], p[1].dtype, p[1].size).reshape(p[1].shape) for p in places if p]

    def run(self, *args: Any, **options: Any) -> list[np.ndarray]:
        report, arrays = self.launch(*args, **options)
        report.check()
        return arrays


@pytest.fixture(scope="session")
def triton(request: pytest.FixtureRequest) -> Triton:
    """Skips where Triton cannot be imported; its cache lies in pytest's."""
    pytest.importorskip("triton", reason="no triton: pip install triton")
    return Triton(request.config.cache.mkdir("vgpu-triton"))


@pytest.fixture(params=[80, 90], ids=arch_of)
def cap(request: pytest.FixtureRequest) -> int:
    return int(request.param)
