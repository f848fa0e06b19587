"""One kernel of an op instance, from its equations and its part of the schedule to tile IR.

combine (equations become leaves) -> loop tree -> legality -> storage -> emit -> unpack, add -> the family's passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from tcomp.dsl.ast import Cast, DType, Expr, Reduction
from tcomp.dsl.errors import TcError
from tcomp.grad.parts import reads
from tcomp.ir.blocks import ThreadShape
from tcomp.ir.multicast import without_idle_cluster
from tcomp.ir.tile import Buffer, Kernel, Statement
from tcomp.ir.walk import computes
from tcomp.machine.cpu import helpers_of
from tcomp.schedule.choose import as_written
from tcomp.schedule.gpu.blocks import blocks_of
from tcomp.schedule.gpu.unpacking import Phase, Unpacking
from tcomp.schedule.inplace import inplace_pairs
from tcomp.schedule.instance import Instance
from tcomp.schedule.joining.adding import Adding
from tcomp.schedule.joining.combine import combined
from tcomp.schedule.joining.last_turn import kept_places
from tcomp.schedule.normal import parts_of
from tcomp.schedule.split import Part
from tcomp.schedule.staging.packed import check_stages, needed_stages
from tcomp.schedule.tree.emit import Emitter, once
from tcomp.schedule.tree.fill import needs_zero, zero
from tcomp.schedule.tree.legality import check_core_loops, check_fuse, check_nesting
from tcomp.schedule.tree.nest import LoopNode, Node, ancestors, build
from tcomp.schedule.tree.regions import needs
from tcomp.schedule.tree.storage import Storage, definition_path, place
from tcomp.schedule.work import arithmetic, evaluations, gathered, traffic


class KernelLowering:
    """Lowers one part of an instance. `workspaces` gain what the kernel's blocks add up in; `started` are the tensors
    that earlier kernels write (other parts of)."""

    def __init__(self, instance: Instance, part: Part, workspaces: dict[str, Buffer], started: frozenset[str]) -> None:
        self.instance, self.part, self.workspaces, self.started = instance, part, workspaces, started
        self.op, self.family = instance.op, instance.family
        self.extents, self.shapes = instance.symbols.extents, instance.symbols.shapes
        self.joined = combined(instance, part.plan, part.equations)
        self.leaves = self.joined.leaves
        self.added = {n for s in self.joined.sums for n in (s.name, s.flags) if n}.union(self.joined.carried)
        """workspaces that blocks add to"""
        workspaces |= {n: instance.operand(n) for n in sorted(self.added)}
        self.operands = {o.name for o in self.op.operands} | set(workspaces)
        self.written = frozenset(t for x in self.leaves for t in x.written)
        self.local = self.written - self.operands
        """the kernel's own temporaries"""
        for leaf in self.leaves:
            if self.local.intersection(leaf.written):
                others = (r for r in self.leaves if r is not leaf)
                leaf.readers = [r for r in others if any(a.tensor in leaf.written for a in r.reads())]
        if as_written(self.op, instance.module):  # else its tensors depend on which gradients exist
            check_stages(self.leaves, self.joined.plan)
        self.dtypes = self._dtypes()
        plan = self.joined.plan
        self.plan = replace(plan, stages=needed_stages(plan.stages, self.dtypes))

    def kernel(self, name: str) -> Kernel:
        """The kernel under that name. TcError where its schedule is illegal."""
        plan = self.plan
        roots = build(self.leaves, plan.levels, self.extents)
        check_fuse(self.leaves, plan)
        check_core_loops(roots, plan, self.extents)
        check_nesting(roots)
        emitter, shape = self._emitter()
        fills = self._fills(shape)
        filled = {c.target.tensor for phase in fills for c in computes(phase)}
        phases, adding = self._leaving(fills + self._phases(roots, emitter), emitter.tiles, shape)
        for n in self.added & set(emitter.tiles):  # words of the kernel's own, which it leaves zero
            self.added.remove(n)
            del self.workspaces[n]
        cleared = [s.flags for s in self.joined.sums if s.flags in self.added] + sorted(adding.cleared)
        phases = [self._zero(n, shape) for n in cleared] + phases
        reads = {a.tensor for x in self.leaves for a in x.reads()} & self.operands | self.added
        writes = self.written & self.operands | self.added
        order = [o.name for o in self.op.operands] + sorted(self.workspaces)
        operands = tuple(self.instance.operand(n) for n in order if n in reads | writes)
        last = {s.output.partition(".")[0] for s in self.joined.sums if s.name in adding.last}
        inplace = kept_places(phases, last, inplace_pairs(roots, {b.name: b for b in operands}))
        tiles, phases = self.family.finish(emitter.tiles, phases, plan, shape, inplace, self.instance.given)
        self._check_stream()
        sizes = {b.name: (b.dtype, b.elements) for b in operands}
        counted = {n: size for n, size in sizes.items() if n not in self.joined.carried}
        kernel = Kernel(
            name,
            operands,
            tuple(tiles.values()),
            tuple(phases),
            frozenset(reads),
            frozenset(writes),
            inplace,
            flops=arithmetic(self.leaves, self.extents, self.local),
            op=self.op.name,
            blocks=None if shape is None else blocks_of(plan, self.extents, shape),
            traffic=traffic(self.leaves, self.extents, counted, filled),
            functions=evaluations(self.leaves, self.extents, self.local, self.instance.module.monoids),
            gathered=gathered(self.leaves, self.extents, sizes),
            span=plan.span,
            origins=plan.origins,
        )
        self.family.check(kernel, plan)
        return without_idle_cluster(kernel)

    def _check_stream(self) -> None:
        if self.plan.flags.stream and not any(c.by == "turns" for c in self.plan.combine):
            raise TcError(
                "`stream` shares out a sum that blocks add to in turns, and this kernel has none",
                self.plan.flags.span("stream"),
                "write: combine OUTPUT over LOOP by turns; or leave the line out",
            )

    def _dtypes(self) -> dict[str, DType]:
        """Element types within the kernel: `cast p to bf16` holds the temporary p so."""
        out = dict(self.instance.symbols.dtypes)
        for name, dtype in self.joined.plan.casts.items():
            if name in self.local:
                out[name] = dtype
            elif name in out and out[name] is not dtype:
                raise self._no_cast(name, dtype)
        return out

    def _no_cast(self, name: str, dtype: DType) -> TcError:
        schedule = self.instance.schedule
        lines = (d for block in (schedule.shared, *(k.directives for k in schedule.kernels)) for d in block)
        span = next((d.span for d in lines if isinstance(d, Cast) and d.what == name), self.joined.plan.span)
        readers = [q.target.name for q in self.instance.equations if name in reads(q)]
        hint = f"round its reads in one equation instead: cast {readers[0]}.{name} to {dtype}" if readers else (
            "remove the line: no equation reads it"
        )  # fmt: skip
        return TcError(f"'{name}' cannot be cast: it is not a temporary of this kernel", span, hint)

    def _emitter(self) -> tuple[Emitter, ThreadShape | None]:
        """What emits the kernel's statements, and the threads of its blocks on a GPU."""
        plan, leaves = self.plan, self.leaves
        narrowest = min((d.bytes for d in self.instance.symbols.dtypes.values() if d.is_float), default=4)
        room = self.family.room(plan, self.extents, narrowest)
        tiler, shape = self.family.prepare(plan, room)
        chunk, granule = self._chunks()
        definitions: dict[str, Expr] = {
            x.equation.target.name: x.equation.value
            for x in leaves
            if x.equation.target.name in self.local
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
            storage=self._storage(chunk, room),
            dtypes=self.dtypes,
            shapes=self.shapes,
            monoids=self.instance.module.monoids,
            definitions=definitions,
            tiler=tiler,
            stager=self.family.stager,
            scalars=frozenset(scalars - self.written),
            needs=needs(leaves, definitions) if self.family.partial_tiles else None,
        )
        return emitter, shape

    def _chunks(self) -> tuple[dict[str, int], dict[str, int]]:
        """Per chunked loop: the most one core gets, also while some are at other work, and what share boundaries are
        multiples of."""
        fewest = self.instance.threads - helpers_of(self.instance.threads)
        chunk: dict[str, int] = {}
        granule: dict[str, int] = {}
        for t in self.plan.sequence:
            if t.block is None:
                m, n = self.plan.loops[t.index], self.extents[t.index]
                g = m.unroll * (int(self.family.rules.facts["lanes"]) if m.vec else 1)
                granule[t.index] = g
                granules = math.ceil(n / g)
                chunk[t.index] = min(n, math.ceil(granules / fewest) * g)
        return chunk, granule

    def _storage(self, chunk: dict[str, int], room: Mapping[str, int]) -> dict[str, Storage]:
        """Where the kernel's temporaries live."""
        storage: dict[str, Storage] = {}
        for leaf in self.leaves:
            for target in leaf.equation.targets:
                name = target.name
                if name not in self.local or name in storage:
                    continue
                uses = [definition_path(leaf)]
                for other in self.leaves:
                    if other is not leaf and any(a.tensor == name for a in other.reads() + other.writes()):
                        uses.append(definition_path(other) if name in other.written else ancestors(other))
                dtype, shape = self.dtypes[name], self.shapes[name]
                storage[name] = place(name, dtype, target.subscripts, shape, uses, room, chunk)
        return storage

    def _phases(self, roots: list[Node], emitter: Emitter) -> list[Phase]:
        """Top-level nests with core loops are phases of their own; what lies between runs on one core."""
        phases: list[Phase] = []
        single: list[Statement] = []

        def flush() -> None:
            if single:
                phases.append((once(list(single), self.family.level, self.instance.schedule.span),))
                single.clear()

        for r in roots:
            if isinstance(r, LoopNode) and r.level.parallel:
                flush()
                phases.append(tuple(emitter.body([r], {})))
            else:
                single += emitter.body([r], {})
        flush()
        return phases

    def _leaving(
        self, phases: list[Phase], tiles: dict[str, Buffer], shape: ThreadShape | None
    ) -> tuple[list[Phase], Adding]:
        """How results reach memory where threads do not store them: through tiles, which `tiles` gains, and as sums
        that blocks add to (what is known of those is in `Adding`)."""
        joined, plan = self.joined, self.plan
        # Sums that blocks add up in memory are written by a phase of their own, in whole rows.
        summed = {s.output for s in joined.sums}
        through = [replace(s, tensors=tuple(n for n in s.tensors if n not in summed)) for s in plan.stages]
        results = {n: self.instance.operand(n) for n in self.written & self.operands}
        parts = parts_of(t for x in self.leaves for t in x.equation.targets)
        warps = shape.warps if shape else 1
        unpacking = Unpacking(tiles, results, joined.turns, warps)
        phases = unpacking.phases(phases, through, self.written, parts)
        adding = Adding(joined.sums, plan.stages, tiles, self.shapes, self.extents, plan.flags.order)
        return adding.phases(phases), adding

    def _fills(self, shape: ThreadShape | None) -> list[Phase]:
        """Phases that make the outputs zero to which the part only adds; not those that were started before."""
        part = self.part
        equations = self.instance.equations if any("." in o for o in part.plan.outputs) else part.equations
        added = {t.name for x in self.leaves if not x.copies and x.equation.accumulate for t in x.equation.targets}
        atomic = added - {t.name for e in equations if e.accumulate for t in e.targets}
        return [
            self._zero(o.name, shape)
            for o in self.op.outputs
            if o.name in part.names - self.started
            and (o.name in atomic or needs_zero(o.name, self.shapes[o.name], equations, self.extents))
        ]

    def _zero(self, name: str, shape: ThreadShape | None) -> Phase:
        """A phase that makes the tensor zero."""
        return (zero(name, self.shapes[name], self.family.level, self.family.fill(shape)),)
