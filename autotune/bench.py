"""One op instance on a device: candidates built, checked against the oracle, and timed in turns with each other.

What is checked is every copy of the operands that timed runs work on: inputs as they are, all else full of NaN before,
guard words behind each operand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcomp.autotune.backend import Backend
from tcomp.autotune.child import Rejected
from tcomp.autotune.contest import turns
from tcomp.autotune.guard import exclusive
from tcomp.autotune.sizes import reduced
from tcomp.dsl.ast import DType, Module, Op, Schedule
from tcomp.model.single import single_op_step
from tcomp.model.step import Launch, Step
from tcomp.runtime.executor import Executor
from tcomp.runtime.values import values as floats_of
from tcomp.runtime.verify import distance, floats, oracle_case, random_inputs, rounding
from tcomp.schedule.lower import LoweredOp, lower

Array = NDArray[Any]
Case = tuple[dict[str, Array], dict[str, Array]]
"""Inputs, and the results expected of them."""
TOLERANCE = 2e-5
"""Relative L2 distance allowed in f32; 16-bit operands add their roundings (`runtime.verify.rounding`)."""
GUARD = 64
POISON = 0x7BADF00D
"""What integers and guard words are before a run."""
ORACLE_WORK = 3e10
"""Multiplications that the oracle may take for one check."""
ORACLE_ELEMENTS = 4e7


@dataclass
class Candidate:
    """A built candidate. `programs` do the same work, on one copy of the operands each: the kernel that is tuned, or
    the whole op. `facts` are what the compiler and the static model say of it."""

    executor: Executor
    programs: tuple[str, ...]
    facts: Mapping[str, float | str] = field(default_factory=dict)

    def close(self) -> None:
        self.executor.close()


class Bench:
    """Builds, checks and times the candidates of one instance; `seed` is that of its inputs."""

    def __init__(self, module: Module, op: Op, dims: Mapping[str, int], backend: Backend, seed: int) -> None:
        self.module, self.op, self.dims = module, op, dict(dims)
        self.backend, self.seed = backend, seed
        self.small = reduced(op, module, self.dims, ORACLE_WORK, ORACLE_ELEMENTS, backend.aligned)
        self.clock = backend.begin()
        self._cases: dict[tuple[tuple[str, int], ...], Case] = {}
        self._spills: dict[int | None, bool] = {}

    def lower(
        self, chosen: Mapping[str, int | float], schedule: Schedule | None, dims: dict[str, int] | None = None
    ) -> LoweredOp:
        b = self.backend
        return lower(self.op, self.module, dims or self.dims, b.machine, b.threads, chosen, schedule)

    def build(
        self, chosen: Mapping[str, int | float], kernel: int | None = None, schedule: Schedule | None = None
    ) -> Candidate:
        """The candidate, checked at the size the oracle can afford and at the real one; of several kernels, the one at
        that position is what is timed. Raises Rejected where it is wrong or spills, TcError where it is illegal."""
        lowered = self.lower(chosen, schedule)
        judged = lowered.kernels if kernel is None else (lowered.kernels[kernel],)
        examined = self.backend.examine(judged)
        if examined.findings and not self._default_spills(kernel):
            raise Rejected("spill", examined.findings)
        if self.small != self.dims:
            small = self.backend.open(single_op_step(self.lower(chosen, schedule, self.small), self.small, GUARD))
            try:
                self.check(small, self.case(self.small), f" at {_dims(self.small)}")
            finally:
                small.close()
        step = single_op_step(lowered, self.dims, GUARD)
        copies = self.backend.copies(step.arena_bytes)
        step, program = one_kernel(step, kernel)
        executor = self.backend.open(rotated(step, copies))
        try:
            for copy in range(copies):
                self.check(executor, self.case(self.dims), "", copy)
        except BaseException:
            executor.close()
            raise
        return Candidate(executor, tuple(named(program, i) for i in range(copies)), examined.facts)

    def _default_spills(self, kernel: int | None) -> bool:
        """Whether the compiler has something against the schedule's own values too."""
        if kernel not in self._spills:
            lowered = self.lower({}, None)
            judged = lowered.kernels if kernel is None else (lowered.kernels[kernel],)
            self._spills[kernel] = bool(self.backend.examine(judged).findings)
        return self._spills[kernel]

    def case(self, dims: dict[str, int]) -> Case:
        """Inputs and expected results: the oracle's, or at a size that is too large for it those of the schedule's own
        values (which were checked against the oracle at the smaller size)."""
        at = tuple(sorted(dims.items()))
        if at not in self._cases:
            if dims == self.small:
                self._cases[at] = oracle_case(self.op, self.module, dims, self.seed)
            else:
                self._cases[at] = self._reference(dims)
        return self._cases[at]

    def _reference(self, dims: dict[str, int]) -> Case:
        inputs = random_inputs(self.op, dims, np.random.default_rng(self.seed), False)
        executor = self.backend.open(single_op_step(self.lower({}, None, dims), dims, GUARD))
        try:
            self._start(executor, inputs, 0)
            executor.run("run")
            names = [o.name for o in self.op.written]
            return inputs, {n: floats(executor, n).copy() for n in names if n in executor.step.slots}
        finally:
            executor.close()

    def _start(self, executor: Executor, inputs: Mapping[str, Array], copy: int) -> None:
        """Inputs in place; every other slot of the copy full of NaN (integers: a large number)."""
        for name, slot in _slots(executor.step, copy).items():
            if name in inputs:
                executor.write(slot, inputs[name])
            elif executor.step.slots[slot].dtype is DType.I32:
                executor.write(slot, np.int32(POISON))
            else:
                executor.write(slot, np.float32(np.nan))

    def check(self, executor: Executor, case: Case, where: str, copy: int = 0) -> None:
        """Run the op on a copy of its operands and look at all of them. Raises Rejected."""
        inputs, expected = case
        self._start(executor, inputs, copy)
        executor.run(named("run", copy))
        slots = _slots(executor.step, copy)
        tolerance = TOLERANCE + 4 * rounding(self.op)
        for name, wanted in expected.items():
            if name in slots:
                off = distance(floats(executor, slots[name]), wanted)
                if not off <= tolerance:
                    raise Rejected("wrong", f"{name}{where} is {off:.1e} from the oracle, {tolerance:.0e} allowed")
        for name, slot in slots.items():
            if name.startswith("guard.") and not (executor.read(slot) == POISON).all():
                raise Rejected("wrong", f"it writes past the end of {name.removeprefix('guard.')}{where}")
            if name in inputs and name not in expected:
                dtype = executor.step.slots[slot].dtype
                kept = executor.read(slot) if dtype is DType.I32 else floats_of(executor.read(slot), dtype)
                if not np.array_equal(kept, inputs[name]):
                    raise Rejected("wrong", f"it changes its input {name}{where}")

    def times(
        self, candidates: Sequence[Candidate], rounds: int, seconds: float = math.inf, alone: Path | None = None
    ) -> list[list[float]]:
        """Seconds of each candidate in turns (`contest.turns`). `alone` names a file that is locked meanwhile, so that
        of several tuning processes one measures at a time."""
        players = [partial(self.clock.seconds, c.executor, c.programs) for c in candidates]
        with exclusive(alone):
            return turns(players, rounds, seconds)

    def close(self) -> None:
        self.clock.close()


