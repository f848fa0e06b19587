"""Compiles Triton kernels without a GPU and runs their PTX on the virtual one, with every check on.

Arguments are specialised as Triton's own launcher does it: pointers and integers that 16 divides are said to be
divisible, and the integer 1 becomes a constant, so that the PTX is what a user of Triton would get.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcomp.runtime.vgpu import Device, Options, Report
from tcomp.runtime.vgpu.tensor_map import encode_tiled

TYPES = {"float32": "fp32", "float16": "fp16", "float64": "fp64", "int32": "i32", "int64": "i64", "int8": "i8",
         "uint8": "u8", "uint16": "bf16", "uint32": "u32"}  # fmt: skip


@dataclass(frozen=True)
class Descriptor:
    """A tensor descriptor that the host makes: a matrix (last axis contiguous) and the block that is moved at once."""

    array: np.ndarray
    block: tuple[int, ...]


def arch_of(cap: int) -> str:
    return f"sm_{cap}"


def expanded(d: Descriptor, address: int, meta: Any) -> list[Any]:
    """The parameters that a descriptor becomes: a tensor map (sm_90) or the tensor itself, its shape and strides."""
    shape, strides = list(d.array.shape), [s // d.array.itemsize for s in d.array.strides]
    if meta is None:
        return [address, *shape, *strides, False, False, *shape, *strides]
    moved = [10, 8, 9][kind - 8] if 8 <= (kind := meta["elem_type"]) <= 10 else kind  # numbered otherwise in kernels
    steps = [s * d.array.itemsize for s in strides[-2::-1]]
    one = [1] * len(shape)
    raw = encode_tiled(moved, len(shape), address, shape[::-1], steps, meta["block_size"][::-1], one,
                       swizzle=meta["swizzle"])  # fmt: skip
    return [raw, *shape, *strides]


class Triton:
    """`run` gives the arrays as the kernel left them. A uint16 array is bf16; `types` overrides by position."""

    def __init__(self, cache: Path) -> None:
        os.environ["TRITON_CACHE_DIR"] = str(cache)
        warnings.filterwarnings("ignore", message=".*FP_FUSION.*")
        import triton.backends.compiler
        import triton.compiler

        self.triton = triton
        self.kernels: dict[str, Any] = {}
        for file in sorted(Path(__file__).parent.glob("kernels*.py")):
            spec = importlib.util.spec_from_file_location(f"triton_{file.stem}", file)
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            self.kernels |= vars(module)

    def compile(self, name: str, args: Sequence[Any], constants: dict[str, Any], types: dict[int, str], cap: int,
                **options: int) -> Any:  # fmt: skip
        f = self.kernels[name]
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
            elif isinstance(a, Descriptor):
                signature[parameter] = f"tensordesc<{TYPES[str(a.array.dtype)]}{list(a.block)}>"
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
        arrays = [a.array if isinstance(a, Descriptor) else a for a in args]
        places = [(gpu.upload(a), a) if isinstance(a, np.ndarray) and a.ndim else None for a in arrays]
        maps = iter(getattr(built.metadata, "tensordesc_meta", None) or ())
        values: list[Any] = []
        for place, a in zip(places, args, strict=True):
            if isinstance(a, Descriptor):
                assert place is not None
                values += expanded(a, place[0], next(maps, None))
            elif place or a != 1 or a is True:
                values.append(place[0] if place else a)
        blocks = np.prod(grid, dtype=int)
        for size in (built.metadata.global_scratch_size, built.metadata.profile_scratch_size):
            values.append(gpu.allocate(int(size * blocks)) if size else 0)
        ctas = built.metadata.num_ctas
        x, *rest = [grid] if isinstance(grid, int) else grid
        report = gpu.load(built.asm["ptx"]).launch(
            built.metadata.name, (x * ctas, *rest), 32 * built.metadata.num_warps, values, built.metadata.shared,
            cluster=ctas if ctas > 1 else None,
        )  # fmt: skip
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
