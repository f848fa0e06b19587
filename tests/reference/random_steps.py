"""Whole steps of random models: what is asked for, what the float64 oracle says of it, and what must hold of any step.

The reference evaluates the model's graph node by node (`tests/tcomp/graph_interpreter.py`), its ops apart. How far
results may be from it follows from the same evaluation with noise of the size of roundings on all that nodes read and
give.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcomp.dsl.ast import DType, Module
from tcomp.dsl.load import load_text
from tcomp.errors import UserError
from tcomp.machine.cpu import CpuMachine, detect
from tcomp.machine.gpu import GpuMachine
from tcomp.model.build import build_step
from tcomp.model.graph import Graph, Node, Tensor
from tcomp.model.programs import Programs, build_programs
from tcomp.model.report import TEMPORARY
from tcomp.model.request import StepRequest
from tcomp.model.step import Step
from tcomp.model.unroll import build_graph
from tcomp.numeric import round_to
from tcomp.oracle import evaluate
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.executor import Executor
from tcomp.runtime.initialise import initialise
from tcomp.runtime.values import stored, values
from tests.reference.random_models import RandomModel
from tests.tcomp.graph_interpreter import Memory

Array = NDArray[Any]
Arrays = dict[str, Array]
NOISE = {DType.F32: 2.0**-22, DType.BF16: 2.0**-8}
FIRST = "micro_first"


@dataclass(frozen=True)
class Request:
    """How a model is built and run."""

    precision: str = "f32"
    threads: int = 1
    accumulation: int = 1
    budget: float = 1.0
    """the share of what its activations take that there is memory for"""
    cheap: bool = False
    level: str | None = None


class Case:
    """The model of a seed and a request."""

    def __init__(self, seed: int, **fixed: Any) -> None:
        self.seed, self.model = seed, RandomModel(seed)
        r = random.Random(seed + 1_000_000)
        asked = Request(
            r.choice(self.model.precisions), r.choice([1, 2, 2, 3, 5]), r.choice([1, 1, 1, 2, 3]),
            r.choice([1.0, 1.0, 0.6, 0.3]), r.random() < 0.3, r.choice([None, None, "avx512", "avx2"]),
        )  # fmt: skip
        self.request = replace(asked, **fixed)
        self.module: Module = load_text(self.model.text, "model.tc")
        self.batches = [self.batch(np.random.default_rng([seed, i])) for i in range(3 * self.request.accumulation)]

    @property
    def machine(self) -> CpuMachine:
        return detect(self.request.level)

    def build(self, gpu: GpuMachine | None = None) -> Step:
        """The step for the request's CPU, or for a GPU."""
        q = self.request
        request = StepRequest(
            "m", "c", self.model.sizes, precision=q.precision, accumulation=q.accumulation,
            recompute="cheap" if q.cheap else "never",
        )  # fmt: skip
        machine, threads = (self.machine, q.threads) if gpu is None else (gpu, 1)
        step = build_step(self.module, request, machine, threads)
        if q.budget >= 1.0:
            return step
        # In less memory, where that can be met.
        kept = sum(s.bytes for s in step.slots.values() if s.kind not in TEMPORARY)
        whole = step.memory_bytes(threads)
        limit = int(whole - max(0, step.arena_bytes - kept) * (1 - self.request.budget))
        try:
            tight = replace(request, memory_limit=limit, recompute="to fit")
            return build_step(self.module, tight, machine, threads)
        except UserError:
            return step

    def batch(self, rng: np.random.Generator) -> Arrays:
        m, found = self.model, {}
        rows = m.sizes["B"] * m.sizes["T"]
        for name, declared in m.inputs.items():
            shape = (m.sizes["B"], m.sizes["T"]) if declared.startswith("i32[B, T]") else (rows,)
            shape = (3 * rows,) if declared.startswith("i32[3") else shape
            if declared.startswith("i32"):
                below = rows if "below B * T" in declared else m.dims["V"]
                found[name] = rng.integers(0, below, shape).astype(np.int32)
            elif name == "mask":
                found[name] = (rng.random(shape) < 0.7).astype(np.float32)
            else:
                found[name] = rng.standard_normal(shape).astype(np.float32)
        return found

    # ------------------------------------------------------------------------------------------ the reference

    def graph(self) -> Graph:
        return build_graph(self.module, "m", "c", self.model.sizes, None, self.request.precision)

    def programs(self) -> Programs:
        return build_programs(self.graph(), self.module, True, self.request.accumulation, apart=True)


