"""The built step: every buffer placed, every launch listed. What an executor runs and `tcomp plan` prints.

Given by `tcomp.model.build.build_step`; pure data, independent of any device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tcomp.dsl.ast import DType
from tcomp.dsl.dims import Number
from tcomp.ir.tile import Kernel
from tcomp.model.placement import ALIGNMENT

KINDS = (
    "parameter", "master", "gradient", "state", "input", "scalar", "cache", "activation", "workspace", "received",
    "output",
)  # fmt: skip

TEMPORARY = ("activation", "workspace", "received")
"""kinds of which nothing lasts from one program to the next"""
SHARED_BY_RANKS = ("update", "norm", "sum")
"""programs that are about flat vectors, of which ranks have shares"""
FLAT = ("parameter", "master", "gradient", "state")
"""kinds that lie side by side in flat vectors"""


@dataclass(frozen=True)
class Slot:
    """A named region of the arena. `first`/`last` are launch positions between which it is live (both
    inclusive; persistent slots have first = 0 and last = the end of the step). `owner` says who made it."""

    name: str
    kind: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    bytes: int
    first: int
    last: int
    owner: str = ""


@dataclass(frozen=True)
class Launch:
    """Run `kernel` (key of Step.kernels) with operand i at `arena + offsets[i]` (bytes)."""

    kernel: str
    offsets: tuple[int, ...]
    label: str


@dataclass(frozen=True)
class FlatVector:
    """A flat vector over all parameters that are trained, `offset` bytes from the arena's beginning. Where it is
    `sharded`, only one rank's shares of all groups are there, side by side."""

    offset: int
    dtype: DType
    sharded: bool = False


@dataclass(frozen=True)
class Part:
    """A tensor that lies at element `start` of the flat vector `vector`, of which a rank has its share only."""

    vector: str
    kind: str
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Rows:
    """Memory of [ranks, elements]: row r is rank r's. `offset` is from the arena's beginning, in bytes."""

    offset: int
    elements: int
    dtype: DType

    @property
    def bytes(self) -> int:
        """Of one row."""
        return self.elements * self.dtype.bytes

    def row(self, rank: int) -> int:
        """Where a rank's row begins."""
        return self.offset + rank * self.bytes


@dataclass(frozen=True)
class Division:
    """How a step is divided among `ranks` processes. `groups` are first element and length of each parameter group in
    the flat vectors; rank r has the r-th of so many equal shares of each. `vectors` are those that ranks exchange or
    keep a share of, by the optimizer's names: `g` are gradients, `w` parameters, `p` what is updated (parameters, or
    their master copies). `behind` are offset and bytes of what is in flat vectors for the sake of equal shares only.

    A step is planned for rank 0. For another one, operands of the `shifts` (program, launch, operand -> bytes a rank)
    lie further on, and random numbers begin at other places: `firsts` (scalar slot -> elements a rank).

    Behind the micro-batches row r of each first of `scattered` goes to rank r, into the sender's row of the second; and
    what lies at each first of `joined` (an offset) to all ranks, into the sender's row of the second. Program "sum"
    joins what has come. Behind program "norm" each rank's row of `sums` goes to all, and its rows of `spread` do: its
    share of the summed gradients before the update, or (ZeRO-1) of the parameters behind it.

    `parts` are tensors of which each rank has a share only, by the names that checkpoints know them by.
    """

    ranks: int
    zero: int
    groups: tuple[tuple[int, int], ...]
    vectors: Mapping[str, FlatVector]
    shifts: Mapping[tuple[str, int, int], int] = field(default_factory=dict)
    firsts: Mapping[str, int] = field(default_factory=dict)
    scattered: tuple[tuple[Rows, Rows], ...] = ()
    joined: tuple[tuple[int, Rows], ...] = ()
    sums: Rows | None = None
    spread: tuple[Rows, ...] = ()
    parts: Mapping[str, Part] = field(default_factory=dict)
    behind: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class ParameterInit:
    """How to fill a parameter at the start: zeros, ones, normal(std) or uniform(bound). `master` is the slot of its
    master copy ("" without one): that one gets the values, the parameter their rounding. One that is `frozen` is
    trained by no group."""

    slot: str
    kind: str
    value: float
    group: str
    master: str = ""
    frozen: bool = False


@dataclass(frozen=True)
class Recomputed:
    """Results of one op of the model's text that are computed again for the backward pass: `results` names the first
    layer's, `layers` how many layers it is done in, `bytes` what is no longer kept, `share` the predicted part of the
    step's time that it adds."""

    op: str
    results: tuple[str, ...]
    layers: int
    bytes: int
    share: float


@dataclass(frozen=True)
class Recompute:
    """What the plan computes again, because of a memory budget of `limit` bytes, or (None) because it costs next to
    nothing. `before` and `after` are bytes of all memory of a step, `flops` the arithmetic done twice, `share` the
    predicted part of the step's time that it adds."""

    limit: int | None
    before: int
    after: int
    flops: int
    share: float
    rows: tuple[Recomputed, ...]


