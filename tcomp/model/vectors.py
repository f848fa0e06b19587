"""The flat vectors as tensors of the update, and which part of which one an operand of a group's op is."""

from __future__ import annotations

from collections.abc import Mapping

from tcomp.model.flat import FlatGroup, FlatLayout, Region
from tcomp.model.graph import Tensor, View
from tcomp.model.request import Sharing


class FlatVectors:
    """`flats` by the names of `regions` ("p", "w", "g", those of the states). Under ZeRO-1 a process keeps only a share
    of those that are `sharded`: all but what the model reads and the gradients. `owner`: the op that has them."""

    def __init__(self, layout: FlatLayout, regions: Mapping[str, Region], sharing: Sharing, owner: str) -> None:
        self.layout, self.regions, self.ranks = layout, regions, sharing.ranks
        read = {"g", "w"} if "w" in regions else {"g", "p"}
        shares = {n: sharing.ranks if sharing.zero and n not in read else 1 for n in regions}
        self.flats = {
            n: Tensor(f"flat.{n}", next(iter(r.parts.values())).dtype, (r.elements // shares[n],), "parameter", owner)
            for n, r in regions.items()
        }
        self.sharded = frozenset(t for n, t in self.flats.items() if shares[n] > 1)

    def part(self, name: str, group: FlatGroup | None, share: bool = False) -> View | None:
        """A group's part of a flat vector (the first process's `share` of it), or (None) all of one over all
        parameters. None where there is no such."""
        key = self.key(name, group)
        if key is None:
            return None
        flat, ranks = self.flats[key], self.ranks if share else 1
        start, elements = (0, self.layout.elements)
        if group is not None:
            start, elements = self.regions[key].starts[group.label], group.elements
        return View(flat, start // (ranks if flat in self.sharded else 1), (elements // ranks,))

    def key(self, name: str, group: FlatGroup | None) -> str | None:
        """The name of the flat vector that has a group's part, or (None) all parameters'; None where there is none."""
        wanted = self.layout.groups if group is None else (group,)
        for key in (name, f"{name} {group.dtype}") if group is not None else (name,):
            if key in self.regions and all(g.label in self.regions[key].starts for g in wanted):
                return key
        return None