class Reference:
    """The graph's values in float64 from what an executor has at the beginning of a step."""

    def __init__(self, case: Case, programs: Programs, noise: int = 0) -> None:
        self.case, self.programs = case, programs
        self.noise = np.random.default_rng(noise) if noise else None

    def gradients(self, kept: Arrays, batches: list[Arrays]) -> tuple[list[float], Arrays]:
        """Losses of the micro-batches, and gradients (news of states, too) after them."""
        p = self.programs
        memory = Memory()
        own = (*(q.tensor for q in p.graph.parameters), *p.graph.states)
        for t in own:
            memory.write(t.whole(), kept[t.name].astype(np.float64))
        for t, value in p.graph.scalars.items():
            memory.write(t.whole(), np.array(value))
        memory.write(p.seed.whole(), np.array(1.0 / self.case.request.accumulation))
        for g in (*p.gradients.values(), *p.news.values()):
            memory.write(g.whole(), np.zeros(g.shape))  # of a parameter that nobody reads
        losses = []
        for i, batch in enumerate(batches):
            for name, t in p.graph.inputs.items():
                memory.write(t.whole(), batch[name].astype(np.float64 if t.dtype.is_float else np.int64))
            self.run(p.forward_next if i else p.forward, memory)
            assert p.graph.loss is not None
            losses.append(float(memory.read(p.graph.loss).reshape(())))
            self.run(p.backward_next if i else p.backward, memory)
        return losses, {t.name: memory.read(t.whole()) for t in (*p.gradients.values(), *p.news.values())}

    def run(self, nodes: tuple[Node, ...], memory: Memory) -> None:
        for node in nodes:
            inputs = {
                p.name: self.noisy(memory.read(v := node.operands[p.name]).copy(), v.tensor) for p in node.op.params
            }
            results = evaluate(node.op, self.case.module, inputs, node.dims)
            for o in node.op.operands:
                if o.inout or o in node.op.outputs:
                    v = node.operands[o.name]
                    memory.write(v, self.noisy(results[o.name], v.tensor))

    def noisy(self, value: Array, t: Tensor) -> Array:
        if self.noise is None or t.dtype not in NOISE or t.kind == "scalar":
            return value
        return np.asarray(value * (1 + NOISE[t.dtype] * self.noise.uniform(-1, 1, value.shape)))


def spread(case: Case, programs: Programs, kept: Arrays, batches: list[Arrays]) -> tuple[tuple[float, Arrays], Arrays]:
    """Loss and gradients of the oracle, and how far each may be off (L2)."""
    losses, clean = Reference(case, programs).gradients(kept, batches)
    allowed = {n: np.array(1e-6 * np.linalg.norm(g)) for n, g in clean.items()}
    allowed["loss"] = np.array(1e-6 * abs(losses[-1]))
    for number in (1, 2):
        others, noisy = Reference(case, programs, number).gradients(kept, batches)
        noisy["loss"] = np.array(others[-1])
        for n, g in noisy.items():
            off = 8 * np.linalg.norm(g - clean.get(n, losses[-1]))
            allowed[n] = np.maximum(
                allowed[n], off if np.isfinite(off) else np.inf
            )  # noise too near an edge says nothing
    return (losses[-1], clean), allowed


def kept_of(executor: Executor) -> Arrays:
    """All that outlives a step, as numbers."""
    kinds = ("parameter", "master", "state")
    slots = executor.step.slots
    return {n: np.array(values(executor.read(n), s.dtype)) for n, s in slots.items() if s.kind in kinds}


def give(executor: Executor, batch: Arrays) -> None:
    with executor.batch() as inputs:
        for name, array in inputs.items():
            array[...] = batch[name]


def started(case: Case, executor: Executor) -> None:
    """Parameters with values other than those of their beginning, states of the model too."""
    initialise(executor, case.seed, 1)
    step = executor.step
    rng = np.random.default_rng([case.seed, 99])
    for q in step.parameters:
        if q.kind == "ones":
            value = 1 + 0.3 * rng.standard_normal(step.slots[q.slot].shape)
            executor.write(q.slot, stored(value, step.slots[q.slot].dtype))
            if q.master:
                executor.write(q.master, value.astype(np.float32))
    for name in step.states:
        executor.write(name, rng.random(step.slots[name].shape).astype(np.float32))


