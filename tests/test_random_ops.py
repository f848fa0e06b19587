"""Law: of any op and its derived backward, any legal schedule and the default ones keep the oracle's result.

Ops and schedules are random (`reference/random_ops.py`). Results are those of the tile IR interpreter in float64, where
nothing but the order of sums may differ; of some ops those of machine code and of the virtual GPU, too.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from tcomp.autotune import virtual_run
from tcomp.dsl.ast import Module, Op, Reduction
from tcomp.dsl.check import infer
from tcomp.dsl.dims import evaluate_dim, operand_shape
from tcomp.dsl.errors import TcError
from tcomp.dsl.format import print_op
from tcomp.dsl.load import load_text
from tcomp.grad import backward_of
from tcomp.machine.cpu import detect
from tcomp.machine.gpu import H100
from tcomp.model.single import single_op_step
from tcomp.oracle import evaluate
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.vgpu import Options
from tcomp.schedule.lower import LoweredOp, lower
from tests.reference.random_ops import FUNCTIONS, RandomOp, random_schedule
from tests.tcomp.tile_interpreter import Interpreter

Arrays = dict[str, np.ndarray]
SCHEDULES = 6
FEW = [2, 5, 8, 11]
MANY = pytest.mark.slow


class Case:
    """The op of a seed, or its derived backward, with sizes, inputs and the oracle's results."""

    def __init__(self, seed: int, backward: bool) -> None:
        self.random = random.Random(seed * 2 + backward)
        forward = RandomOp(seed).text
        module = load_text(forward)
        op: Op | None = module.ops["f"]
        self.dims = {n: self.random.choice([1, 2, 3, 4, 5, 7, 8, 13, 17]) for n in "IJK"}
        self.dims["H"] = self.random.randint(1, self.dims["I"])
        assert op is not None
        inputs = self.drawn(op, {}, seed)
        results = evaluate(op, module, inputs, self.dims)
        if backward:
            op = backward_of("f", module)
            assert op is not None
            inputs = self.drawn(op, {**inputs, **results}, seed)
            results = evaluate(op, module, inputs, self.dims)
        self.text = (forward if backward else FUNCTIONS) + "\n" + print_op(op) + "\n\n"
        self.op, self.inputs, self.results = op, inputs, results
        self.extents = {i: int(evaluate_dim(e, self.dims)) for i, e in infer(op, module).ranges.items()}
        sums = [eq.value.indices for eq in op.equations if isinstance(eq.value, Reduction)]
        self.parallel = self.extents.keys() - {i for indices in sums for i in indices}

    def drawn(self, op: Op, given: Arrays, seed: int) -> Arrays:
        rng = np.random.default_rng(seed)
        below = {"ids": self.dims["J"], "jds": self.dims["I"], "n": self.dims["J"]}
        found: Arrays = {}
        for p in op.params:
            shape = operand_shape(p, self.dims)
            real = rng.uniform(-1, 1, shape).astype(np.float32)
            found[p.name] = given.get(p.name, rng.integers(0, below[p.name], shape) if p.name in below else real)
        return found

    def scheduled(self, gpu: bool, threads: int) -> LoweredOp | None:
        """By a random schedule; None for an illegal one. For narrow results CPUs sum in private tiles, as GPUs do."""
        text = self.text
        if self.random.random() < 0.4:
            head, arrow, results = text.rpartition("->")
            results, colon, body = results.partition(":\n")
            text = head + arrow + results.replace(": f32[", ": bf16[") + colon + body
        text += random_schedule(self.random, self.op.name, self.extents, set(self.parallel), gpu)
        module = load_text(text)
        try:
            return lower(module.ops[self.op.name], module, self.dims, H100 if gpu else detect(), threads=threads)
        except TcError:
            return None

    def holds(self, results: Arrays, tolerance: float) -> None:
        for name, wanted in self.results.items():
            size = max(1.0, float(np.abs(wanted).max(initial=0.0)))
            np.testing.assert_allclose(results[name], wanted, rtol=0, atol=tolerance * size, err_msg=name)

    def interpreted(self, lowered: LoweredOp, threads: int) -> Arrays:
        arrays = {n: np.array(a, np.float64 if a.dtype.kind == "f" else a.dtype) for n, a in self.inputs.items()}
        arrays |= {o.name: np.full(operand_shape(o, self.dims), np.nan) for o in self.op.outputs}
        arrays |= {w.name: np.full(w.shape, np.nan) for w in lowered.workspaces}
        with np.errstate(all="ignore"):
            for kernel in lowered.kernels:
                Interpreter(kernel, arrays, threads).run()
        return arrays


def case(seed: int, backward: bool) -> Case:
    """Skips what the language refuses, and results that float64 hardly tells apart."""
    try:
        found = Case(seed, backward)
    except TcError as e:
        pytest.skip(str(e))
    if not all(np.isfinite(v).all() and np.abs(v).max(initial=0) < 1e5 for v in found.results.values()):
        pytest.skip("infinite")
    return found


def keeps_its_meaning(seed: int, backward: bool) -> None:
    c = case(seed, backward)
    for _ in range(SCHEDULES):
        gpu, threads = c.random.random() < 0.5, c.random.randint(1, 3)
        lowered = c.scheduled(gpu, 1 if gpu else threads)
        if lowered is not None:
            c.holds(c.interpreted(lowered, 1 if gpu else threads), 1e-7)


def default_module(c: Case) -> tuple[Module, Op]:
    module = load_text(c.text)
    return module, module.ops[c.op.name]


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("seed", range(12))
def test_any_schedule_of_any_op(seed: int, backward: bool) -> None:
    keeps_its_meaning(seed, backward)


@pytest.mark.slow
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("seed", range(100, 145))
def test_any_schedule_of_many_ops(seed: int, backward: bool) -> None:
    keeps_its_meaning(seed, backward)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("seed", [pytest.param(s, marks=[] if s in FEW else MANY) for s in range(40)])
def test_machine_code_of_the_default_schedule(seed: int, backward: bool) -> None:
    c = case(seed, backward)
    module, op = default_module(c)
    machine, threads = detect(), c.random.randint(1, 3)
    executor = CpuExecutor(
        single_op_step(lower(op, module, c.dims, machine, threads=threads), c.dims), machine, threads
    )
    try:
        for name in executor.step.slots:
            executor.array(name)[...] = c.inputs.get(name, np.nan if name in c.results else 0)
        executor.run("run")
        c.holds({n: np.array(executor.array(n)) for n in c.results}, 1e-4)
    finally:
        executor.close()


@pytest.mark.slow
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("seed", range(20))
def test_the_default_schedule_on_the_virtual_gpu(seed: int, backward: bool) -> None:
    c = case(seed, backward)
    module, op = default_module(c)
    c.holds(virtual_run.execute(op, lower(op, module, c.dims, H100), c.inputs, H100, Options()), 1e-4)
