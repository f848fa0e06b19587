"""The text of `tcomp plan`: bytes by kind, the largest tensors, the peak launch and what is live there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from tcomp.amounts import bytes_apart, bytes_text
from tcomp.dsl.hints import count
from tcomp.ir.regions import SHARED, largest_region
from tcomp.ir.tile import Scope
from tcomp.model.step import KINDS, SHARED_BY_RANKS, TEMPORARY, Slot, Step


def plan_report(step: Step, threads: int = 1, largest: int = 12) -> RenderableType:
    """Tables for a terminal. Scratch is counted once per thread."""
    live = live_bytes(step)
    peak = int(live.argmax())
    at_peak = [s for s in pieces(step) if s.first <= peak <= s.last]
    return Group(
        f"{step.model} {step.config}: " + ", ".join(f"{k} = {v}" for k, v in step.dims.items()),
        "",
        _kinds(step, at_peak),
        "",
        _slots(f"The {largest} largest tensors", step.slots.values(), largest),
        "",
        escape(f"Peak: launch {peak} of {len(live)}, {launch_label(step, peak)}"),
        "",
        _slots("Live at the peak, besides what is there always", [s for s in at_peak if s.kind in TEMPORARY], largest),
        "",
        _totals(step, threads, at_peak),
        *_recompute(step),
    )


def plan_text(step: Step, threads: int = 1, largest: int = 12) -> str:
    """The report as plain text."""
    console = Console(width=110, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(plan_report(step, threads, largest))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def pieces(step: Step) -> list[Slot]:
    """All slots; gradients that share their memory as parts, each as long as it is there."""
    apart = {s.name for s in step.gradients}
    return [*(s for n, s in step.slots.items() if n not in apart), *step.gradients]


def live_bytes(step: Step) -> NDArray[np.int64]:
    """Bytes in use at each launch: of the micro-batch, then of the update. Memory that an output took over
    from an input counts once."""
    last = max(s.last for s in step.slots.values())
    always = 0
    starting: list[list[Slot]] = [[] for _ in range(last + 1)]
    for s in pieces(step):
        if s.kind in TEMPORARY or (s.first, s.last) != (0, last):
            starting[s.first].append(s)
        else:
            always += s.bytes
    total = np.empty(last + 1, np.int64)
    live: list[Slot] = []
    for i in range(last + 1):
        live = [s for s in live if s.last >= i] + starting[i]
        total[i] = always + _union(live)
    return total


def launch_label(step: Step, position: int) -> str:
    """The label of a launch, counted through the micro-batch and then what all of its step share."""
    main = "micro_first" if "micro_first" in step.programs else "forward"
    launches = [x for name in (main, *SHARED_BY_RANKS) for x in step.programs.get(name, ())]
    return launches[position].label if position < len(launches) else "the end"


def _union(slots: Sequence[Slot]) -> int:
    """Bytes covered by at least one of the slots."""
    covered = end = 0
    for s in sorted(slots, key=lambda s: s.offset):
        covered += max(0, s.offset + s.bytes - max(end, s.offset))
        end = max(end, s.offset + s.bytes)
    return covered


def over_gradients(step: Step, live: Sequence[Slot]) -> int:
    """Bytes of live temporary tensors that lie in the memory of gradients."""
    begin, end = min(s.offset for s in step.gradients), max(s.offset + s.bytes for s in step.gradients)
    cut = [(max(s.offset, begin), min(s.offset + s.bytes, end), s) for s in live if s.kind in TEMPORARY]
    return _union([replace(s, offset=a, bytes=b - a) for a, b, s in cut if a < b])


def _kinds(step: Step, at_peak: Sequence[Slot]) -> Table:
    table = Table(title="Bytes by kind")
    table.add_column("kind")
    for c in ("tensors", "bytes", "live at the peak", "share of the arena"):
        table.add_column(c, justify="right")
    for kind in KINDS:
        all_, peak = ([s for s in ss if s.kind == kind] for ss in (step.slots.values(), at_peak))
        if all_:
            n = _union(peak)
            table.add_row(
                kind,
                str(len(all_)),
                bytes_text(sum(s.bytes for s in all_)),
                bytes_text(n),
                f"{n / step.arena_bytes:.1%}",
            )
    return table


def _slots(title: str, slots: Iterable[Slot], largest: int) -> Table:
    table = Table(title=title)
    for c in ("tensor", "kind", "shape"):
        table.add_column(c)
    for c in ("bytes", "offset", "live at launches"):
        table.add_column(c, justify="right")
    for s in sorted(slots, key=lambda s: -s.bytes)[:largest]:
        live = f"{s.first} - {s.last}" if s.kind in TEMPORARY else "all"
        shape = escape(f"{s.dtype}[{', '.join(map(str, s.shape))}]")
        table.add_row(escape(s.name), s.kind, shape, bytes_text(s.bytes), f"{s.offset:#x}", live)
    return table


def _recompute(step: Step) -> list[RenderableType]:
    """What the plan chose to compute again, nothing when it chose nothing."""
    r = step.recompute
    if r is None:
        return []
    why = "since it costs next to nothing" if r.limit is None else f"to fit {bytes_text(r.limit)}"
    table = Table(title=f"Computed again in the backward pass, {why}")
    for c in ("op", "results (of the first layer)"):
        table.add_column(c)
    for c in ("layers", "bytes not kept", "predicted cost"):
        table.add_column(c, justify="right")
    for row in r.rows:
        names = escape(", ".join(row.results))
        table.add_row(escape(row.op), names, str(row.layers), bytes_text(row.bytes), f"{row.share:.2%}")
    before, after = bytes_apart(r.before, r.after)
    text = (
        f"All memory of a step: {before} without, {after} with it. Predicted cost: "
        f"{r.flops / 1e9:,.2f} GFLOP again, {r.share:.2%} of the step's time. Results are bitwise the same."
    )
    if r.limit is None:
        text += " `--memory unlimited` keeps everything, `--memory 2GB` fits the step into so much."
    return ["", table, "", text]


def _totals(step: Step, threads: int, at_peak: Sequence[Slot]) -> Table:
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    total = step.arena_bytes + step.scratch_bytes * threads + step.team_bytes
    table.add_row("arena", f"{bytes_text(step.arena_bytes)} ({step.arena_bytes:,} bytes)")
    table.add_row("lower bound (most bytes live at once)", f"{step.lower_bound_bytes:,} bytes")
    table.add_row("arena / lower bound", f"{step.arena_bytes / step.lower_bound_bytes:.4f}")
    if step.gradients:
        n = over_gradients(step, at_peak)
        table.add_row("activations in the place of gradients to come", f"{bytes_text(n)} at the peak")
    most = {scopes: largest_region(step.kernels.values(), *scopes) for scopes in ((Scope.SCRATCH,), SHARED)}
    scratch, team = (escape(f", most by {name}") if name else "" for name in most.values())
    table.add_row(f"scratch, {count(threads, 'thread')}{scratch}", bytes_text(step.scratch_bytes * threads))
    table.add_row(f"shared by the threads{team}", bytes_text(step.team_bytes))
    table.add_row("all memory of a step", bytes_text(total))
    return table