def micros(case: Case) -> list[str]:
    """The programs of a step's micro-batches."""
    return [FIRST, *["micro_next"] * (case.request.accumulation - 1)]


def run_step(case: Case, executor: CpuExecutor, number: int, whole: bool) -> None:
    """One step, by programs one after the other or (`whole`) as one that overlaps with the next."""
    executor.write("step", number)
    programs = micros(case)
    for i, program in enumerate(programs):
        give(executor, case.batches[number * len(programs) + i])
        if whole and i == len(programs) - 1:
            executor.run_step(program)
            executor._ready().spread = executor.threads > 1  # as if there were a core for each
        else:
            executor.run(program)
    if not whole:
        executor.run("update")


def trained(case: Case, step: Step, objects: Path, whole: bool, steps: int = 3) -> Arrays:
    """Losses, and all that outlives some steps. Gradients that launches write begin as what is no number."""
    executor = CpuExecutor(step, case.machine, case.request.threads, objects)
    try:
        started(case, executor)
        for g in (g for g in step.gradients if g.first > 0):
            at = (g.offset - step.slots[g.name].offset) // g.dtype.bytes
            executor.array(g.name).reshape(-1)[at : at + math.prod(g.shape)] = np.nan
        losses = {}
        for number in range(steps):
            run_step(case, executor, number, whole)
            losses[f"loss {number}"] = np.array(executor.read("loss"))
        gradients = {n: np.array(executor.read(n)) for n, s in step.slots.items() if s.kind == "gradient"}
        return losses | kept_of(executor) | gradients
    finally:
        executor.close()


def resumed(case: Case, step: Step, objects: Path) -> Arrays:
    """What outlives three steps, the last of which is another executor's, in memory that is not zero."""
    first, second = (CpuExecutor(step, case.machine, case.request.threads, objects) for _ in range(2))
    try:
        started(case, first)
        for number in range(2):
            run_step(case, first, number, whole=True)
        second._ready()
        arena = np.frombuffer(second._arena.buffer, np.uint8)
        arena[...] = 0xFF
        for at, size in step.zeros():
            arena[at : at + size] = 0
        for name, value in step.scalars.items():
            second.write(name, value)
        for name, slot in step.slots.items():
            if slot.kind in ("parameter", "master", "state"):
                second.write(name, first.read(name))
        run_step(case, second, 2, whole=False)
        return {"loss 2": np.array(second.read("loss"))} | kept_of(second)
    finally:
        first.close()
        second.close()


def faults_of_step(case: Case, executor: Executor, number: int) -> Iterator[str]:
    """One step, held against the oracle: what differs by more than roundings can."""
    q, programs = case.request, case.programs()
    batches = case.batches[number * q.accumulation : (number + 1) * q.accumulation]
    before = kept_of(executor)
    executor.write("step", number)
    for batch, program in zip(batches, micros(case), strict=True):
        give(executor, batch)
        executor.run(program)
    (loss, wanted), allowed = spread(case, programs, before, batches)
    got = float(executor.read("loss"))
    if not abs(got - loss) <= allowed["loss"]:
        yield f"loss is {got}, not {loss} ({allowed['loss']})"
    gradients = {n: executor.read(n).astype(np.float64) for n in wanted}
    for name, g in wanted.items():
        gap = np.linalg.norm(gradients[name] - g)
        if not gap <= allowed[name]:
            yield f"{name} is off by {gap} of {np.linalg.norm(g)}, allowed {allowed[name]}"
    executor.run("update")
    yield from faults_of_update(case, executor, number, before, gradients)


