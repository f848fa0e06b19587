"""One op instance and its schedule become kernels of tile IR: the pass that everything else in this package
serves. resolve -> normalise -> split into kernels -> loop tree -> legality -> storage -> emit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tcomp.dsl.ast import DType, Expr, Module, Op, Reduction, Schedule
from tcomp.dsl.check import infer
from tcomp.dsl.dims import evaluate_dim, operand_shape
from tcomp.dsl.errors import TcError
from tcomp.dsl.storage import bound
from tcomp.grad.early import is_early
from tcomp.ir.multicast import without_idle_cluster
from tcomp.ir.tile import Buffer, Cluster, Kernel, Scope, Statement, ThreadShape
from tcomp.ir.walk import computes
from tcomp.machine.cpu import helpers_of
from tcomp.schedule.adding import Adding
from tcomp.schedule.choose import as_written, choose_schedule, storage_of
from tcomp.schedule.combine import Combined, combined
from tcomp.schedule.emit import Emitter, once
from tcomp.schedule.empty import without_empty_sums
from tcomp.schedule.family import Machine, family_for
from tcomp.schedule.fill import needs_zero, zero
from tcomp.schedule.inplace import inplace_pairs
from tcomp.schedule.joining import Joining
from tcomp.schedule.last_turn import kept_places
from tcomp.schedule.launch_flags import blocks_order
from tcomp.schedule.legality import check_core_loops, check_fuse, check_nesting
from tcomp.schedule.nest import Leaf, LoopNode, Node, ancestors, build
from tcomp.schedule.normal import normalise, part_of, parts_of
from tcomp.schedule.regions import needs
from tcomp.schedule.resolve import KernelPlan, Resolver, casts_in
from tcomp.schedule.split import Part, split
from tcomp.schedule.staging import check_stages, needed_stages
from tcomp.schedule.storage import Storage, definition_path, place
from tcomp.schedule.symbols import Symbols
from tcomp.schedule.unpacking import unpacked
from tcomp.schedule.work import arithmetic, evaluations, gathered, traffic


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
    try:
        return _Lowering(
            bound(op, DType.F32), module, dims, machine, threads, chosen or {}, schedule, deterministic
        ).run()
    except TcError as e:
        e.text = e.text or module.sources.get(e.span.file, "")
        raise


class _Lowering:
    def __init__(
        self,
        op: Op,
        module: Module,
        dims: dict[str, int],
        machine: Machine,
        threads: int,
        chosen: Mapping[str, int | float],
        schedule: Schedule | None,
        deterministic: bool,
    ) -> None:
        self.deterministic = deterministic
        self.op, self.module, self.dims, self.threads = op, module, dims, threads
        storage = storage_of(op)
        self.family = family_for(machine, threads, storage.bytes, is_early(op))
        self.info = infer(op, module)
        self.extents = {i: int(evaluate_dim(e, dims)) for i, e in self.info.ranges.items()}
        self.dtypes = {o.name: o.dtype for o in op.operands} | {t.name: t.dtype for t in self.info.temporaries.values()}
        self.shapes = {o.name: operand_shape(o, dims) for o in op.operands}
        for t in self.info.temporaries.values():
            self.shapes[t.name] = tuple(self.extents[i] for i in t.indices)
        written = normalise(op, module, dims)
        self.equations = without_empty_sums(written, self.extents, self.dtypes, module.monoids)
        found = (
            schedule
            or choose_schedule(op, module, self.family.targets, self.equations, self.dtypes, self.shapes).schedule
        )
        if self.equations != written:  # no schedule is for what these sums have become
            found = None
        self.given = found is not None
        self.schedule = found or self.family.default(op, self.equations, self.extents)
        self.text = module.sources.get(self.schedule.span.file, "")
        self.resolver = Resolver(op, self.extents, self.family.rules, self.text, chosen, storage, dims)
        self.dtypes |= {n: d for n, d in casts_in(self.schedule.shared, storage).items() if n in self.info.temporaries}

    def run(self) -> LoweredOp:
        temporaries = frozenset(self.info.temporaries)
        outputs = frozenset(o.name for o in self.op.operands if o in self.op.outputs or o.inout)
        defined = {t.name for eq in self.equations for t in eq.targets}
        parts = self._split(outputs, temporaries)
        kernels: list[Kernel] = []
        workspaces: dict[str, Buffer] = {}
        for part in parts:
            for n in sorted(part.names & temporaries):
                workspaces[n] = self._operand(n)
            computed = sorted(part.names) if not part.plan.outputs else [
                o for o in part.plan.outputs if o.partition(".")[0] in part.names
            ]  # fmt: skip
            label = self.op.name if len(parts) == 1 else f"{self.op.name}.{'+'.join(computed)}"
            started = frozenset(n for k in kernels for n in k.writes)
            kernels.append(self._kernel(label, part, workspaces, started))
        made = {n for part in parts for n in part.names}
        done = {i for part in parts for i in part.positions}
        missing = sorted(outputs & defined - made) or [
            part_of(t) for i, eq in enumerate(self.equations) if i not in done for t in eq.targets if t.name in outputs
        ]
        if missing:
            raise TcError(
                f"no kernel of this schedule computes '{missing[0]}'",
                self.schedule.span,
                self.text,
                f"add: kernel {missing[0]}:",
            )
        last = {n: i for i, k in enumerate(kernels) for n in k.reads}
        first = {n: i for i, k in reversed(list(enumerate(kernels))) for n in k.writes}
        for n in workspaces:
            if last.get(n, -1) <= first[n] and len(kernels) > 1 and n not in last:
                raise TcError(
                    f"kernel '{n}' computes a temporary that no later kernel reads",
                    self.schedule.span,
                    self.text,
                    "remove it, or put it before its readers",
                )
        return LoweredOp(tuple(kernels), tuple(workspaces.values()))

    def _split(self, outputs: frozenset[str], temporaries: frozenset[str]) -> list[Part]:
        operands = frozenset(o.name for o in self.op.operands)

        def parts() -> list[Part]:
            plans = self.resolver.plans(self.schedule)
            return split(
                plans, self.equations, operands, outputs, temporaries, self.dtypes, self.extents, self.shapes, self.text
            )

        if self.given:
            return parts()
        try:
            return parts()
        except TcError:
            # The default's one kernel per output would change an order that matters: one kernel, as written.
            self.schedule = Schedule(self.op.name, self.schedule.target, (), (), self.schedule.span)
            return parts()

    # ------------------------------------------------------------------------------------ one kernel

    def _kernel(self, label: str, part: Part, workspaces: dict[str, Buffer], started: frozenset[str]) -> Kernel:
        """One part as a kernel. `started` are the tensors that earlier kernels write (other parts of). `workspaces`
        gain what its blocks add up in."""
        symbols = Symbols(self.extents, self.dtypes, self.shapes)
        temporaries = frozenset(self.info.temporaries)
        joining = Joining(self.family, symbols, temporaries, self.deterministic, self.text)
        joined = combined(joining, part.plan, part.equations)
        leaves, plan = joined.leaves, joined.plan
        added = {n for s in joined.sums for n in (s.name, s.flags) if n}.union(joined.carried)
        workspaces |= {n: self._operand(n) for n in sorted(added)}
        operand_names = {o.name for o in self.op.operands} | set(workspaces)
        written = frozenset(t for x in leaves for t in x.written)
        local = written - operand_names
        for leaf in leaves:
            if any(t in local for t in leaf.written):
                leaf.readers = [r for r in leaves if r is not leaf and any(a.tensor in leaf.written for a in r.reads())]
        if as_written(self.op, self.module):  # else its tensors depend on which gradients exist
            check_stages(leaves, plan, self.text)
        dtypes = self._dtypes(plan, local)
        plan = replace(plan, stages=needed_stages(plan.stages, dtypes))
        roots = build(leaves, plan.sequence, self.extents)
        check_fuse(leaves, plan, self.text)
        check_core_loops(roots, plan, self.text)
        check_nesting(roots, self.text)
        emitter, shape = self._emitter(leaves, plan, local, dtypes)
        fills = self._fills(part, leaves, started, shape)
        filled = {c.target.tensor for phase in fills for c in computes(phase)}
        phases = fills + self._phases(roots, emitter)
        results = {n: self._operand(n) for n in written & operand_names}
        phases, adding = self._leaving(phases, joined, plan, emitter.tiles, results, shape)
        for n in added & set(emitter.tiles):  # words of the kernel's own, which it leaves zero
            added.remove(n)
            del workspaces[n]
        cleared = [s.flags for s in joined.sums if s.flags in added] + sorted(adding.cleared)
        phases = [self._zero(n, shape) for n in cleared] + phases
        reads = {a.tensor for x in leaves for a in x.reads()} & operand_names | added
        writes = written & operand_names | added
        order = [o.name for o in self.op.operands] + sorted(workspaces)
        operands = tuple(self._operand(n) for n in order if n in reads | writes)
        last = {s.output.partition(".")[0] for s in joined.sums if s.name in adding.last}
        inplace = kept_places(phases, last, inplace_pairs(roots, {b.name: b for b in operands}))
        tiles, phases = self.family.finish(
            emitter.tiles, phases, plan, shape, inplace, self.text if self.given else None
        )
        if plan.flags.stream and not any(c.by == "turns" for c in plan.combine):
            raise TcError(
                "`stream` shares out a sum that blocks add to in turns, and this kernel has none",
                plan.flags.span("stream"),
                self.text,
                "write: combine OUTPUT over LOOP by turns; or leave the line out",
            )
        sizes = {b.name: (b.dtype, b.elements) for b in operands}
        counted = {n: size for n, size in sizes.items() if n not in joined.carried}
        kernel = Kernel(
            label,
            operands,
            tuple(tiles.values()),
            tuple(phases),
            frozenset(reads),
            frozenset(writes),
            inplace,
            flops=arithmetic(leaves, self.extents, local),
            op=self.op.name,
            threads=shape,
            span=plan.span,
            producer=plan.flags.producer,
            order=replace(
                blocks_order(plan.flags, plan.sequence, self.text), stream=next(iter(plan.streams.values()), None)
            ),
            traffic=traffic(leaves, self.extents, counted, filled),
            cluster=self._cluster(plan),
            functions=evaluations(leaves, self.extents, local, self.module.monoids),
            gathered=gathered(leaves, self.extents, sizes),
            staggered=plan.flags.staggered and shape is not None and shape.warps > 4,
            sides=plan.flags.sides,
            origins=plan.origins,
        )
        self.family.check(kernel, plan, self.text)
        return without_idle_cluster(kernel)

    def _operand(self, name: str) -> Buffer:
        """A tensor of the op in memory, or a workspace."""
        return Buffer(name, self.dtypes[name], self.shapes[name], Scope.OPERAND)

    def _emitter(
        self, leaves: list[Leaf], plan: KernelPlan, local: frozenset[str], dtypes: Mapping[str, DType]
    ) -> tuple[Emitter, ThreadShape | None]:
        """What emits the kernel's statements, and the threads of its blocks on a GPU. `local` are its temporaries."""
        narrowest = min((d.bytes for d in self.dtypes.values() if d.is_float), default=4)
        room = self.family.room(plan, self.extents, narrowest)
        tiler, shape = self.family.prepare(plan, room, self.text)
        chunk, granule = self._chunks(plan)
        storage = self._storage(leaves, local, chunk, room, dtypes)
        definitions: dict[str, Expr] = {
            x.equation.target.name: x.equation.value
            for x in leaves
            if x.equation.target.name in local
            and not isinstance(x.equation.value, Reduction)
            and sum(x.equation.target.name in y.written for y in leaves) == 1
        }
        scalars = {o.name for o in self.op.operands if o.dtype is DType.I32 and not o.shape}
        emitter = Emitter(
            plan=plan,
            extents=self.extents,
            room=room,
            chunk=chunk,
            granule=granule,
            storage=storage,
            dtypes=dtypes,
            shapes=self.shapes,
            monoids=self.module.monoids,
            definitions=definitions,
            tiler=tiler,
            text=self.text,
            stager=self.family.stager,
            scalars=frozenset(scalars - {t for x in leaves for t in x.written}),
            needs=needs(leaves, definitions) if self.family.partial_tiles else None,
        )
        return emitter, shape

    def _leaving(
        self,
        phases: list[tuple[Statement, ...]],
        joined: Combined,
        plan: KernelPlan,
        tiles: dict[str, Buffer],
        results: dict[str, Buffer],
        shape: ThreadShape | None,
    ) -> tuple[list[tuple[Statement, ...]], Adding]:
        """How results reach memory where threads do not store them: through tiles, which `tiles` gains, and as sums
        that blocks add to (what is known of those is in `Adding`)."""
        # Sums that blocks add up in memory are written by a phase of their own, in whole rows.
        summed = {s.output for s in joined.sums}
        through = [replace(s, tensors=tuple(n for n in s.tensors if n not in summed)) for s in plan.stages]
        written = frozenset(t for x in joined.leaves for t in x.written)
        parts = parts_of(t for x in joined.leaves for t in x.equation.targets)
        warps = shape.warps if shape else 1
        phases = unpacked(phases, through, written, tiles, results, parts, self.text, joined.turns, warps)
        order = plan.flags.order
        adding = Adding(
            joined.sums, plan.stages, tiles, self.shapes, self.extents, order.reversed, self.text, order.persistent
        )
        return adding.phases(phases), adding

    def _cluster(self, plan: KernelPlan) -> Cluster | None:
        """The cluster that a grid level asks for, where that loop has more than one turn."""
        for t in plan.sequence:
            if t.cluster > 1 and t.block is not None and self.extents[t.index] > t.block:
                return Cluster(t.variable, t.cluster)
        return None

    def _chunks(self, plan: KernelPlan) -> tuple[dict[str, int], dict[str, int]]:
        """Per chunked loop: the most one core gets, also while some are at other work, and what share boundaries are
        multiples of."""
        fewest = self.threads - helpers_of(self.threads)
        chunk: dict[str, int] = {}
        granule: dict[str, int] = {}
        for t in plan.sequence:
            if t.block is None:
                m, n = plan.loops[t.index], self.extents[t.index]
                g = m.unroll * (int(self.family.rules.facts["lanes"]) if m.vec else 1)
                granule[t.index] = g
                granules = math.ceil(n / g)
                chunk[t.index] = min(n, math.ceil(granules / fewest) * g)
        return chunk, granule

    def _dtypes(self, plan: KernelPlan, local: frozenset[str]) -> dict[str, DType]:
        """Element types within one kernel: `cast p to bf16` holds the temporary p so."""
        out = dict(self.dtypes)
        for name, dtype in plan.casts.items():
            if name in local:
                out[name] = dtype
            elif name in out and out[name] is not dtype:
                raise TcError(
                    f"'{name}' cannot be cast: it is not a temporary of this kernel",
                    plan.span,
                    self.text,
                    f"round its reads in one equation instead: cast EQUATION.{name} to {dtype}",
                )
        return out

    def _storage(
        self,
        leaves: list[Leaf],
        local: frozenset[str],
        chunk: dict[str, int],
        room: Mapping[str, int],
        dtypes: Mapping[str, DType],
    ) -> dict[str, Storage]:
        storage: dict[str, Storage] = {}
        for leaf in leaves:
            for target in leaf.equation.targets:
                if target.name not in local or target.name in storage:
                    continue
                uses = [definition_path(leaf)]
                for other in leaves:
                    if other is not leaf and any(a.tensor == target.name for a in other.reads() + other.writes()):
                        uses.append(definition_path(other) if target.name in other.written else ancestors(other))
                storage[target.name] = place(
                    target.name, dtypes[target.name], target.subscripts, self.shapes[target.name],
                    uses, room, chunk,
                )  # fmt: skip
        return storage

    def _fills(
        self, part: Part, leaves: list[Leaf], started: frozenset[str], shape: ThreadShape | None
    ) -> list[tuple[Statement, ...]]:
        """Phases that make the outputs zero to which the part only adds; not those that were `started` before."""
        equations = self.equations if any("." in o for o in part.plan.outputs) else part.equations
        added = {t.name for x in leaves if not x.copies and x.equation.accumulate for t in x.equation.targets}
        atomic = added - {t.name for e in equations if e.accumulate for t in e.targets}
        return [
            self._zero(o.name, shape)
            for o in self.op.outputs
            if o.name in part.names - started
            and (o.name in atomic or needs_zero(o.name, self.shapes[o.name], equations, self.extents))
        ]

    def _zero(self, name: str, shape: ThreadShape | None) -> tuple[Statement, ...]:
        """A phase that makes the tensor zero."""
        return (zero(name, self.shapes[name], self.family.level, self.family.fill(shape)),)

    def _phases(self, roots: list[Node], emitter: Emitter) -> list[tuple[Statement, ...]]:
        """Top-level nests with core loops are phases of their own; what lies between runs on one core."""
        phases: list[tuple[Statement, ...]] = []
        single: list[Statement] = []

        def flush() -> None:
            if single:
                phases.append((once(list(single), self.family.level, self.schedule.span),))
                single.clear()

        for r in roots:
            if isinstance(r, LoopNode) and r.level.parallel:
                flush()
                phases.append(tuple(emitter.body([r], {})))
            else:
                single += emitter.body([r], {})
        flush()
        return phases