def one_kernel(step: Step, kernel: int | None) -> tuple[Step, str]:
    """The step with a program of the one launch that is tuned, and that program's name."""
    if kernel is None or len(step.programs["run"]) == 1:
        return step, "run"
    return replace(step, programs={**step.programs, "kernel": (step.programs["run"][kernel],)}), "kernel"


def rotated(step: Step, copies: int) -> Step:
    """The step with its slots and programs `copies` times over, behind one another; those of copy 1 and on are named
    by `named`."""
    stride = -(-step.arena_bytes // 256) * 256
    slots = {
        named(n, i): replace(s, name=named(n, i), offset=s.offset + i * stride)
        for i in range(copies)
        for n, s in step.slots.items()
    }
    programs = {
        named(n, i): tuple(Launch(x.kernel, tuple(o + i * stride for o in x.offsets), x.label) for x in launches)
        for i in range(copies)
        for n, launches in step.programs.items()
    }
    size = stride * (copies - 1) + step.arena_bytes
    return replace(step, slots=slots, programs=programs, arena_bytes=size, lower_bound_bytes=size)


def named(name: str, copy: int) -> str:
    """The name of a copy's slot or program."""
    return f"{name}@{copy}" if copy else name


def _slots(step: Step, copy: int) -> dict[str, str]:
    """Operand (or guard) -> the copy's slot."""
    names = [n for n in step.slots if "@" not in n]
    return {n: named(n, copy) for n in names}


def _dims(dims: Mapping[str, int]) -> str:
    return " ".join(f"{k}={v}" for k, v in sorted(dims.items()))
