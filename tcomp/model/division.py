"""A placed draft of a step that processes share -> its `Division`: vectors, shares, what differs from rank to rank.

All ranks have the same plan, the same lengths at the same places, but for operands that are shares of whole vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from tcomp.model.draft import Draft
from tcomp.model.flat import FlatLayout
from tcomp.model.optimizer import Update
from tcomp.model.plan import ProgramPlan
from tcomp.model.request import Sharing
from tcomp.model.step import Division, FlatVector, Part, Rows


def division(draft: Draft, plans: Mapping[str, ProgramPlan], sharing: Sharing) -> Division | None:
    """How the step is divided; None where it is not, or changes nothing."""
    p, address, base = draft.programs, draft.arena.address, draft.arena.bytes
    update = p.update
    if sharing.ranks == 1 or update is None:
        return None
    vectors: dict[str, FlatVector] = {}
    parts: dict[str, Part] = {}
    for name in p.regions if sharing.zero else ("g",):
        flat = update.flats[name]
        vectors[name] = FlatVector(address[flat], flat.dtype, flat in update.sharded)
        if flat in update.sharded:
            own = p.regions[name].parts
            parts |= {t.name: Part(name, t.kind, t.shape, p.layout.offsets[q.name]) for q, t in own.items()}
    scalars = {t.name for t in update.scalars}
    firsts = {f"first.{g.label}".replace(" ", "."): g.elements // sharing.ranks for g in p.layout.groups}
    join = p.joins
    assert join is not None
    came = {t: base + at for t, at in plans["sum"].offsets.items()}
    arrived = [Rows(came[t], prod(t.shape[1:]), t.dtype) for t in join.shares]
    sums = None if update.rows is None else Rows(address[update.rows], prod(update.rows.shape[1:]), update.rows.dtype)
    sent = ("w" if "w" in vectors else "p") if sharing.zero else "g"
    return Division(
        sharing.ranks,
        sharing.zero,
        tuple((g.start, g.elements) for g in p.layout.groups),
        vectors,
        dict(_shifts(draft, sharing)),
        {name: n for name, n in firsts.items() if sharing.zero and name in scalars},
        tuple(zip(_rows(p.layout, vectors["g"], sharing.ranks), arrived, strict=True)),
        tuple((address[t], Rows(came[rows], t.elements, t.dtype)) for t, rows in join.news.items()),
        sums,
        tuple(_rows(p.layout, vectors[sent], sharing.ranks)),
        parts,
        tuple(_behind(draft, update)),
    )


def _rows(layout: FlatLayout, v: FlatVector, ranks: int) -> Iterator[Rows]:
    """The groups of a whole flat vector as the ranks' shares of them."""
    for g in layout.groups:
        yield Rows(v.offset + g.start * v.dtype.bytes, g.elements // ranks, v.dtype)


def _behind(draft: Draft, update: Update) -> Iterator[tuple[int, int]]:
    """Offset and bytes of what makes groups of whole flat vectors as long as equal shares: behind their tensors."""
    layout = draft.programs.layout
    for name, r in draft.programs.regions.items():
        flat = update.flats[name]
        for group in layout.groups if flat not in update.sharded else ():
            members = [q.tensor for q in group.parameters if q.tensor in r.parts]
            if any(r.parts[t].shape != t.shape for t in members) or not members:
                continue  # (state of matrices' ops is as long as its tensors)
            used = r.offsets[members[-1].name] + layout.padded(members[-1])
            end = r.starts[group.label] + group.elements
            if used < end:
                yield draft.arena.address[flat] + used * flat.dtype.bytes, (end - used) * flat.dtype.bytes


def _shifts(draft: Draft, sharing: Sharing) -> Iterator[tuple[tuple[str, int, int], int]]:
    """The operands that are a rank's share of a whole vector, or its row of the norm's sums, and the bytes from one
    rank's to the next one's."""
    update = draft.programs.update
    assert update is not None
    whole = set(update.flats.values()) - update.sharded
    shares = {(g.start, g.elements // sharing.ranks) for g in draft.programs.layout.groups}
    for program in ("sum", "norm", "update") if sharing.zero else ("sum", "norm"):
        for i, launch in enumerate(draft.launches.get(program, ())):
            for o, view in enumerate(launch.views):
                if view.tensor in whole:
                    assert (view.offset, view.elements) in shares, f"{launch.label}: not a share of {view.tensor.name}"
                    yield (program, i, o), view.elements * view.tensor.dtype.bytes
                if view.tensor is update.rows and program == "norm":
                    yield (program, i, o), prod(view.tensor.shape[1:]) * view.tensor.dtype.bytes
