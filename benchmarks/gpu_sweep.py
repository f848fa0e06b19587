"""Small, ragged, tall and odd shapes of the tensor-core families, on the GPU against the float64 oracle.

Everything but the inputs is NaN before a run, guard words follow each operand, and a second run has to give the same
bits. Inputs, the oracle's results and machine code are made in other processes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gpu_exact as exact
import numpy as np
from cuda.bindings import driver as cu
from gpu_cases import Case, built, case, module_of, op_of
from gpu_job import Item, Job, in_turn
from numpy.typing import NDArray

from tcomp.dsl.ast import DType, Op
from tcomp.dsl.dims import operand_shape
from tcomp.machine.gpu import GpuMachine
from tcomp.model.single import single_op_step
from tcomp.oracle import evaluate
from tcomp.runtime.cuda.driver import call
from tcomp.runtime.cuda.executor import CudaExecutor
from tcomp.runtime.values import stored, values
from tcomp.runtime.verify import distance, floats
from tcomp.schedule.lower import LoweredOp

Array = NDArray[Any]
GUARD = 64
UNIT = {DType.BF16: 2.0**-8, DType.F16: 2.0**-11, DType.F32: 2.0**-24}
TF32 = 2.0**-10
"""what cutting an operand to 10 bits of mantissa may take of it"""
SHORT = 150
"""positions up to which the oracle's arrays are small"""
HISTORY = 4.5
"""the largest value that 8-bit layers remember"""

SIZES = {
    "tall": (520, 32, 72), "wide": (24, 520, 64), "ragged": (200, 152, 104), "odd": (67, 70, 131), "tiny": (1, 8, 8),
    "one": (1, 1, 1), "primes": (257, 97, 389), "long": (136, 264, 8200), "waves": (4168, 2312, 200),
}  # fmt: skip
"""M, N, K. `waves`: more tiles than the GPU has multiprocessors, so that persistent blocks have several."""
ALIGNED = tuple(n for n in SIZES if n not in ("odd", "one", "primes"))
HEADS = (
    (1, 1, 1, 64), (2, 65, 2, 64), (1, 130, 2, 64), (1, 257, 1, 128), (1, 196, 1, 128), (1, 48, 1, 128),
    (1, 131, 1, 128), (2, 1000, 3, 64), (1, 1023, 2, 128), (1, 513, 2, 80), (1, 300, 2, 96), (1, 129, 1, 72),
    (2, 77, 2, 33), (1, 140, 1, 160), (1, 70, 1, 256), (3, 640, 12, 64),
)  # fmt: skip
"""B, T, H, D"""
GROUPS = ((1, 130, 1, 2, 64), (1, 332, 1, 2, 128), (2, 201, 2, 4, 64), (1, 67, 3, 1, 128))
"""B, T, G, R, D"""
LAYERS = ((200, 112, 272), (67, 70, 131), (520, 64, 64), (64, 528, 64), (1, 16, 16), (24, 528, 64), (520, 32, 48),
          (2200, 1160, 400), (272, 144, 4112))  # fmt: skip


def product_cases(real: bool) -> list[Case]:
    """Layers of 16-bit storage, and of f32 through the matrix unit."""
    if not real:
        return [_product("linear_gelu", "tiny", DType.BF16), _product("matmul.backward", "tiny", DType.F16)]
    found = []
    for i, shape in enumerate(SIZES):
        for j, op in enumerate(("matmul", "linear_gelu", "linear_residual", "matmul_residual")):
            for suffix in ("", ".backward"):
                found.append(_product(op + suffix, shape, (DType.BF16, DType.F16)[(i + j) % 2]))
    for shape in ALIGNED:
        sizes = tuple(zip("MNK", SIZES[shape], strict=True))
        found.append(Case("linear", "matmul", sizes, DType.F32, tf32=True))
    return found


def _product(op: str, shape: str, dtype: DType) -> Case:
    return Case("linear", op, tuple(zip("MNK", SIZES[shape], strict=True)), dtype)


def attention_cases(real: bool) -> list[Case]:
    """Lengths and heads of any size, with the mask and without, and heads that share a key."""
    found = []
    for i, (b, t, h, d) in enumerate(HEADS if real else HEADS[:1]):
        for op in ("attention", "attention.backward"):
            found.append(case("attention", op, (DType.BF16, DType.F16)[i % 4 == 3], B=b, T=t, H=h, D=d))
    for b, t, g, r, d in GROUPS if real else ():
        for op in ("grouped_attention", "grouped_attention.backward"):
            found.append(case("attention", op, B=b, T=t, G=g, R=r, D=d))
    for d in (64, 128) if real else ():
        for op in ("attention", "attention.backward"):
            found.append(Case("attention", op, (("B", 1), ("T", 258), ("H", 1), ("D", d)), full=True))
    return found


def fp8_cases(real: bool) -> list[Case]:
    """8-bit layers, with a scale for each tensor and for each block."""
    found = []
    for m, n, k in LAYERS if real else LAYERS[4:5]:
        for op in ("matmul_residual", "linear_gelu") if real else ("linear_gelu",):
            for file in ("fp8", "fp8_block"):
                for suffix in ("", ".backward"):
                    dims = {"M": m, "N": n, "K": k, **({"H": 16} if file == "fp8" else {})}
                    found.append(Case(file, f"{op}_{file}{suffix}", tuple(dims.items())))
    return found


@dataclass(frozen=True)
class Sample:
    """A case with inputs and what the oracle makes of them."""

    lowered: LoweredOp
    inputs: dict[str, Array]
    expected: dict[str, Array]


