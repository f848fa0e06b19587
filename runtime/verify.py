"""Compiled code against the oracle: single ops at awkward sizes, and a model's whole training step.

The oracle evaluates the equations in float64 with no knowledge of schedules; here the same inputs go through
both, and the distance between the results is measured (relative L2 norm of the difference, per result).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcomp.dsl.ast import DType, Module, Op
from tcomp.dsl.dims import Number, operand_shape
from tcomp.dsl.infer import infer
from tcomp.dsl.storage import bound
from tcomp.grad.early import is_early
from tcomp.model.flat import own_regions
from tcomp.model.graph import Node, Tensor, View
from tcomp.model.programs import Programs, build_programs
from tcomp.model.single import single_op_step
from tcomp.model.step import Step
from tcomp.model.unroll import build_graph
from tcomp.numeric import round_to
from tcomp.oracle import evaluate
from tcomp.runtime.device import Device
from tcomp.runtime.executor import Executor
from tcomp.runtime.scalars import evaluating
from tcomp.runtime.subscript_bounds import subscript_bound
from tcomp.runtime.values import stored, values
from tcomp.schedule.choose import choice_of, storage_of
from tcomp.schedule.family import family_for
from tcomp.schedule.lower import lower
from tcomp.schedule.resolve import casts_in
from tcomp.schedule.rounding import with_casts

Array = NDArray[Any]
_ROUNDING = {DType.BF16: 2.0**-7, DType.F16: 2.0**-9}


@dataclass(frozen=True)
class Comparison:
    """One result beside the oracle's. `error` is |ours - oracle| / |oracle| (L2)."""

    what: str
    dims: Mapping[str, Number]
    error: float


def random_inputs(op: Op, dims: dict[str, int], random: np.random.Generator, positive: bool) -> dict[str, Array]:
    """Inputs of an op: floats around 0 (or in 0.1 .. 1 when `positive`), integers valid as subscripts."""
    inputs: dict[str, Array] = {}
    for p in op.params:
        shape = operand_shape(p, dims)
        if p.dtype is DType.I32:
            inputs[p.name] = random.integers(0, subscript_bound(op, p.name, dims), size=shape).astype(np.int32)
        else:
            values = random.uniform(0.1, 1.0, shape) if positive else random.standard_normal(shape) * 0.5
            inputs[p.name] = held(values, p.dtype)
    return inputs


def held(real: Array, dtype: DType) -> Array:
    """Values as a tensor of that type can hold them, in a NumPy type that has them all."""
    if dtype is DType.F64:
        return np.asarray(real, dtype=np.float64)
    return round_to(real.astype(np.float32), dtype).astype(np.float32)


def rounding(op: Op) -> float:
    """Relative error that storing the op's operands in 16 bits allows: a few roundings of each."""
    return max((_ROUNDING.get(o.dtype, 0.0) for o in op.operands), default=0.0)


def fineness(op: Op) -> float:
    """The share of a tolerance for f32 that an op may take: a millionth where all its real operands are f64."""
    return 1e-6 if all(o.dtype is DType.F64 for o in op.operands if o.dtype.is_float) else 1.0


def narrowest(step: Step) -> float:
    """The same of the 16-bit tensors that a step's kernels write: the model's storage type, or declared so."""
    written = (o.dtype for k in step.kernels.values() for o in k.operands if o.name in k.writes)
    return max((_ROUNDING.get(t, 0.0) for t in written), default=0.0)


def verify_op(
    op: Op, module: Module, dims: dict[str, int], device: Device, seed: int = 0, deterministic: bool = True
) -> Iterator[Comparison]:
    """Run an op at `dims` compiled for the device and through the oracle; one comparison per result. An op that is
    generic over `real` runs at f32. `deterministic` refuses atomic sums.

    Where terms of a sum cancel, what the schedule's `cast` lines round of them may be more than the sum itself: so a
    result counts as near as it is to the equations, or to these with the same values rounded.
    """
    op = bound(op, DType.F32)
    inputs, expected = oracle_case(op, module, dims, seed)
    cast = as_cast(op, module, dims, device)
    rounded = evaluate(cast, module, inputs, dims) if cast != op else expected
    lowered = lower(op, module, dims, device.machine, threads=device.threads, deterministic=deterministic)
    executor = device.open(single_op_step(lowered, dims))
    try:
        slots = executor.step.slots
        for name, value in inputs.items():
            if name in slots:
                executor.write(name, value)
        executor.run("run")
        for name, value in expected.items():
            found = floats(executor, name)
            yield Comparison(f"{op.name} {name}", dims, min(distance(found, value), distance(found, rounded[name])))
    finally:
        executor.close()