@dataclass(frozen=True)
class Step:
    """A model's whole training step (or inference pass) at fixed sizes.

    `programs`: "micro_first" (forward and backward, gradients written), "micro_next" (gradients
    accumulated; only when accumulation > 1), "update" (learning rate, norm, optimizer), "forward" (loss and logits
    only), "prefill" (a decoding step's: many positions into the caches at once); of a divided step "sum" (what ranks
    have sent each other becomes this rank's share of the gradients) and "norm" (sums over this share, which come before
    the update).
    `hyper` are the optimizer's scalars and their default values, by slot: "hyper.peak_lr", or
    "hyper.matrices.weight_decay" of a group. `scalars` are the values of all scalar slots when a run starts: those
    of `hyper`, "loss_gradient" (1 / accumulation), "step" (i32, counts from 0), constants of forward ops,
    "batch_number" where the model reads it (i32, written before each batch). An
    executor writes them when it starts. `evaluation` has the values that some of them have while a step that trains is
    evaluated (program "forward"). The update's launches are at positions after those of a micro-batch.
    Results: slots "loss", "lr", "norm" (f32 scalars) and "logits" when the program keeps them.
    """

    model: str
    config: str
    dims: Mapping[str, Number]
    slots: dict[str, Slot]
    arena_bytes: int
    lower_bound_bytes: int
    scratch_bytes: int
    """per thread"""
    team_bytes: int
    kernels: dict[str, Kernel]
    programs: dict[str, tuple[Launch, ...]]
    parameters: tuple[ParameterInit, ...]
    inputs: dict[str, int] = field(default_factory=dict)
    """input slot -> exclusive bound of its values (0: unbounded)"""
    hyper: dict[str, float] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)
    evaluation: dict[str, float] = field(default_factory=dict)
    recompute: Recompute | None = None
    """what is computed again by the plan's own choice, None when nothing"""
    precision: str = "f32"
    """the recipe's name"""
    gradients: tuple[Slot, ...] = ()
    """The parts of gradients, with the launches at which each is there (once for those of the step before), where
    activations have their memory between: gradients then have their values from the end of a micro-batch until the next
    program begins"""
    threads: int = 1
    """of a CPU, the fewest that run any of its kernels: tiles have room for the share that each then gets"""
    states: tuple[str, ...] = ()
    """slots of the model's own states, which forward and backward read"""
    writes: bool = False
    """the model names logits of what follows its tokens"""
    division: Division | None = None
    """how it is divided among ranks, None of a step of one process"""

    def zeros(self) -> Iterator[tuple[int, int]]:
        """Offset and bytes of what must be zero when a run starts, because no launch writes it, but the norm and the
        update read it: what lies behind each tensor of the flat vectors (`flat.py`), and gradients, or parts of them,
        of parameters that the loss does not depend on. Who gives memory that is not zero has to clear it."""
        apart = {*self.states, *(p.slot for p in self.parameters if p.frozen)}
        types = {s.dtype.bytes for n, s in self.slots.items() if s.kind == "parameter" and n not in apart}
        unit = ALIGNMENT // min(types, default=ALIGNMENT)
        for name, s in self.slots.items():
            size = -(s.bytes // s.dtype.bytes) % unit * s.dtype.bytes
            if s.kind in FLAT and name not in apart and size:
                yield s.offset + s.bytes, size
        d = self.division
        if d is not None:
            yield from d.behind
            elements = sum(n for _, n in d.groups) // d.ranks
            yield from ((v.offset, elements * v.dtype.bytes) for v in d.vectors.values() if v.sharded)
        written = sorted(self._written("micro_first"))
        for s in (s for s in self.slots.values() if s.kind == "gradient"):
            at, end = s.offset, s.offset + s.bytes
            for start, stop in (*((a, b) for a, b in written if a < end and b > at), (end, end)):
                if at < start:
                    yield at, start - at
                at = max(at, stop)

    def idle_hyper(self) -> frozenset[str]:
        """Hyperparameters, by name, that the update of no parameter depends on: all that comes of them are results
        to be shown (`lr`), in whose place each parameter group has a value of its own."""
        read: list[tuple[int, int]] = []
        shown = {s.offset for s in self.slots.values() if s.kind == "output"}
        shown -= {s.offset for s in self.slots.values() if s.kind != "output"}
        for program in ("update", "norm"):  # from the last launch to the first
            for launch in reversed(self.programs.get(program, ())):
                kernel = self.kernels[launch.kernel]
                placed = [(o.name, at, at + o.bytes) for o, at in zip(kernel.operands, launch.offsets, strict=True)]
                if any(at not in shown or _meets(read, at, end) for n, at, end in placed if n in kernel.writes):
                    read += [(at, end) for _, at, end in placed]
        return frozenset(n.removeprefix("hyper.") for n in self.hyper if not _meets(read, *self._place(n)))

    def _place(self, slot: str) -> tuple[int, int]:
        """A slot's first byte, and the one behind its last."""
        s = self.slots[slot]
        return s.offset, s.offset + s.bytes

    def _written(self, program: str) -> Iterator[tuple[int, int]]:
        """First byte and the one behind the last of all that launches of a program write."""
        for launch in self.programs.get(program, ()):
            kernel = self.kernels[launch.kernel]
            for o, at in zip(kernel.operands, launch.offsets, strict=True):
                if o.name in kernel.writes:
                    yield at, at + o.bytes

    def memory_bytes(self, threads: int) -> int:
        """All memory of a run: the arena, `threads` threads' scratch and what they share."""
        return self.arena_bytes + self.scratch_bytes * threads + self.team_bytes


def _meets(ranges: list[tuple[int, int]], at: int, end: int) -> bool:
    """Whether any of the byte ranges has a byte in common with one from `at` up to `end`."""
    return any(a < end and at < b for a, b in ranges)
