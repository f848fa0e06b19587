"""One op instance on this computer's processors: candidates built, checked against the oracle, and timed.

All candidates of an instance run on the same slots, so what is compared is code alone. Between two timings the caches
are cleared by writing a buffer as large as the last level, since in a step other ops run in between.
"""

from __future__ import annotations

import fcntl
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcomp.dsl.ast import DType, Module, Op, Schedule
from tcomp.dsl.dims import evaluate_dim, operand_shape
from tcomp.dsl.infer import dimensions, infer
from tcomp.errors import UserError
from tcomp.machine.cpu import CpuMachine
from tcomp.model.single import single_op_step
from tcomp.model.step import Step
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.values import values as floats_of
from tcomp.runtime.verify import distance, oracle_case, rounding
from tcomp.schedule.lower import LoweredOp, lower

Array = NDArray[Any]
TOLERANCE = 2e-5
"""Relative L2 distance allowed in f32; 16-bit operands add their roundings (`runtime.verify.rounding`)."""
GUARD = 64
ORACLE_WORK = 3e10
"""Multiplications that the oracle may take for one check."""
ORACLE_ELEMENTS = 4e7
FLUSH = 64 << 20
"""At most this much is written to clear the caches."""


class Rejected(Exception):
    """A candidate that does not count: `kind` is illegal | wrong, and the message says what was seen."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass
class Candidate:
    """A built candidate. `program` runs only the kernel that is tuned ("" tunes the whole op: all kernels)."""

    executor: CpuExecutor
    program: str

    def close(self) -> None:
        self.executor.close()


class Bench:
    """Builds, checks and times the candidates of one instance for `kernel` (its span in the schedule)."""

    def __init__(
        self, module: Module, op: Op, dims: Mapping[str, int], machine: CpuMachine, threads: int, cache: Path, seed: int
    ) -> None:
        self.module, self.op, self.dims = module, op, dict(dims)
        self.machine, self.threads, self.cache, self.seed = machine, threads, cache, seed
        self.small = affordable(op, module, self.dims)
        self.cases: dict[tuple[tuple[str, int], ...], tuple[dict[str, Array], dict[str, Array]]] = {}
        self.flush = np.zeros(min(FLUSH, 2 * machine.l3_bytes) // 8)

    def lower(
        self, chosen: Mapping[str, int | float], schedule: Schedule | None, dims: dict[str, int] | None = None
    ) -> LoweredOp:
        return lower(self.op, self.module, dims or self.dims, self.machine, self.threads, chosen, schedule)

    def build(
        self, chosen: Mapping[str, int | float], kernel: int | None = None, schedule: Schedule | None = None
    ) -> Candidate:
        """The candidate, checked at the size the oracle can afford and at the real one. Raises Rejected where it is
        wrong, TcError where it is illegal."""
        if self.small != self.dims:
            small = CpuExecutor(
                single_op_step(self.lower(chosen, schedule, self.small), self.small, GUARD),
                self.machine, self.threads, self.cache,
            )  # fmt: skip
            try:
                self._check(small, self._case(self.small), f" at {_dims(self.small)}")
            finally:
                small.close()
        step, program = one_kernel(single_op_step(self.lower(chosen, schedule), self.dims, GUARD), kernel)
        executor = CpuExecutor(step, self.machine, self.threads, self.cache)
        try:
            self._check(executor, self._case(self.dims), "")
        except BaseException:
            executor.close()
            raise
        return Candidate(executor, program)

    def _case(self, dims: dict[str, int]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Inputs and expected results: the oracle's, or at a size that is too large for it those of the schedule's own
        values (which were checked against the oracle at the smaller size)."""
        at = tuple(sorted(dims.items()))
        if at not in self.cases:
            if dims == self.small:
                self.cases[at] = oracle_case(self.op, self.module, dims, self.seed)
            else:
                self.cases[at] = self._reference(dims)
        return self.cases[at]

    def _reference(self, dims: dict[str, int]) -> tuple[dict[str, Array], dict[str, Array]]:
        from tcomp.runtime.verify import random_inputs

        inputs = random_inputs(self.op, dims, np.random.default_rng(self.seed), False)
        executor = CpuExecutor(
            single_op_step(self.lower({}, None, dims), dims, GUARD), self.machine, self.threads, self.cache
        )
        try:
            self._start(executor, inputs)
            executor.run("run")
            names = [o.name for o in self.op.operands if (o.inout or o in self.op.outputs)]
            return inputs, {n: _values(executor, n).copy() for n in names if n in executor.step.slots}
        finally:
            executor.close()

    def _start(self, executor: CpuExecutor, inputs: Mapping[str, Array]) -> None:
        """Inputs in place; every other slot full of NaN (integers: a large number)."""
        for name, slot in executor.step.slots.items():
            if name in inputs:
                executor.write(name, inputs[name])
            elif slot.dtype is DType.I32:
                executor.array(name)[...] = 0x7BADF00D
            else:
                executor.write(name, np.float32(np.nan))

    def _check(self, executor: CpuExecutor, case: tuple[dict[str, Array], dict[str, Array]], where: str) -> None:
        inputs, expected = case
        self._start(executor, inputs)
        executor.run("run")
        tolerance = TOLERANCE + 4 * rounding(self.op)
        for name, wanted in expected.items():
            if name in executor.step.slots:
                off = distance(_values(executor, name), wanted)
                if not off <= tolerance:
                    raise Rejected("wrong", f"{name}{where} is {off:.1e} from the oracle, {tolerance:.0e} allowed")
        for name, slot in executor.step.slots.items():
            if name.startswith("guard.") and not (executor.array(name) == 0x7BADF00D).all():
                raise Rejected("wrong", f"it writes past the end of {name.removeprefix('guard.')}{where}")
            if name in inputs and name not in expected:
                before = inputs[name]
                kept = _values(executor, name) if slot.dtype is not DType.I32 else executor.array(name)
                if not np.array_equal(kept, before):
                    raise Rejected("wrong", f"it changes its input {name}{where}")

    def times(
        self, candidates: Sequence[Candidate], rounds: int, seconds: float = math.inf, alone: Path | None = None
    ) -> list[list[float]]:
        """Seconds of each candidate in turns, at least 3 rounds, at most `rounds` or about `seconds`. `alone` names a
        file that is locked meanwhile, so that of several tuning processes one measures at a time."""
        out: list[list[float]] = [[] for _ in candidates]
        order = list(range(len(candidates)))
        end = time.perf_counter() + seconds
        with _exclusive(alone):
            for i in range(rounds):
                if i >= 3 and time.perf_counter() > end:
                    break
                for j in order if i % 2 else reversed(order):
                    self.flush += 1.0
                    c = candidates[j]
                    started = time.perf_counter()
                    c.executor.run(c.program)
                    out[j].append(time.perf_counter() - started)
        return out