def faults_of_update(case: Case, executor: Executor, number: int, before: Arrays, gradients: Arrays) -> Iterator[str]:
    """The update from the executor's own gradients, in formulas of its own."""
    step, after = executor.step, kept_of(executor)
    hyper = {n.removeprefix("hyper."): float(v) for n, v in step.hyper.items()}
    trained = [q for q in step.parameters if not q.frozen]
    own = {q.slot: gradients[f"grad.{q.slot}"] for q in trained}
    for q in step.parameters:
        if q.frozen and not np.array_equal(after[q.slot], before[q.slot]):
            yield f"{q.slot} is frozen, and changes"
    for name in step.states:
        if not np.array_equal(after[name], gradients.get(f"news.{name}", before[name])):
            yield f"state {name} is not its news"
    scale, lr = 1.0, hyper["peak_lr"]
    if case.model.adamw:
        norm = np.sqrt(sum((g * g).sum() for g in own.values()))
        scale = min(1.0, hyper["clip"] / (norm + 1e-6)) if hyper["clip"] > 0 else 1.0
        ramp = lr * (number + 1) / max(hyper["warmup"], 1)
        turn = min(1.0, max(0.0, (number - hyper["warmup"]) / max(hyper["total"] - hyper["warmup"], 1)))
        low = lr * hyper["final_lr"]
        lr = ramp if number < hyper["warmup"] else low + 0.5 * (1 + np.cos(np.pi * turn)) * (lr - low)
        for name, value in (("norm", norm), ("lr", lr), ("scale", scale)):
            if not np.isclose(float(executor.read(name)), value, rtol=1e-5, atol=1e-9):
                yield f"{name} is {float(executor.read(name))}, not {value}"
    for q in trained:
        place, g = q.master or q.slot, own[q.slot]
        p = before[place]
        if case.model.adamw:
            decay = hyper[f"{q.group}.weight_decay"]
            b1, b2 = hyper["beta1"], hyper["beta2"]
            m = b1 * before[f"state.m.{q.slot}"] + (1 - b1) * g * scale
            v = b2 * before[f"state.v.{q.slot}"] + (1 - b2) * (g * scale) ** 2
            new = p - lr * (
                m / (1 - b1 ** (number + 1)) / (np.sqrt(v / (1 - b2 ** (number + 1))) + hyper["eps"]) + decay * p
            )
            states = {f"state.m.{q.slot}": m, f"state.v.{q.slot}": v}
        else:
            m = hyper[f"{q.group}.beta"] * before[f"state.m.{q.slot}"] + g
            states, new = {f"state.m.{q.slot}": m}, p - lr * m
        for name, value in states.items():
            if not np.allclose(after[name], value, rtol=1e-4, atol=1e-6 * np.abs(value).max(initial=1e-20)):
                yield f"{name} is off by {np.abs(after[name] - value).max()} of {np.abs(value).max()}"
        coarse = step.slots[place].dtype is DType.BF16
        if not np.allclose(after[place], new, rtol=2.0**-7 if coarse else 1e-5, atol=3e-5 * lr + 1e-7):
            yield f"{place} is off by {np.abs(after[place] - new).max()} of {np.abs(new).max()}"
        if q.master and not np.array_equal(after[q.slot], round_to(after[place], DType.BF16)):
            yield f"{q.slot} is not its master copy, rounded"


def slope_faults(case: Case) -> Iterator[str]:
    """Gradients of the graph held against differences of its loss, in float64: nothing of the derivatives is used."""
    p = replace_request(case, precision="f32", accumulation=1)
    programs = p.programs()
    rng = np.random.default_rng([case.seed, 5])
    kept = {
        q.tensor.name: rng.standard_normal(q.tensor.shape) * (0.4 if q.decl.init.function != "ones" else 0.2)
        + (q.decl.init.function == "ones")
        for q in programs.graph.parameters
    } | {t.name: rng.random(t.shape) for t in programs.graph.states}
    batch = case.batches[0]
    reference = Reference(p, programs)
    _, gradients = reference.gradients(kept, [batch])
    forward = replace(programs, backward=(), backward_next=())

    along = {q.tensor.name: rng.standard_normal(q.tensor.shape) for q in programs.graph.trained}

    def slopes(names: list[str]) -> tuple[float, float, float]:
        """Along the directions of some parameters: the derived slope, and two by differences."""

        def loss(h: float) -> float:
            return Reference(p, forward).gradients(kept | {n: kept[n] + h * along[n] for n in names}, [batch])[0][0]

        derived = float(sum((gradients[f"grad.{n}"] * along[n]).sum() for n in names))
        coarse, fine = ((loss(h) - loss(-h)) / (2 * h) for h in (1e-5, 1e-6))
        return derived, coarse, fine

    def differ(derived: float, coarse: float, fine: float) -> bool:
        size = abs(fine) + 1e-2
        return abs(coarse - fine) <= 1e-5 * size and not abs(derived - fine) <= 1e-4 * size

    if differ(*slopes(list(along))):
        for name in along:
            if differ(*(found := slopes([name]))):
                yield f"d loss / d {name} along a direction: derived, by two differences {found}"


def replace_request(case: Case, **changes: Any) -> Case:
    return Case(case.seed, **({f: getattr(case.request, f) for f in Request.__dataclass_fields__} | changes))
