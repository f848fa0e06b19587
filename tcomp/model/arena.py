"""The arena: addresses of the persistent tensors, and the slots that name every region.

Parameters, their master copies and optimizer state come first, then inputs, scalars and results, then gradients. All
but what is between have the same flat layout. Everything after that belongs to the programs while they run, and where
gradients are not there yet, their memory does (`gradient_room.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tcomp.dsl.errors import TcError
from tcomp.model.flat import Region
from tcomp.model.gradient_room import Piece, ranges
from tcomp.model.graph import Graph, Tensor
from tcomp.model.lowering import PlannedLaunch
from tcomp.model.placement import ALIGNMENT, aligned
from tcomp.model.plan import ProgramPlan
from tcomp.model.programs import Programs
from tcomp.model.step import Launch, Slot


@dataclass
class Arena:
    """Addresses of the persistent tensors; `bytes` is where the temporary region starts."""

    programs: Programs
    keep_logits: bool
    seed_value: float
    address: dict[Tensor, int] = field(default_factory=dict)
    names: dict[str, Tensor] = field(default_factory=dict)
    shapes: dict[Tensor, tuple[int, ...]] = field(default_factory=dict)
    kinds: dict[Tensor, str] = field(default_factory=dict)
    defaults: dict[Tensor, float] = field(default_factory=dict)
    bytes: int = 0
    raw_bytes: int = 0

    def __post_init__(self) -> None:
        p, graph = self.programs, self.programs.graph
        regions = dict(p.regions)
        gradients = regions.pop("g", None)
        for name, region in regions.items():
            self.flat(name, region)
        frozen = (q.tensor for q in graph.parameters if q.decl.frozen)
        for t in (*frozen, *graph.states, *p.news.values(), *graph.inputs.values()):
            self.add(t, t.name)
        self.defaults = {p.seed: self.seed_value, p.step: 0} if p.gradients else {}
        self.defaults |= graph.scalars
        if p.update is not None:
            self.defaults |= p.update.hyper | p.update.scalars
        for t in self.defaults:
            self.add(t, t.name)
        for t in graph.caches:
            self.add(t, t.name)
        if graph.loss is not None:
            self.result(graph.loss.tensor, "loss", graph.loss.shape)
        if self.keep_logits and graph.logits is not None:
            self.result(graph.logits.tensor, "logits", graph.logits.shape)
        if p.update is not None:
            for n, t in p.update.results.items():
                self.result(t, n, t.shape)
        if gradients is not None:
            self.flat("g", gradients)

    def flat(self, name: str, region: Region) -> None:
        """Place a flat vector that the update calls `name`."""
        p, tensors = self.programs, region.parts
        if p.update is not None:
            flat = p.update.flats[name]
            self.address[flat] = self.bytes
            if flat in p.update.sharded:
                parameter, first = next(iter(tensors.items()))
                self.kinds[flat] = first.kind
                self.name(flat, first.name.removesuffix(f".{parameter.name}"))
                self.raw_bytes += flat.bytes
                self.bytes += aligned(flat.bytes)
                return
        itemsize = 0
        for parameter, t in tensors.items():
            itemsize = t.dtype.bytes
            self.name(t, t.name)
            self.address[t] = self.bytes + region.offsets[parameter.name] * itemsize
            self.raw_bytes += t.bytes
        self.bytes += aligned(region.elements * itemsize)

    def join(self, graph: Graph, prefix: str) -> None:
        """Place what outlives another program of the same model: tensors of the same name and shape are the same,
        others are named with the prefix."""
        own = (p.tensor for p in graph.parameters)
        for t in (*own, *graph.states, *graph.inputs.values(), *graph.scalars, *graph.caches):
            same = self.names.get(t.name)
            if same is not None and (same.shape, same.dtype) == (t.shape, t.dtype):
                self.address[t] = self.address[same]
                continue
            self.add(t, t.name if same is None else f"{prefix}.{t.name}")
            if t in graph.scalars:
                self.defaults[t] = graph.scalars[t]

    def add(self, t: Tensor, name: str) -> None:
        if t in self.address:
            return
        self.name(t, name)
        self.address[t] = self.bytes
        self.bytes += aligned(t.bytes)
        self.raw_bytes += t.bytes

    def name(self, t: Tensor, name: str) -> None:
        if name in self.names:
            raise self.taken(name)
        self.names[name] = t

    def taken(self, name: str) -> TcError:
        """The error for a name of the model that is also one of the step: `loss`, results such as `norm`."""
        model = self.programs.graph.model
        spans = {c.name: c.span for c in model.caches} | {q.name: q.span for q in model.states}
        spans |= {i.name: i.span for i in model.inputs} | {q.name: q.span for q in model.params}
        of = "loss, logits, the step's number, and what the ops behind `lr by` and `norm by` give"
        return TcError(
            f"'{name}' of the model is also the name of a tensor that the step has of its own",
            spans.get(name, model.span),
            f"call it otherwise, such as {name}_w: a step's own names are {of}",
        )

    def result(self, t: Tensor, name: str, shape: tuple[int, ...]) -> None:
        self.add(t, name)
        self.shapes[t] = shape
        self.kinds[t] = "output"

    def placed(self, launches: Sequence[PlannedLaunch], plan: ProgramPlan) -> tuple[Launch, ...]:
        """Launches with the byte offset of each operand."""
        address = self.address
        out = []
        for launch in launches:
            offsets = []
            for v in launch.views:
                base = address.get(v.tensor)
                if base is None:
                    base = self.bytes + plan.offsets[v.tensor]
                offsets.append(base + v.offset * v.tensor.dtype.bytes)
            out.append(Launch(launch.key, tuple(offsets), launch.label))
        return tuple(out)

    def slots(self, plans: Mapping[str, ProgramPlan], positions: Mapping[str, int], end: int) -> dict[str, Slot]:
        """All named regions: the persistent ones, then those of the programs in `positions`, each of which
        has its first launch at the given position; `end` is the last position of all."""
        slots = {n: self.slot(n, t, self.address[t], 0, end) for n, t in self.names.items()}
        for program, start in positions.items():
            plan = plans[program]
            for t, offset in plan.offsets.items():
                name, n = t.name, 1
                while name in slots:
                    n += 1
                    name = f"{t.name}.{n}"
                first, last = plan.ranges[t]
                slots[name] = self.slot(name, t, self.bytes + offset, start + first, start + last)
        return slots

    def gradient_slots(self, pieces: Sequence[Piece], end: int) -> tuple[Slot, ...]:
        """The parts of gradients whose memory others have between the launches at which they are there."""
        begin = self.bytes - sum(p.bytes for p in pieces)
        for p in pieces:
            if p.gradient is not None:
                at, place = begin + p.offset, self.address[p.gradient]
                assert place <= at and at + p.bytes <= place + p.gradient.bytes, p.gradient.name
        return tuple(
            Slot(t.name, t.kind, t.dtype, (p.bytes // t.dtype.bytes,), begin + p.offset, p.bytes, first, last, t.owner)
            for p in pieces
            if (t := p.gradient) is not None
            for first, last in ranges(p, end)
        )

    def slot(self, name: str, t: Tensor, offset: int, first: int, last: int) -> Slot:
        kind, shape = self.kinds.get(t, t.kind), self.shapes.get(t, t.shape)
        assert offset % ALIGNMENT == 0, name
        return Slot(name, kind, t.dtype, shape, offset, t.bytes, first, last, t.owner)