def one_kernel(step: Step, kernel: int | None) -> tuple[Step, str]:
    """The step with a program of the one launch that is tuned, and that program's name."""
    if kernel is None or len(step.programs["run"]) == 1:
        return step, "run"
    return replace(step, programs={**step.programs, "kernel": (step.programs["run"][kernel],)}), "kernel"


def affordable(op: Op, module: Module, dims: dict[str, int]) -> dict[str, int]:
    """The dims themselves, or smaller ones at which the oracle can evaluate the op: the largest dimension is halved
    (rounded to an odd number, so that tiles stay ragged) as long as it must be."""
    found = dict(dims)
    names = [n for n in dimensions(op) if n in found]
    while (work_of(op, module, found) > ORACLE_WORK or elements_of(op, module, found) > ORACLE_ELEMENTS) and names:
        largest = max(names, key=lambda n: found[n])
        if found[largest] <= 8:
            break
        smaller = {**found, largest: (found[largest] // 2) | 1}
        if not all(evaluate_dim(r, {**smaller}) for r in op.requires):
            names.remove(largest)
            continue
        found = smaller
    return found


def work_of(op: Op, module: Module, dims: dict[str, int]) -> float:
    """Points of the largest equation."""
    info = infer(op, module)
    extents = {i: int(evaluate_dim(e, dims)) for i, e in info.ranges.items()}
    most = 1.0
    for eq, parallel in zip(op.equations, info.equation_indices, strict=True):
        reduced = getattr(eq.value, "indices", ())
        most = max(most, math.prod(float(extents[i]) for i in (*parallel, *reduced)))
    return most


def elements_of(op: Op, module: Module, dims: dict[str, int]) -> float:
    """Elements of the largest tensor, temporaries included."""
    info = infer(op, module)
    extents = {i: int(evaluate_dim(e, dims)) for i, e in info.ranges.items()}
    sizes = [math.prod(map(float, operand_shape(o, dims))) for o in op.operands]
    sizes += [math.prod(float(extents[i]) for i in t.indices) for t in info.temporaries.values()]
    return max(sizes, default=1.0)


@dataclass(frozen=True)
class Ratio:
    """Time of one over another, from interleaved timings: `low` and `high` are its 95 % confidence interval."""

    value: float
    low: float
    high: float

    @property
    def margin(self) -> float:
        return (self.high - self.low) / 2


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """The median of the rounds' ratios; its interval by the order statistics of the median (no distribution is
    assumed, so that a round disturbed by another program shifts ranks and not means)."""
    logs = sorted(math.log(a / b) for a, b in zip(ours, theirs, strict=True))
    n = len(logs)
    if n < 6:
        return Ratio(math.exp(statistics.median(logs)), math.exp(logs[0]), math.exp(logs[-1]))
    reach = 1.96 * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - reach)), min(n - 1, math.ceil(n / 2 + reach) - 1)
    return Ratio(math.exp(statistics.median(logs)), math.exp(logs[low]), math.exp(logs[high]))


class _exclusive:
    """Holds a lock on a file, where one is named."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.file = open(self.path, "w") if self.path else None
        if self.file:
            fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        if self.file:
            self.file.close()


def _values(executor: CpuExecutor, name: str) -> Array:
    return floats_of(executor.read(name), executor.step.slots[name].dtype)


def _dims(dims: Mapping[str, int]) -> str:
    return " ".join(f"{k}={v}" for k, v in sorted(dims.items()))


def cpu_only(machine: object) -> CpuMachine:
    """UserError for a machine that is no CPU."""
    if not isinstance(machine, CpuMachine):
        raise UserError("only a CPU's kernels can be timed here")
    return machine
