"""One op instance and its schedule become kernels of tile IR: the pass that everything else in this package
serves. resolve -> normalise -> split into kernels -> each kernel (`lower_kernel.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tcomp.dsl.ast import DType, Module, Op, Schedule
from tcomp.dsl.check import infer
from tcomp.dsl.dims import evaluate_dim, operand_shape
from tcomp.dsl.errors import TcError, quoting
from tcomp.dsl.storage import bound
from tcomp.grad.early import is_early
from tcomp.ir.tile import Buffer, Kernel
from tcomp.schedule.certain import without_certain_conditions
from tcomp.schedule.choose import choose_schedule, storage_of
from tcomp.schedule.empty import without_empty_sums
from tcomp.schedule.family import Machine, family_for
from tcomp.schedule.instance import Instance
from tcomp.schedule.lower_kernel import KernelLowering
from tcomp.schedule.normal import normalise
from tcomp.schedule.resolve import Resolver, casts_in
from tcomp.schedule.split import Part, split
from tcomp.schedule.symbols import Symbols


@dataclass(frozen=True)
class LoweredOp:
    """Kernels in launch order; `workspaces` are temporaries that live from one kernel to a later one."""

    kernels: tuple[Kernel, ...]
    workspaces: tuple[Buffer, ...]


def lower(
    op: Op,
    module: Module,
    dims: dict[str, int],
    machine: Machine,
    threads: int = 1,
    chosen: Mapping[str, int | float] | None = None,
    schedule: Schedule | None = None,
    deterministic: bool = True,
) -> LoweredOp:
    """Lower one op instance.

    `dims` binds every dimension; an op still generic over `real` is taken at f32. `threads` counts a CPU's threads.
    `chosen` overrides tuned parameters by name. `schedule` replaces the module's (for tuners and tests).
    `deterministic` refuses atomic sums. Raises TcError when the schedule is illegal, with a counterexample.
    """
    with quoting(module.sources):
        op = bound(op, DType.F32)
        instance = _instance(op, module, dims, machine, threads, schedule, deterministic)
        rules, symbols = instance.family.rules, instance.symbols
        resolver = Resolver(op, symbols.extents, rules, chosen or {}, storage_of(op), dims)
        instance, parts = _parts(instance, resolver)
        return _kernels(instance, parts)


def _instance(
    op: Op,
    module: Module,
    dims: dict[str, int],
    machine: Machine,
    threads: int,
    schedule: Schedule | None,
    deterministic: bool,
) -> Instance:
    """The op with its symbols, numbers for dimensions, and the schedule that it gets."""
    storage = storage_of(op)
    family = family_for(machine, threads, storage.bytes, is_early(op))
    info = infer(op, module)
    extents = {i: int(evaluate_dim(e, dims)) for i, e in info.ranges.items()}
    dtypes = {o.name: o.dtype for o in op.operands} | {t.name: t.dtype for t in info.temporaries.values()}
    shapes = {o.name: operand_shape(o, dims) for o in op.operands}
    shapes |= {t.name: tuple(extents[i] for i in t.indices) for t in info.temporaries.values()}
    written = normalise(op, module, dims)
    equations = without_empty_sums(written, extents, dtypes, module.monoids)
    found = schedule or choose_schedule(op, module, family.targets, equations, dtypes, shapes).schedule
    if equations != written:  # no schedule is for what these sums have become
        found = None
    taken = found or family.default(op, equations, extents)
    dtypes |= {n: d for n, d in casts_in(taken.shared, storage).items() if n in info.temporaries}
    return Instance(
        op=op,
        module=module,
        family=family,
        symbols=Symbols(extents, dtypes, shapes),
        temporaries=frozenset(info.temporaries),
        equations=without_certain_conditions(equations, extents),
        schedule=taken,
        given=found is not None,
        threads=threads,
        deterministic=deterministic,
    )


def _parts(instance: Instance, resolver: Resolver) -> tuple[Instance, list[Part]]:
    """What each kernel computes, and the instance with the schedule that says so."""
    try:
        return instance, split(resolver.plans(instance.schedule), instance)
    except TcError:
        if instance.given:
            raise
        # The default's one kernel per output would change an order that matters: one kernel, as written.
        default = instance.schedule
        instance = replace(instance, schedule=Schedule(instance.op.name, default.target, (), (), default.span))
        return instance, split(resolver.plans(instance.schedule), instance)


def _kernels(instance: Instance, parts: Sequence[Part]) -> LoweredOp:
    kernels: list[Kernel] = []
    workspaces: dict[str, Buffer] = {}
    for part in parts:
        workspaces |= {n: instance.operand(n) for n in sorted(part.names & instance.temporaries)}
        started = frozenset(n for k in kernels for n in k.writes)
        lowering = KernelLowering(instance, part, workspaces, started)
        kernels.append(lowering.kernel(_name(instance.op, part, len(parts) == 1)))
    _check_workspaces(instance, kernels, workspaces)
    return LoweredOp(tuple(kernels), tuple(workspaces.values()))


def _name(op: Op, part: Part, alone: bool) -> str:
    """A kernel is named for its op, and for what it computes where others compute the rest."""
    asked = [o for o in part.plan.outputs if o.partition(".")[0] in part.names]
    return op.name if alone else f"{op.name}.{'+'.join(asked if part.plan.outputs else sorted(part.names))}"


def _check_workspaces(instance: Instance, kernels: Sequence[Kernel], workspaces: Mapping[str, Buffer]) -> None:
    """TcError where a temporary is computed that nothing reads."""
    read = {n for k in kernels for n in k.reads}
    for n in workspaces:
        if n not in read and len(kernels) > 1:
            raise TcError(
                f"kernel '{n}' computes a temporary that no later kernel reads",
                instance.schedule.span,
                "remove it, or put it before its readers",
            )
