"""What there is to tune in a model: each distinct op with each set of dimensions that its step runs.

Two op calls are one instance when text and dimensions are equal. An instance is known by its key, which people read
(`linear Y: K=768 M=256 N=2304`), and is told from a changed one by two hashes: of the op's text, and of its schedule
without what is tuned (the defaults and choices of `tune` lines), so that adding a choice invalidates nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tcomp.dsl.ast import Call, Equation, Expr, KernelSchedule, Module, Op, Reduction, Schedule, Tune, walk
from tcomp.dsl.check import infer
from tcomp.dsl.dims import Number, evaluate_dim
from tcomp.dsl.printer import print_directive, print_function, print_monoid, print_op
from tcomp.dsl.schedule_blocks import own_lines
from tcomp.grad.early import is_early
from tcomp.machine.gpu import GpuMachine
from tcomp.model.chunks import in_chunks
from tcomp.model.graph import Node
from tcomp.model.parts import with_parts
from tcomp.model.programs import build_programs
from tcomp.model.request import LARGEST_DIM, LARGEST_SIZE, StepRequest
from tcomp.model.unroll import graph_of
from tcomp.schedule.choose import choice_of, storage_of
from tcomp.schedule.family import Machine, family_for
from tcomp.schedule.normal import normalise

HASH = 12
"""Hexadecimal digits kept of a hash."""


@dataclass(frozen=True)
class Instance:
    """One op at one set of dimensions. `count` is how often a step runs it, `labels` where (a few)."""

    op: Op
    dims: Mapping[str, int]
    count: int = 1
    labels: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        dims = " ".join(f"{k}={v}" for k, v in sorted(self.dims.items()))
        types = ",".join(sorted({o.dtype.value for o in self.op.operands if o.shape and o.dtype.is_float} - {"f32"}))
        return f"{self.op.name} {' '.join(results(self.op))}: {dims} {types}".rstrip(": ")


def step_text(request: StepRequest) -> str:
    """`124M B=4 T=64` or `124M/bf16 B=4 T=64`: how people and lockfiles name the step whose instances are tuned."""
    config = f"{request.config}/{request.precision}" if request.precision else request.config
    parts = [config, *(f"{k}={request.sizes[k]}" for k in ("B", "T") if k in request.sizes)]
    if request.accumulation > 1:
        parts.append(f"accumulation={request.accumulation}")
    others = {k: v for k, v in request.sizes.items() if k not in ("B", "T")} | {**request.dims}
    return " ".join(parts + [f"{k}={v}" for k, v in sorted(others.items())])


def parse_step(text: str, model: str) -> StepRequest:
    """The step of a model that `text` names, sizes of the model's own among its `dims`. ValueError for what names none,
    also by sizes that no step has."""
    first, *rest = text.split()
    config, _, precision = first.partition("/")
    numbers = {k: _number(v) for k, _, v in (r.partition("=") for r in rest)}
    sizes: dict[str, int] = {k: int(numbers.pop(k)) for k in ("B", "T") if k in numbers}
    accumulation = int(numbers.pop("accumulation", 1))
    if not all(1 <= n <= LARGEST_SIZE for n in (accumulation, *sizes.values())):
        raise ValueError(f"sizes are from 1 to {LARGEST_SIZE}")
    if not all(0 <= n <= LARGEST_DIM for n in numbers.values()):
        raise ValueError(f"configuration values are from 0 to {LARGEST_DIM}")
    return StepRequest(model, config, sizes, numbers, precision, accumulation)


def instances_of(module: Module, request: StepRequest, machine: Machine) -> tuple[Instance, ...]:
    """The distinct op instances of a whole training step on a machine, in order of first use. UserError or TcError as
    `build_graph`."""
    whole = graph_of(module, request)
    graph = in_chunks(with_parts(whole, module, machine), module)
    times, again = request.accumulation, request.accumulation - 1
    programs = build_programs(graph, module, True, times, targets=machine.targets)
    nodes: list[tuple[Node, int]] = [(n, 1 if n in programs.ahead else times) for n in programs.forward]
    nodes += [(n, 1) for n in programs.backward]
    if again:
        nodes += [(n, again) for n in programs.forward_next if n in programs.ahead]
        nodes += [(n, again) for n in programs.backward_next]
    if programs.update is not None:
        nodes += [(n, 1) for n in programs.update.nodes]
    found: dict[tuple[Op, tuple[tuple[str, int], ...]], Instance] = {}
    for node, count in nodes:
        at = node.op, tuple(sorted(node.dims.items()))
        old = found.get(at)
        if old is None:
            found[at] = Instance(node.op, dict(node.dims), count, (node.label,))
        else:
            found[at] = replace(old, count=old.count + count, labels=(*old.labels, node.label)[:4])
    return tuple(found.values())


def results(op: Op) -> list[str]:
    """The operands an op writes, `+dW` where it adds to what is there."""
    known = {o.name: o.inout for o in op.operands}
    names: dict[str, bool] = {}
    for eq in op.equations:
        for t in eq.targets:
            if t.name in known:
                names[t.name] = names.get(t.name, False) or (eq.accumulate and known[t.name])
    return [f"+{n}" if adds else n for n, adds in names.items()]


def op_hash(op: Op, module: Module) -> str:
    """Of all that says what the op computes: its text, and the functions and monoids it uses. Comments do not count."""
    texts = [print_op(replace(op, doc=""))]
    waiting, seen = list(op.equations), set()
    expressions = [e for eq in waiting for e in _expressions(eq)]
    while expressions:
        e = expressions.pop()
        for n in walk(e):
            if isinstance(n, Call) and n.function in module.functions and n.function not in seen:
                seen.add(n.function)
                function = module.functions[n.function]
                texts.append(print_function(function))
                expressions.append(function.body)
    monoids = {eq.value.reducer for eq in op.equations if isinstance(eq.value, Reduction)} & set(module.monoids)
    texts += [print_monoid(module.monoids[m]) for m in sorted(monoids)]
    return _digest(texts)


def _expressions(eq: Equation) -> list[Expr]:
    v = eq.value
    return [*v.values, *([v.key] if v.key is not None else [])] if isinstance(v, Reduction) else [v]


def schedule_hash(schedule: Schedule) -> str:
    """Of what the schedule says of each kernel, wherever it says it, without its parameters' defaults and choices: a
    text that is only written otherwise keeps its hash."""
    texts = [f"{schedule.op} on {schedule.target}"]
    for k in schedule.kernels or (KernelSchedule((), ()),):
        lines = own_lines(schedule.shared, k.directives)
        texts.append(f"kernel {', '.join(k.outputs)}")
        texts += sorted(print_directive(d) for d in lines if not isinstance(d, Tune))
    return _digest(texts)


def schedule_of(op: Op, module: Module, dims: Mapping[str, int], machine: Machine, threads: int) -> Schedule:
    """The schedule that lowering takes for the instance: the written one, else the machine's default."""
    family = family_for(machine, threads, storage_of(op).bytes, is_early(op))
    found = choice_of(op, module, dims, family.targets).schedule
    if found is not None:
        return found
    extents = {i: int(evaluate_dim(e, dims)) for i, e in infer(op, module).ranges.items()}
    return family.default(op, normalise(op, module, dict(dims)), extents)


def facts_of(instance: Instance, machine: Machine, threads: int) -> dict[str, int | float]:
    """What `tune` and `where` lines may refer to: the op's dimensions, and the machine's facts."""
    return {
        **dict(instance.dims),
        **family_for(machine, threads, storage_of(instance.op).bytes, is_early(instance.op)).rules.facts,
    }


def machine_threads(machine: Machine, threads: int) -> int:
    """Threads as part of an instance's identity: those of a CPU, 1 on a GPU."""
    return 1 if isinstance(machine, GpuMachine) else threads


def _number(text: str) -> Number:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return int(value) if value == int(value) else value


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:HASH]
