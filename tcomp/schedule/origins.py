"""The lines of a schedule that findings about the assembled kernel are told at: which directive takes what of a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tcomp.dsl.ast import NO_SPAN, Directive, MapLoops, Num, Tune, Use, names_in
from tcomp.ir.origins import Origins, TileSize
from tcomp.schedule.gpu.launch_flags import LaunchFlags

TILED = ("grid", "warp", "warpgroup", "lane", "unroll", "vec")
"""levels whose numbers are sizes of a block's tile, or of a thread's part of it (`grid.y` is one of `grid`)"""


def origins_of(
    directives: Iterable[Directive], uses: Mapping[str, Use], flags: LaunchFlags, values: Mapping[str, int | float]
) -> Origins:
    """Those of one kernel. `values` are the parameters' values."""
    directives = tuple(directives)
    instruction = next((u.span for u in uses.values()), NO_SPAN)
    return Origins(instruction, flags.span("producer"), _sizes(directives, values))


def _sizes(directives: tuple[Directive, ...], values: Mapping[str, int | float]) -> tuple[TileSize, ...]:
    """The largest first: a parameter's at its `tune` line, others at their loop's."""
    tunes = {d.name: d.span for d in directives if isinstance(d, Tune)}
    found: dict[str, TileSize] = {}
    for d in directives:
        if not isinstance(d, MapLoops):
            continue
        for level in d.levels:
            if level.kind.partition(".")[0] not in TILED:
                continue
            for size in level.args[:1]:
                for name in sorted(names_in(size) & set(tunes)):
                    found.setdefault(name, TileSize(name, int(values[name]), tunes[name]))
                if isinstance(size, Num) and size.value > 1:
                    name = f"{', '.join(d.loops)} -> {level.kind}({size.value})"
                    found.setdefault(name, TileSize(name, int(size.value), d.span))
    return tuple(sorted(found.values(), key=lambda s: -s.value))
