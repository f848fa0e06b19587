"""Build a step: module, model, configuration, sizes -> every launch with its addresses (a `Step`).

    graph -> backward nodes -> update nodes -> launches -> plan -> Step

The arena holds the persistent regions first (parameters, gradients, optimizer state, inputs, scalars,
results), then one region shared by the programs for what lives only while they run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tcomp.dsl.ast import Module, Op
from tcomp.dsl.dims import Number
from tcomp.errors import UserError
from tcomp.ir.tile import Kernel, Scope
from tcomp.machine.cpu import CpuMachine
from tcomp.machine.gpu import GpuMachine
from tcomp.model.arena import Arena
from tcomp.model.chunks import in_chunks
from tcomp.model.graph import Tensor, build_graph
from tcomp.model.lowering import Lower, Lowered, Lowering, PlannedLaunch
from tcomp.model.placement import aligned
from tcomp.model.plan import ProgramPlan, plan_program
from tcomp.model.programs import build_programs
from tcomp.model.step import ParameterInit, Step


def build_step(
    module: Module,
    model_name: str,
    config: str,
    sizes: Mapping[str, int],
    *,
    overrides: Mapping[str, Number] | None = None,
    precision: str | None = None,
    accumulation: int = 1,
    machine: CpuMachine | GpuMachine,
    threads: int = 1,
    memory_limit: int | None = None,
    keep_logits: bool = False,
    programs: Sequence[str] = ("train",),
    lower: Lower | None = None,
) -> Step:
    """The step of a model at fixed sizes, by the recipe named `precision` (None: that of the model's text).

    `programs` is ("train",) for forward, backward and update, or ("forward",) for inference. `memory_limit`
    bounds arena, scratch and team memory together, in bytes: UserError names what to blame when it does not
    suffice. `lower` replaces the lowering of ops (tests). TcError for faults in the model's text.
    """
    unknown = set(programs) - {"train", "forward"}
    if unknown or not programs:
        raise UserError(f"there is no program {', '.join(sorted(unknown)) or '(none given)'}", "train or forward")
    if accumulation < 1 or threads < 1:
        raise UserError("accumulation and threads must be at least 1")
    training = "train" in programs
    graph = build_graph(module, model_name, config, sizes, overrides, precision)
    if training and not keep_logits:
        graph = in_chunks(graph, module)
    p = build_programs(graph, module, training, accumulation)
    lowering = Lowering(module, lower or _lower_for(machine, threads))
    forward = lowering.launches(graph.nodes)
    launches: dict[str, tuple[PlannedLaunch, ...]] = {}
    if training:
        launches["micro_first"] = forward + lowering.launches(p.backward)
        if accumulation > 1:
            launches["micro_next"] = forward + lowering.launches(p.backward_next)
        if p.update is not None:
            launches["update"] = lowering.launches(p.update.nodes)
    else:
        launches["forward"] = forward
    arena = Arena(p, keep_logits or not training, 1.0 / accumulation)
    plans = {n: plan_program(ls, arena.address.keys()) for n, ls in launches.items()}
    temporary = max(plan.bytes for plan in plans.values())
    bound = arena.raw_bytes + max(plan.lower_bound for plan in plans.values())
    scratch = max((scratch_bytes(k, Scope.SCRATCH) for k in lowering.kernels.values()), default=0)
    team = max((team_bytes(k, machine) for k in lowering.kernels.values()), default=0)
    total = arena.bytes + temporary
    if memory_limit is not None and total + scratch * threads + team > memory_limit:
        raise _out_of_memory(total + scratch * threads + team, memory_limit, arena, plans, launches)
    placed = {n: arena.placed(launches[n], plans[n]) for n in launches}
    if training:  # forward alone is the beginning of the first micro-batch, at the same addresses
        placed["forward"] = placed["micro_first"][: len(forward)]
    main = "micro_first" if training else "forward"
    positions, end = {main: 0}, len(launches[main])
    if "update" in launches:
        positions["update"] = end
        end += len(launches["update"])
    return Step(
        model=model_name,
        config=config,
        dims=dict(graph.dims),
        slots=arena.slots(plans, positions, end - 1),
        arena_bytes=total,
        lower_bound_bytes=bound,
        scratch_bytes=scratch,
        team_bytes=team,
        kernels=dict(lowering.kernels),
        programs=placed,
        parameters=tuple(
            ParameterInit(q.tensor.name, q.decl.init.function, q.value, q.decl.group, _name(p.masters.get(q.tensor)))
            for q in graph.parameters
        ),
        precision=graph.recipe.name,
        inputs={t.name: graph.bounds[n] for n, t in graph.inputs.items()},
        hyper={t.name: v for t, v in p.update.hyper.items()} if p.update is not None else {},
        scalars={t.name: v for t, v in arena.defaults.items()},
    )


def _name(t: Tensor | None) -> str:
    return "" if t is None else t.name


def scratch_bytes(kernel: Kernel, scope: Scope) -> int:
    """Bytes of a kernel's tiles in a scope, each aligned."""
    return sum(aligned(t.bytes) for t in kernel.tiles if t.scope is scope)


def team_bytes(kernel: Kernel, machine: CpuMachine | GpuMachine) -> int:
    """Bytes of what the kernel's cores or blocks share, laid out as the machine's code generator does."""
    if isinstance(machine, GpuMachine):
        from tcomp.codegen.nvptx.layout import team_layout

        return team_layout(kernel.tiles)[1]
    return scratch_bytes(kernel, Scope.TEAM)


def _lower_for(machine: CpuMachine | GpuMachine, threads: int = 1) -> Lower:
    """The lowering of ops for a machine; `threads` counts for CPUs only."""
    from tcomp.schedule.lower import lower

    def bound(op: Op, module: Module, dims: dict[str, int]) -> Lowered:
        return lower(op, module, dims, machine, threads=threads)

    return bound


def _out_of_memory(
    needed: int,
    limit: int,
    arena: Arena,
    plans: Mapping[str, ProgramPlan],
    launches: Mapping[str, Sequence[PlannedLaunch]],
) -> UserError:
    """The error for a plan that does not fit, naming the largest tensors that are live at the peak."""
    name = max(plans, key=lambda n: plans[n].bytes)
    plan = plans[name]
    live: Collection[tuple[str, Tensor]] = [
        *arena.names.items(),
        *((t.name, t) for t in plan.live_at(plan.peak)),
    ]
    largest = sorted(live, key=lambda item: -item[1].bytes)[:8]
    at = launches[name][plan.peak].label if launches[name] else name
    listing = "\n".join(f"    {mebibytes(t.bytes):>10}  {n}  ({t.kind})" for n, t in largest)
    return UserError(
        f"the step needs {mebibytes(needed)} of memory, the limit is {mebibytes(limit)}\n"
        f"  the peak is at '{at}' of program {name}; the largest tensors live there:\n{listing}",
        "use a smaller batch or sequence, a smaller config, or a higher limit",
    )


def mebibytes(n: int) -> str:
    """`12.3 MiB`"""
    return f"{n / 2**20:,.1f} MiB"
