"""Law: no legal schedule changes a result beyond rounding.

Random schedules, legal by construction, for several ops; lowered and run by the tile IR interpreter (which
checks every index) on one to three simulated cores, against the float64 oracle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings, strategies as st

from tcomp.dsl.ast import Level, MapLoops, Module, Num, Order, Schedule, Stage
from tcomp.dsl.check import infer
from tcomp.dsl.dims import evaluate_dim, operand_shape
from tcomp.dsl.format import print_item
from tcomp.dsl.load import load
from tcomp.machine.cpu import CpuMachine, detect
from tcomp.model.single import single_op_step
from tcomp.oracle import evaluate
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.schedule.lower import LoweredOp, lower
from tests.tcomp.tile_interpreter import Interpreter
from tests.turns import examples


@dataclass(frozen=True)
class Case:
    op: str
    dims: dict[str, tuple[int, int]]
    cores: tuple[str, ...]  # indices that may be divided among cores
    stages: tuple[tuple[str, str], ...] = ()


OWN = {"X": {"m"}, "W": {"n"}, "QKV.1": {"b", "h", "k"}}
"""indices of what is staged that a register tile may run along"""

MACHINE = CpuMachine("avx512", (), 8, 32, 32768, 1 << 20, 1 << 24, 3)

CASES = [
    Case("matmul", {"M": (1, 20), "N": (1, 40), "K": (1, 30)}, ("m", "n"), (("W", "k"), ("X", "k"), ("W", "n"))),
    Case("linear_gelu", {"M": (1, 9), "N": (1, 30), "K": (1, 30)}, ("m", "n"), (("W", "k"), ("W", "m"))),
    Case("layernorm", {"M": (1, 9), "C": (1, 50)}, ("m",)),
    Case("attention", {"B": (1, 2), "T": (1, 23), "H": (1, 3), "D": (1, 9)}, ("b", "h", "q"), (("QKV.1", "k"),)),
    Case("attention.backward", {"B": (1, 2), "T": (1, 19), "H": (1, 2), "D": (1, 9)}, ("b", "h")),
    Case("embedding.backward", {"B": (1, 3), "T": (1, 5), "V": (7, 9), "S": (5, 8), "C": (1, 40)}, ("c",)),
    Case("crossentropy", {"M": (1, 6), "P": (60, 70), "V": (1, 60)}, ("m",)),
]


@lru_cache
def gpt2() -> Module:
    return load("models/gpt2.tc")


@st.composite
def schedules(draw: st.DrawFn, case: Case, op_name: str, extents: dict[str, int], indices: list[str]) -> Schedule:
    maps, tiled = [], []
    cores = [i for i in indices if i in case.cores and draw(st.booleans())]
    chunked = len(cores) == 1 and draw(st.booleans())
    for i in indices:
        levels: list[Level] = []
        size = extents[i]
        if i in cores:
            levels.append(Level("core", () if chunked else (Num(draw(st.integers(1, size))),)))
            bound = size if chunked else levels[0].args[0].value
        else:
            bound = size
        for _ in range(draw(st.integers(0, 2))):
            bound = draw(st.integers(1, bound))
            levels.append(Level("seq", (Num(bound),)))
            tiled.append(i)
        if draw(st.booleans()):
            levels.append(Level("unroll", (Num(draw(st.integers(1, 2))),)))
        if draw(st.booleans()):
            levels.append(Level("vec"))
        if levels:
            maps.append(MapLoops((i,), (), tuple(levels)))
    order = Order(tuple(draw(st.permutations(tiled))))
    register = {m.loops[0] for m in maps for x in m.levels if x.kind == "vec" or x == Level("unroll", (Num(2),))}
    stages = tuple(
        Stage((t,), "packed", at)
        for t, at in case.stages
        if draw(st.booleans()) and at in tiled and register & OWN[t]  # else there is nothing to pack, an error
    )
    return Schedule(op_name, "cpu", (*maps, order, *stages[:1]), ())


@dataclass(frozen=True)
class Drawn:
    """An op instance with a random schedule, its inputs and the oracle's results."""

    lowered: LoweredOp
    threads: int
    dims: dict[str, int]
    inputs: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    outputs: dict[str, tuple[int, ...]]


def draw(case: Case, data: st.DataObject, machine: CpuMachine) -> Drawn:
    module = gpt2()
    op = module.ops[case.op]
    dims = {d: data.draw(st.integers(*r), label=d) for d, r in case.dims.items()}
    info = infer(op, module)
    extents = {i: int(evaluate_dim(e, dims)) for i, e in info.ranges.items()}
    schedule = data.draw(schedules(case, op.name, extents, list(extents)))
    threads = data.draw(st.integers(1, 3), label="threads")
    note(print_item(schedule))
    lowered = lower(op, module, dims, machine, threads=threads, schedule=schedule)
    rng = np.random.default_rng(0)
    inputs: dict[str, np.ndarray] = {}
    for o in op.params:
        shape = operand_shape(o, dims)
        high = min(dims.get("V", 7), 7)
        drawn = rng.standard_normal(shape).astype(np.float32) if o.dtype.is_float else rng.integers(0, high, shape)
        inputs[o.name] = drawn.astype(np.float64) if o.dtype.is_float else drawn
    outputs = {o.name: operand_shape(o, dims) for o in op.outputs}
    return Drawn(lowered, threads, dims, inputs, evaluate(op, module, inputs, dims), outputs)


ANY_SCHEDULE = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.op)
@settings(ANY_SCHEDULE, max_examples=15)
@given(data=st.data())
def test_any_legal_schedule_gives_the_oracles_result(case: Case, data: st.DataObject) -> None:
    """In float64 by the tile IR interpreter: only the order of sums may differ."""
    drawn = draw(case, data, MACHINE)
    arrays = {k: np.array(v) for k, v in drawn.inputs.items()}
    arrays |= {name: np.full(shape, np.nan) for name, shape in drawn.outputs.items()}
    arrays |= {w.name: np.full(w.shape, np.nan) for w in drawn.lowered.workspaces}
    for kernel in drawn.lowered.kernels:
        Interpreter(kernel, arrays, drawn.threads).run()
    for name, reference in drawn.expected.items():
        np.testing.assert_allclose(arrays[name], reference, rtol=1e-9, atol=1e-9, err_msg=name)


def compiled_matches_oracle(case: Case, data: st.DataObject) -> None:
    machine = detect()
    drawn = draw(case, data, machine)
    executor = CpuExecutor(single_op_step(drawn.lowered, drawn.dims), machine, drawn.threads)
    try:
        for name in executor.step.slots:
            array = executor.array(name)
            array[...] = drawn.inputs.get(name, np.nan)
        executor.run("run")
        for name, reference in drawn.expected.items():
            size = max(1.0, float(np.max(np.abs(reference), initial=0.0)))
            np.testing.assert_allclose(executor.array(name), reference, rtol=2e-5, atol=2e-5 * size, err_msg=name)
    finally:
        executor.close()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.op)
@settings(ANY_SCHEDULE, max_examples=4)
@given(data=st.data())
def test_compiled_code_of_any_schedule_gives_the_oracles_result(case: Case, data: st.DataObject) -> None:
    """As machine code on a team of threads, in float32."""
    compiled_matches_oracle(case, data)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.op)
@examples(60, 3, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_compiled_code_of_many_schedules(case: Case, data: st.DataObject) -> None:
    compiled_matches_oracle(case, data)