def as_cast(op: Op, module: Module, dims: Mapping[str, int], device: Device) -> Op:
    """The op with the roundings in its equations that its schedule for the device names."""
    storage = storage_of(op)
    family = family_for(device.machine, device.threads, storage.bytes, is_early(op))
    schedule = choice_of(op, module, dims, family.targets).schedule
    if schedule is None:
        return op
    directives = [*schedule.shared, *(d for k in schedule.kernels for d in k.directives)]
    return with_casts(op, casts_in(directives, storage), infer(op, module).temporaries.keys())


def floats(executor: Executor, name: str) -> Array:
    """A slot's values, those of narrow types as floats."""
    return values(executor.read(name), executor.step.slots[name].dtype)


def oracle_case(op: Op, module: Module, dims: dict[str, int], seed: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs and what the oracle makes of them. Positive ones where others give a result that f32 does not hold."""
    doubles = any(o.dtype is DType.F64 for o in op.operands)
    for positive in (False, True):
        inputs = random_inputs(op, dims, np.random.default_rng(seed), positive)
        with np.errstate(all="ignore"):
            expected = evaluate(op, module, inputs, dims)
            within = (v if v.dtype.kind != "f" or doubles else v.astype(np.float32) for v in expected.values())
            if all(np.isfinite(v).all() for v in within):
                break
    return inputs, expected


def verify_step(
    executor: Executor, module: Module, overrides: Mapping[str, Number], seed: int = 0
) -> Iterator[Comparison]:
    """One whole step (forward, backward, update) of `executor` against the oracle, from its present state, on normal
    numbers and words drawn evenly. `overrides` are the configuration's values that were given otherwise.

    The graph's nodes are evaluated one by one in float64 on copies of the executor's arrays; those that the executor
    computes at once with their backward, as the calls that the text has, and each equation where its op has it.
    """
    step = executor.step
    sizes = {name: int(step.dims[name]) for name in module.models[step.model].dims}
    graph = build_graph(module, step.model, step.config, sizes, overrides, step.precision)
    programs = build_programs(graph, module, apart=True)
    random = np.random.default_rng(seed)
    drawn: dict[str, Array] = {}
    with executor.batch() as inputs:
        for name, below in step.inputs.items():
            slot = step.slots[name]
            if slot.dtype.is_float:
                inputs[name][...] = stored(random.standard_normal(slot.shape).astype(np.float32), slot.dtype)
            else:
                inputs[name][...] = random.integers(0, below or 2, size=slot.shape)
            drawn[name] = np.array(values(inputs[name], slot.dtype))
    if "step" in step.slots:  # (nothing counts the steps of a model that trains nothing)
        executor.write("step", 0)
    assert graph.loss is not None
    if step.evaluation:
        with evaluating(executor):
            memory = _Memory(executor, drawn)
            executor.run("forward")
            memory.run(programs.forward, module)
            found = distance(floats(executor, "loss"), memory.read(graph.loss))
        yield Comparison("loss in evaluation", step.dims, found)
    memory = _Memory(executor, drawn)
    executor.run("micro_first")
    memory.run(programs.forward, module)
    memory.run(programs.backward, module)
    yield Comparison("loss", step.dims, distance(floats(executor, "loss"), memory.read(graph.loss)))
    backward = (*programs.gradients.values(), *programs.news.values())
    gradients = {t.name: memory.read(t.whole()) for t in backward}
    for name, expected in gradients.items():
        yield Comparison(name, step.dims, distance(floats(executor, name), expected))
    if gradients and not any(g.any() for g in gradients.values()):
        yield Comparison("every gradient is zero", step.dims, math.inf)
    if programs.update is None:
        return
    for gradient, extents in _matrices(programs):
        even = _even(floats(executor, gradient.name).reshape(-1, *extents))
        executor.write(gradient.name, even.reshape(gradient.shape))
        memory.values[gradient] = floats(executor, gradient.name).astype(np.float64).reshape(-1)
    flats = programs.update.flats
    for name, r in programs.regions.items():
        memory.join(flats[name], {t: r.offsets[q.name] for q, t in r.parts.items()})
    executor.run("update")
    memory.run(programs.update.nodes, module)
    own = [n for n in own_regions(graph, programs.masters) if n != "w" and n in programs.regions]
    owned = ((flats[n], programs.regions[n]) for n in own)
    for flat, t, at in ((flat, t, r.offsets[q.name]) for flat, r in owned for q, t in r.parts.items()):
        before = memory.start[t.name].astype(np.float64)
        after = memory.read(View(flat, at, t.shape))
        yield Comparison(f"{t.name}'s change", step.dims, distance(floats(executor, t.name) - before, after - before))
    for t in graph.states:
        what = f"the next {t.name}"
        yield Comparison(what, step.dims, distance(floats(executor, t.name), memory.read(t.whole())))
    kept = ((flats[n], t, r.offsets[q.name]) for n, r in programs.regions.items() for q, t in r.parts.items())
    for flat, t, at in (x for x in kept if x[1].kind == "state"):
        yield Comparison(t.name, step.dims, distance(floats(executor, t.name), memory.read(View(flat, at, t.shape))))
    for parameter, t in programs.masters.items():
        rounded = held(floats(executor, t.name), parameter.dtype)
        what = f"{parameter.name}, rounded from its master copy"
        yield Comparison(what, step.dims, distance(floats(executor, parameter.name), rounded))


def _matrices(programs: Programs) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """The gradients that the update reads matrix by matrix, with the matrices' shapes."""
    assert programs.update is not None
    gradients, flat = programs.regions["g"], programs.update.flats["g"]
    read = [v for n in programs.update.nodes for v in n.operands.values() if v.tensor is flat]
    shapes = {v.offset: v.shape for v in read if len(v.shape) > 1}
    for parameter, t in gradients.parts.items():
        if gradients.offsets[parameter.name] in shapes:
            yield t, shapes[gradients.offsets[parameter.name]]


def _even(gradients: Array) -> Array:
    """Matrices [n, R, ...] with the directions of these, and singular values between 1/2 and 1: iterations such as
    Muon's make of a small one's rounding to 16 bits hundreds of times as much."""
    u, s, v = np.linalg.svd(gradients.reshape(*gradients.shape[:2], -1).astype(np.float64), full_matrices=False)
    return np.asarray(((u * np.linspace(1.0, 0.5, s.shape[-1])) @ v).reshape(gradients.shape).astype(np.float32))


class _Memory:
    """float64 copies of tensors, filled from the executor's arrays when first read."""

    def __init__(self, executor: Executor, inputs: dict[str, Array]) -> None:
        self.values: dict[Tensor, Array] = {}
        slots = executor.step.slots
        kept = [n for n, s in slots.items() if s.kind not in ("activation", "workspace", "input", "output", "gradient")]
        self.start = {n: floats(executor, n).copy() for n in kept} | inputs

    def flat(self, tensor: Tensor) -> Array:
        if tensor not in self.values:
            begin = self.start.get(tensor.name)
            kind = np.int64 if tensor.dtype is DType.I32 else np.float64
            self.values[tensor] = np.zeros(tensor.elements, kind) if begin is None else begin.reshape(-1).astype(kind)
        return self.values[tensor]

    def read(self, view: View) -> Array:
        return self.flat(view.tensor)[view.offset : view.offset + view.elements].reshape(view.shape)

    def join(self, flat: Tensor, parts: dict[Tensor, int]) -> None:
        """Lay the parts out in one flat vector at these elements, as the arena does."""
        whole = np.zeros(flat.elements)
        for tensor, offset in parts.items():
            whole[offset : offset + tensor.elements] = self.flat(tensor)
        self.values[flat] = whole

    def run(self, nodes: tuple[Node, ...], module: Module) -> None:
        for node in nodes:
            inputs = {p.name: self.read(node.operands[p.name]) for p in node.op.params}
            results = evaluate(node.op, module, inputs, node.dims)
            for name, value in results.items():
                if name in node.operands:
                    self.read(node.operands[name])[...] = value


def distance(ours: Array, oracle: Array) -> float:
    """Relative L2 distance; infinite where only one of the two is finite."""
    a, b = np.asarray(ours, dtype=np.float64).reshape(-1), np.asarray(oracle, dtype=np.float64).reshape(-1)
    finite = np.isfinite(b)
    if not (np.isfinite(a) == finite).all():
        return math.inf
    scale = float(np.linalg.norm(b[finite]))
    gap = float(np.linalg.norm(a[finite] - b[finite]))
    return gap / scale if scale > 1e-12 else gap
