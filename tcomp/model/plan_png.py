"""The plan as a picture: launches from left to right, addresses from bottom to top, one box per tensor."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from tcomp.amounts import bytes_text
from tcomp.model.report import launch_label, live_bytes, pieces
from tcomp.model.step import KINDS, TEMPORARY, Step

COLOURS = {
    "parameter": "#4e79a7",
    "gradient": "#f28e2b",
    "state": "#b07aa1",
    "master": "#edc1d2",
    "input": "#59a14f",
    "scalar": "#9c755f",
    "activation": "#76b7b2",
    "workspace": "#edc948",
    "output": "#e15759",
}


def draw_plan(step: Step, path: Path) -> None:
    """Write the picture (PNG, or what the suffix says)."""
    figure = Figure(figsize=(14, 9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    live = live_bytes(step)
    used = [k for k in KINDS if any(s.kind == k for s in step.slots.values())]
    for kind in used:
        boxes = [
            Rectangle((s.first, s.offset / 2**20), s.last - s.first + 1, s.bytes / 2**20)
            for s in pieces(step)
            if s.kind == kind
        ]
        axes.add_collection(
            PatchCollection(boxes, facecolor=COLOURS[kind], edgecolor="white", linewidth=0.3, alpha=0.9)
        )
    persistent = sum(s.bytes for s in step.slots.values() if s.kind not in TEMPORARY)
    for s in sorted(step.slots.values(), key=lambda s: -s.bytes)[:24]:
        if s.bytes * 40 > step.arena_bytes and (s.last - s.first + 1) * 12 > len(live):
            middle = (s.first + s.last + 1) / 2, (s.offset + s.bytes / 2) / 2**20
            axes.text(*middle, s.name, ha="center", va="center", fontsize=7)
    peak = int(live.argmax())
    axes.axvline(peak + 0.5, color="black", linewidth=0.6, linestyle=":")
    axes.axhline(persistent / 2**20, color="black", linewidth=0.6, linestyle=":")
    axes.axhline(step.lower_bound_bytes / 2**20, color="black", linewidth=0.8, linestyle="--")
    axes.set_xlim(0, len(live))
    axes.set_ylim(0, step.arena_bytes / 2**20 * 1.02)
    axes.set_xlabel(f"launch (dotted: the peak, {launch_label(step, peak)})")
    axes.set_ylabel("address, MiB (dashed: the lower bound)")
    sizes = ", ".join(f"{k} = {v}" for k, v in step.dims.items())
    ratio = step.arena_bytes / step.lower_bound_bytes
    axes.set_title(f"{step.model} {step.config}: {sizes}\narena {bytes_text(step.arena_bytes)}, ratio {ratio:.4f}")
    axes.legend(handles=[Patch(color=COLOURS[k], label=k) for k in used], loc="upper right", fontsize=8)
    figure.savefig(path, dpi=120)
