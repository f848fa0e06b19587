"""Hand-built tile kernels: short constructors, and a run on the virtual GPU beside the tile interpreter's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.codegen.nvptx.launch import GpuKernel
from tcomp.dsl.ast import DType, Expr, Name, Num
from tcomp.dsl.load import load_text
from tcomp.ir.blocks import Blocks, ThreadShape
from tcomp.ir.tile import (
    Axis,
    Buffer,
    Compute,
    Fragment,
    Kernel,
    Layout,
    Loop,
    RowMajor,
    Scope,
    Spread,
    Statement,
    Unpack,
)
from tcomp.machine.gpu import H100, GpuMachine
from tcomp.runtime.vgpu.arguments import tensor_maps
from tcomp.runtime.vgpu.device import Device
from tcomp.runtime.vgpu.report import Report
from tcomp.schedule.lower import lower
from tests.reference.tile_ir import at as at, ex as ex, fn as fn, op as op, operand as operand
from tests.tcomp.tile_interpreter import Interpreter

Arrays = dict[str, np.ndarray]
LANES = Spread(1, "x", 32)


def lanes(grain: int = 1, count: int = 32, which: str = "x") -> Spread:
    return Spread(grain, which, count)


def shared(name: str, *shape: int, layout: Layout = RowMajor(), dtype: DType = DType.F32, ring: int = 1) -> Buffer:
    return Buffer(name, dtype, shape, Scope.SHARED, layout, ring)


def registers(name: str, *dims: tuple[int, Spread], dtype: DType = DType.F32) -> Buffer:
    return Buffer(name, dtype, tuple(d for d, _ in dims), Scope.REGISTERS, Fragment(tuple(s for _, s in dims)))


def local(axis: str) -> Expr:
    """The axis counted from its tile's start."""
    return op("-", axis, axis + ".0")


def axis(name: str, extent: int, spread: Spread | None = None, block: int | None = None) -> Axis:
    return Axis(name, Num(0), Num(extent), block or extent, spread=spread)


def tile_axis(name: str, block: int, limit: int, spread: Spread | None = None) -> Axis:
    """start = name.0, stop = min(name.0 + block, limit), or without the min where tiles are whole."""
    start = Name(name + ".0")
    end = op("+", start, block)
    return Axis(name, start, end if limit % block == 0 else fn("min", end, limit), block, spread=spread)


def loop(name: str, limit: int, step: int, *body: Statement, level: str = "seq", stages: int = 1) -> Loop:
    return Loop(name + ".0", Num(0), Num(limit), step, level, tuple(body), stages=stages)


def grid(name: str, limit: int, step: int, *body: Statement) -> Loop:
    return loop(name, limit, step, *body, level="grid")


def kernel(
    operands: list[Buffer],
    phases: list[list[Statement]],
    tiles: list[Buffer] | None = None,
    threads: ThreadShape = ThreadShape(),
) -> Kernel:
    def leaves(body: tuple[Statement, ...]) -> list[Statement]:
        return [x for s in body for x in (leaves(s.body) if isinstance(s, Loop) else [s])]

    # A phase of one block is a grid of one.
    phases = [p if isinstance(p[0], Loop) and p[0].level == "grid" else [grid("block", 1, 1, *p)] for p in phases]
    targets = {s.target.tensor for p in phases for s in leaves(tuple(p)) if isinstance(s, Compute)}
    names = {o.name for o in operands}
    return Kernel(
        "test",
        tuple(operands),
        tuple(tiles or ()),
        tuple(tuple(p) for p in phases),
        frozenset(names - targets),
        frozenset(names & targets),
        blocks=Blocks(threads),
    )


def lowered(text: str, dims: dict[str, int], machine: GpuMachine = H100) -> Kernel:
    """The one kernel of the text's op `f`."""
    module = load_text(text, "f.tc")
    (found,) = lower(module.ops["f"], module, dims, machine).kernels
    return found


def given(k: Kernel, rng: np.random.Generator) -> Arrays:
    """Random values for what the kernel reads."""
    return {o.name: rng.standard_normal(o.shape).astype(np.float32) for o in k.operands if o.name in k.reads}