def sampled(machine: GpuMachine, cache: Any, c: Case) -> Sample:
    """The case lowered and compiled, inputs of its own, and the oracle's results."""
    op, lowered = op_of(c), built(c, machine, cache)
    inputs = _inputs(op, c)
    return Sample(lowered, inputs, _exact(op, c, inputs))


def _exact(op: Op, c: Case, inputs: dict[str, Array]) -> dict[str, Array]:
    """The op's results in float64."""
    if c.file == "attention" and c.sizes["T"] > SHORT:
        return exact.attention(inputs, c.full)
    with np.errstate(all="ignore"):
        return evaluate(op, module_of(c), inputs, c.sizes)


def _inputs(op: Op, c: Case) -> dict[str, Array]:
    """Random values as their types hold them; of a backward op also what the forward one gives at them."""
    random = np.random.default_rng(zlib.crc32(str(c).encode()))
    found: dict[str, Array] = {}

    def draw(which: Op) -> None:
        for p in which.params:
            if p.name not in found:
                x = random.standard_normal(operand_shape(p, c.sizes), np.float32)
                x = np.full_like(x, HISTORY) if p.name == "h" and p.dtype is DType.F32 else x
                found[p.name] = values(stored(x, p.dtype), p.dtype)

    if op.backward_of:
        forward = op_of(Case(c.file, op.backward_of, c.dims, c.dtype, c.full, c.longest, c.tf32))
        given = {o.name: o.dtype for o in forward.outputs}
        if any(p.name in given for p in op.params):
            draw(forward)
            for name, x in _exact(forward, c, found).items():
                if name in given:
                    found[name] = values(stored(np.asarray(x, np.float32), given[name]), given[name])
    draw(op)
    return {p.name: found[p.name] for p in op.params}


def poison(executor: CudaExecutor, inputs: Iterator[str]) -> None:
    """Every slot but the inputs full of ones: NaN in every type of float, -1 in the guards."""
    kept = set(inputs)
    for name, slot in executor.step.slots.items():
        if name not in kept:
            call(cu.cuMemsetD8Async, executor.arena + slot.offset, 0xFF, slot.bytes, executor.context.compute)


def harm(executor: CudaExecutor) -> list[str]:
    """Operands past whose end something was written."""
    guards = [n for n in executor.step.slots if n.startswith("guard.")]
    return [n.removeprefix("guard.") for n in guards if not (executor.read(n) == -1).all()]


def compare(job: Job, c: Case, s: Sample) -> Iterator[Item]:
    """Run the case twice and look at all of its memory."""
    step = single_op_step(s.lowered, c.sizes, GUARD)
    executor = job.device.open(step)
    assert isinstance(executor, CudaExecutor)
    try:
        inputs = {n: x for n, x in s.inputs.items() if n in step.slots}
        results = [n for n in s.expected if n in step.slots]
        runs, faults = [], []
        for _ in range(2):
            for name, x in inputs.items():
                executor.write(name, x)
            poison(executor, iter(inputs))
            executor.run("run")
            runs.append({n: executor.read(n).tobytes() for n in results})
        if runs[0] != runs[1]:
            faults.append("other bits in a second run")
        faults += [f"writes past the end of {n}" for n in harm(executor)]
        for name, x in inputs.items():
            dtype = step.slots[name].dtype
            if name not in results and executor.read(name).tobytes() != stored(x, dtype).tobytes():
                faults.append(f"changes its input {name}")
        row: Item = {"kind": "row", "what": str(c), "faults": "; ".join(faults), "good": not faults}
        off = {n: _distances(floats(executor, n), s.expected[n], _allowed(c, step.slots[n].dtype)) for n in results}
        of = max(off, key=lambda n: max(off[n]))
        row |= {"result": of, "L2 of allowed": off[of][0], "element of allowed": off[of][1]}
        yield row | {"good": row["good"] and max(off[of]) <= 1}
    finally:
        executor.close()


def _allowed(c: Case, dtype: DType) -> float:
    """Relative L2 distance from the oracle. Results are rounded; in backward passes, attention and after an activation
    so are the factors of sums. An 8-bit float may become its neighbour, as scales are in f32."""
    if c.file.startswith("fp8"):
        return 2.0**-6
    if c.tf32:
        return 4 * TF32
    return max(UNIT[c.dtype], UNIT.get(dtype, 0.0))


def _distances(got: Array, wanted: Array, allowed: float) -> tuple[float, float]:
    """Relative L2 distance over what is allowed; and the farthest element, which may be twice as far, beside its own
    size and the largest one's. Infinite where a result is not finite."""
    a, b = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    if not np.isfinite(a).all():
        return math.inf, math.inf
    gap, scale = np.abs(a - b), np.abs(b) + np.abs(b).max(initial=0.0)
    worst = float(np.max(gap / np.where(scale > 0, scale, 1.0), initial=0.0))
    return distance(a, b) / allowed, worst / allowed / 2


def _sweep(job: Job, cases: list[Case]) -> Iterator[Item]:
    yield from in_turn(job, cases, partial(sampled, job.device.machine, job.device.cache), partial(compare, job))


def sweep_products(job: Job) -> Iterator[Item]:
    yield from _sweep(job, product_cases(job.real))


def sweep_attention(job: Job) -> Iterator[Item]:
    yield from _sweep(job, attention_cases(job.real))


def sweep_fp8(job: Job) -> Iterator[Item]:
    yield from _sweep(job, fp8_cases(job.real))
