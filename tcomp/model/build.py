"""Build a step: module, request -> every launch with its addresses (a `Step`).

    graph -> draft (nodes, launches) -> budget -> plan -> Step

The arena holds the persistent regions first (parameters, gradients, optimizer state, inputs, scalars,
results; gradients come last), then one region shared by the programs for what lives only while they run. Activations
of a step of one micro-batch lie in gradients' memory, too, while those are not there (`gradient_room.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from math import prod

from tcomp.amounts import bytes_apart, bytes_text
from tcomp.dsl.ast import Module, Op
from tcomp.errors import UserError
from tcomp.ir.tile import Kernel
from tcomp.machine.cpu import CpuMachine, helpers_of
from tcomp.machine.gpu import GpuMachine
from tcomp.model.budget import Budget
from tcomp.model.chunks import in_chunks
from tcomp.model.cost import cheap_price
from tcomp.model.division import division
from tcomp.model.draft import Draft, Drafter
from tcomp.model.graph import Graph, Parameter, Tensor
from tcomp.model.lowering import Lower, Lowered, Lowering
from tcomp.model.needed import needed
from tcomp.model.parts import with_parts
from tcomp.model.plan import ProgramPlan, plan_program
from tcomp.model.request import RecomputePolicy, StepRequest
from tcomp.model.step import SHARED_BY_RANKS, ParameterInit, Step
from tcomp.model.unroll import graph_of


def build_step(
    module: Module,
    request: StepRequest,
    machine: CpuMachine | GpuMachine,
    threads: int = 1,
    *,
    lower: Lower | None = None,
    found: Callable[[Kernel], None] | None = None,
) -> Step:
    """The step that is asked for, of a model of `module`, for a machine (`threads` of a CPU).

    `lower` replaces the lowering of ops; `found` is told of each kernel as soon as it is lowered. UserError for what
    cannot be asked for, and for a memory limit that does not suffice, which names what to blame. TcError for faults in
    the model's text.
    """
    _check(request, threads)
    training = "train" in request.programs
    limit, fitted = request.memory_limit, training and request.recompute == "to fit"
    graph, begin = _graphs(module, request)
    writes = _writes(graph)
    drafter = Drafter(
        module,
        machine,
        threads,
        Lowering(module, lower or _lower_for(machine, threads, request.deterministic), found),
        training,
        request.accumulation,
        request.keep_logits,
        begin,
        request.sharing,
    )
    if training and not request.keep_logits:
        graph = in_chunks(with_parts(graph, module, machine, drafter.variants), module)
    price = cheap_price(machine, threads) if training and request.recompute == "cheap" else None
    budget, draft, plans, before = _cheapest(drafter, graph, price, limit if fitted else None)
    arena, launches, p = draft.arena, draft.launches, draft.programs
    total = arena.bytes + max(plan.bytes for plan in plans.values())
    if limit is not None and total + draft.beside > limit:
        raise _out_of_memory(total + draft.beside, limit, draft, plans, request.recompute if training else None)
    bound = arena.raw_bytes + max(plan.lower_bound for plan in plans.values())
    placed = {n: arena.placed(launches[n], plans[n]) for n in launches}
    if training:  # forward alone is a part of the first micro-batch, at the same addresses
        placed["forward"] = tuple(placed["micro_first"][i] for i in draft.forward)
    positions, end = _positions({n: len(ls) for n, ls in launches.items()}, "micro_first" if training else "forward")
    inputs = {t: graph.bounds[n] for n, t in graph.inputs.items()}
    inputs |= {t: begin.bounds[n] for n, t in begin.inputs.items()} if begin is not None else {}
    return Step(
        model=request.model,
        config=request.config,
        dims=dict(graph.dims),
        slots=arena.slots(plans, positions, end - 1),
        gradients=arena.gradient_slots(draft.pieces, end - 1),
        arena_bytes=total,
        lower_bound_bytes=bound,
        scratch_bytes=draft.scratch,
        team_bytes=draft.team,
        kernels=draft.kernels,
        programs=placed,
        parameters=tuple(_beginning(q, p.masters.get(q.tensor)) for q in graph.parameters),
        precision=graph.recipe.name,
        threads=draft.threads - helpers_of(draft.threads),
        states=tuple(t.name for t in graph.states),
        writes=writes,
        inputs={n: inputs[t] for n, t in arena.names.items() if t in inputs},
        hyper={t.name: v for t, v in p.update.hyper.items()} if p.update is not None else {},
        scalars={t.name: v for t, v in arena.defaults.items()},
        evaluation={t.name: v for t, v in graph.evaluation.items()},
        division=division(draft, plans, request.sharing),
        recompute=budget.report(limit if request.recompute == "to fit" else None, before, total + draft.beside),
    )


def _check(request: StepRequest, threads: int) -> None:
    """UserError where the request says what no step can do."""
    unknown = set(request.programs) - {"train", "forward", "decode"}
    if unknown or not request.programs:
        raise UserError(
            f"there is no program {', '.join(sorted(unknown)) or '(none given)'}", "train, forward or decode"
        )
    if request.accumulation < 1 or threads < 1:
        raise UserError("accumulation and threads must be at least 1", "leave them out, or give numbers from 1 on")


def _graphs(module: Module, request: StepRequest) -> tuple[Graph, Graph | None]:
    """The graph of what is asked for, and of how a text is begun, where decoding has a program of its own for that."""
    graph = graph_of(module, request)
    if "decode" not in request.programs:
        return graph, None
    if request.prefill is None:
        return needed(graph), None
    beginning = replace(request, sizes={**request.sizes, **request.prefill})
    return needed(graph), needed(graph_of(module, beginning), logits=False)


def _writes(graph: Graph) -> bool:
    """Whether the model names logits with a row for each token. (A step that trains may not make them whole.)"""
    tokens = graph.inputs.get("tokens")
    return tokens is not None and graph.logits is not None and prod(graph.logits.shape[:-1]) == tokens.elements


def _positions(lengths: Mapping[str, int], main: str) -> tuple[dict[str, int], int]:
    """Where the launches of each program stand on one line: those of `main` first, then the programs behind it, of
    these `lengths`. And where the last one ends."""
    positions, end = {main: 0}, lengths[main]
    for name in (*SHARED_BY_RANKS, "prefill"):
        if name in lengths:
            positions[name] = end
            end += lengths[name]
    return positions, end


def _cheapest(
    drafter: Drafter, graph: Graph, price: float | None, limit: int | None
) -> tuple[Budget, Draft, dict[str, ProgramPlan], int]:
    """The choice of what is computed again, the draft and its plans by it, and the bytes without it: for a limit as
    much as fits it, else what is worth its `price`, unless placement loses what that saves."""
    budget = Budget(drafter, graph)
    if price is not None:
        budget.save(price)
    draft, plans = _placed(budget, limit)
    before = budget.start.least
    if limit is None and budget.chosen and _bytes(draft, plans) >= before:  # lost, or as much without it
        plain = Budget(drafter, graph)
        other = _placed(plain, None)
        before = _bytes(*other)
        if before <= _bytes(draft, plans):
            return plain, *other, before
    return budget, draft, plans, before


def _placed(budget: Budget, limit: int | None) -> tuple[Draft, dict[str, ProgramPlan]]:
    """The draft and its plans, results computed again until the placed step fits `limit` (or nothing more helps)."""
    target = limit
    while True:
        found = target is None or budget.fit(target)
        draft = budget.draft
        persistent = draft.arena.address.keys()
        plans = {n: plan_program(ls, persistent, draft.fixed(n)) for n, ls in draft.launches.items()}
        over = _bytes(draft, plans) - (limit or 0)
        if limit is None or target is None or not found or over <= 0:
            return draft, plans
        target = min(target, budget.least) - over  # what placement lost


def _bytes(draft: Draft, plans: Mapping[str, ProgramPlan]) -> int:
    """All memory of a placed step."""
    return draft.arena.bytes + max(plan.bytes for plan in plans.values()) + draft.beside


def _beginning(q: Parameter, master: Tensor | None) -> ParameterInit:
    d, copy = q.decl, "" if master is None else master.name
    return ParameterInit(q.tensor.name, d.init.function, q.value, d.group, copy, d.frozen)


def _lower_for(machine: CpuMachine | GpuMachine, threads: int, deterministic: bool) -> Lower:
    """The lowering of ops for a machine; `threads` counts for CPUs only."""
    from tcomp.schedule.lower import lower

    def bound(op: Op, module: Module, dims: dict[str, int]) -> Lowered:
        return lower(op, module, dims, machine, threads=threads, deterministic=deterministic)

    return bound


def _out_of_memory(
    needed: int, limit: int, draft: Draft, plans: Mapping[str, ProgramPlan], recompute: RecomputePolicy | None
) -> UserError:
    """The error for a plan that does not fit, naming the largest tensors that are live at the peak, and the kernels
    that take most beside the arena. `recompute` is None for a forward pass alone, which computes nothing again."""
    name = max(plans, key=lambda n: plans[n].bytes)
    plan, launches = plans[name], draft.launches[name]
    live: Collection[tuple[str, Tensor]] = [
        *draft.arena.names.items(),
        *((t.name, t) for t in plan.live_at(plan.peak)),
    ]
    blamed = [(t.bytes, f"{n}  ({t.kind})") for n, t in live] + [(n, what) for n, what in draft.parts_beside() if n]
    at = launches[plan.peak].label if launches else name
    largest = sorted(blamed, key=lambda item: -item[0])[:8]
    listing = "\n".join(f"    {bytes_text(n):>10}  {what}" for n, what in largest)
    fitted = recompute == "to fit"
    how = " at the least, with all that helps computed again in the backward pass," if fitted else ""
    more = (
        "" if fitted or recompute is None else ", or --memory with a budget that computing activations again can meet"
    )
    takes, allowed = bytes_apart(needed, limit)
    return UserError(
        f"the step needs {takes} of memory{how or ','} the limit is {allowed}\n"
        f"  the peak is at '{at}' of program {name}; the largest tensors live there:\n{listing}",
        f"use a smaller batch or sequence, a smaller config, or a higher limit{more}",
    )