_NUMPY = {"f32": np.float32, "f64": np.float64, "i32": np.int32, "f16": np.float16, "e4m3": np.uint8, "e5m2": np.uint8}


def to_bits(x: np.ndarray, dtype: DType) -> np.ndarray:
    if dtype is DType.BF16:
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.ascontiguousarray(x, _NUMPY[dtype.value])


def from_bits(x: np.ndarray, dtype: DType) -> np.ndarray:
    if dtype is DType.BF16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x


def launch(k: Kernel, gpu: GpuKernel, inputs: Arrays, sm: int = 90) -> tuple[Arrays, list[Report]]:
    """Run all phases with every check on; operands without an input start uninitialised."""
    device = Device(sm)
    addresses = []
    for o in k.operands:
        dtype = np.uint16 if o.dtype is DType.BF16 else _NUMPY[o.dtype.value]
        if o.name in inputs:
            addresses.append(device.upload(to_bits(inputs[o.name], o.dtype)))
        else:
            addresses.append(device.allocate(max(1, int(np.prod(o.shape)) * np.dtype(dtype).itemsize)))
    if gpu.team_bytes:
        addresses.append(device.allocate(gpu.team_bytes))
    words = device.upload(np.zeros(gpu.word_bytes, np.uint8)) if gpu.word_bytes else 0
    addresses += [words] if words else []
    loaded = device.load(gpu.ptx)
    at = dict(zip([o.name for o in k.operands], addresses, strict=False))
    reports = [
        loaded.launch(s.symbol, s.blocks, s.threads, [*addresses, *tensor_maps(s, at)], s.shared_bytes).check()
        for s in gpu.launches
    ]
    assert not words or not device.download(words, np.uint8, gpu.word_bytes).any(), "words are zero between launches"
    out: Arrays = {}
    for o, address in zip(k.operands, addresses, strict=False):
        dtype = np.uint16 if o.dtype is DType.BF16 else _NUMPY[o.dtype.value]
        found = device.download(address, dtype, int(np.prod(o.shape)))
        out[o.name] = from_bits(found, o.dtype).reshape(o.shape)
    return out, reports


def interpreted(k: Kernel, inputs: Arrays) -> Arrays:
    arrays = {o.name: np.full(o.shape, np.nan) for o in k.operands}
    for name, x in inputs.items():
        dtype = k.buffer(name).dtype
        exact = from_bits(to_bits(x, dtype), dtype)
        arrays[name] = exact.astype(np.int64 if dtype is DType.I32 else np.float64)
    Interpreter(k, arrays).run()
    return arrays


def run(k: Kernel, inputs: Arrays, machine: GpuMachine = H100, tolerance: float = 2e-5) -> tuple[str, list[Report]]:
    """Compile, run, compare every written operand with the interpreter; gives the PTX and the launches' reports."""
    gpu = compile_kernel(k, machine)
    assert ".local" not in gpu.ptx and ".extern .func" not in gpu.ptx
    found, reports = launch(k, gpu, inputs, machine.sm)
    wanted = interpreted(k, inputs)
    for name in k.writes:
        scale = tolerance * (256 if k.buffer(name).dtype in (DType.BF16, DType.F16) else 1)
        np.testing.assert_allclose(found[name], wanted[name], rtol=scale, atol=scale, err_msg=name)
    return gpu.ptx, reports


def machine(target: str) -> GpuMachine:
    return replace(H100, target=target)


def changed(kernel: Kernel, **fields: object) -> Kernel:
    """The kernel with other `Turns` where blocks add to memory."""

    def statement(s: Statement) -> Statement:
        if isinstance(s, Loop):
            return replace(s, body=tuple(statement(x) for x in s.body))
        if isinstance(s, Unpack) and s.turns is not None:
            return replace(s, turns=replace(s.turns, **fields))
        return s

    return replace(kernel, phases=tuple(tuple(statement(s) for s in p) for p in kernel.phases))
