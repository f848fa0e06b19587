"""What the host has to know of a compiled kernel: its entries' grids, shared memory and tensor maps. Kept as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from tcomp.dsl.ast import DType
from tcomp.ir.tensor_map import TensorMap


@dataclass(frozen=True)
class OperandMap:
    """A tensor map that an entry takes: of the kernel's operand of that name."""

    operand: str
    map: TensorMap


@dataclass(frozen=True)
class LaunchShape:
    """One launch: the grid is (blocks, 1, 1), the block (threads, 1, 1). `shared_bytes` is dynamic shared memory.
    `maps` are 128-byte arguments behind the pointers, in order; `cluster` blocks run together (which the entry says
    itself). With `resident` all blocks must have room on the GPU at the same time, or some would wait for ever. A block
    takes `tensor_columns` of an SM's tensor memory."""

    symbol: str
    blocks: int
    threads: int
    shared_bytes: int
    maps: tuple[OperandMap, ...] = ()
    cluster: int = 1
    resident: bool = False
    tensor_columns: int = 0


@dataclass(frozen=True)
class GpuKernel:
    """A kernel's PTX module and its launches, one per phase, in order. Every entry takes a 64-bit pointer per operand,
    in the kernel's order, then one to `team_bytes` bytes that all blocks share, if there are any, then one to
    `word_bytes` bytes that are zero before the first launch and that launches leave so, if there are any (other kernels
    may have them too), then its tensor maps. All pointers are 256-byte aligned."""

    name: str
    ptx: str
    launches: tuple[LaunchShape, ...]
    team_bytes: int
    word_bytes: int = 0


def to_json(kernel: GpuKernel, ptx: bool = True) -> str:
    """The kernel as text; without `ptx` what else there is to know."""
    values = asdict(kernel)
    if not ptx:
        del values["ptx"]
    return json.dumps(values, indent=None if ptx else 1, default=lambda dtype: dtype.value)


def from_json(text: str | bytes) -> GpuKernel:
    """The kernel of a text that `to_json` gave. KeyError, TypeError or ValueError for any other."""
    values = json.loads(text)
    launches = tuple(_launch(x) for x in values.pop("launches"))
    return GpuKernel(**values, launches=launches)


def _launch(values: dict[str, Any]) -> LaunchShape:
    maps = tuple(OperandMap(m["operand"], _map(m["map"])) for m in values.pop("maps"))
    return LaunchShape(**values, maps=maps)


def _map(values: dict[str, Any]) -> TensorMap:
    lists = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
    return TensorMap(**{**values, **lists, "dtype": DType(values["dtype"])})
