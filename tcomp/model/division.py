"""A placed draft of a step that processes share -> its `Division`: vectors, shares, what differs from rank to rank.

All ranks have the same plan, the same lengths at the same places, but for operands that are shares of whole vectors.
"""

from __future__ import annotations

from collections.abc import Iterator

from tcomp.model.draft import Draft
from tcomp.model.request import Sharing
from tcomp.model.step import Division, FlatVector, Part


def division(draft: Draft, sharing: Sharing) -> Division | None:
    """How the step is divided; None where it is not, or changes nothing."""
    p, address, names = draft.programs, draft.arena.address, draft.arena.names
    update = p.update
    if sharing.ranks == 1 or update is None:
        return None
    vectors: dict[str, FlatVector] = {}
    parts: dict[str, Part] = {}
    for name, tensors in ((n, r.parts) for n, r in p.regions.items()):
        flat, (start, elements) = update.flats[name], p.layout.span(tensors)
        vectors[name] = FlatVector(address[flat], flat.dtype, start, start + elements, flat in update.sharded)
        if flat in update.sharded:
            parts |= {t.name: Part(name, t.kind, t.shape, p.layout.offsets[q.name]) for q, t in tensors.items()}
    slots = {t: n for n, t in names.items()}
    scalars = {t.name for t in update.scalars}
    firsts = {f"first.{g.label}".replace(" ", "."): g.elements // sharing.ranks for g in p.layout.groups}
    sums = {n: tuple(slots[node.operands[n].tensor] for node in update.sums) for n in update.totals}
    return Division(
        sharing.ranks,
        sharing.zero,
        tuple((g.start, g.elements) for g in p.layout.groups),
        vectors,
        dict(_shifts(draft, sharing)),
        {name: n for name, n in firsts.items() if sharing.zero and name in scalars},
        {slots[t]: sums[n] for n, t in update.totals.items()},
        parts,
        tuple(slots[t] for t in p.news.values()),
    )


def _shifts(draft: Draft, sharing: Sharing) -> Iterator[tuple[tuple[str, int, int], int]]:
    """The operands that are a rank's share of a whole vector, and the bytes from one rank's to the next one's."""
    update = draft.programs.update
    assert update is not None
    whole = set(update.flats.values()) - update.sharded
    shares = {(g.start, g.elements // sharing.ranks) for g in draft.programs.layout.groups}
    for program in ("norm", "update") if sharing.zero else ("norm",):
        for i, launch in enumerate(draft.launches.get(program, ())):
            for o, view in enumerate(launch.views):
                if view.tensor in whole:
                    assert (view.offset, view.elements) in shares, f"{launch.label}: not a share of {view.tensor.name}"
                    yield (program, i, o), view.elements * view.tensor.dtype.bytes
