"""A comparison drawn: step times, time by kernel, the roofline, memory over time, the plan over its launches."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tcomp.runtime.bench.measure import Comparison
from tcomp.runtime.bench.report import roofline, title

COLOURS = ("#4e79a7", "#e15759", "#f28e2b", "#9c755f", "#b07aa1")
_KERNELS = 14


def draw(c: Comparison, path: Path | io.BytesIO, form: str | None = None) -> None:
    """Write the picture; its form by the path's suffix, or as given."""
    timed = bool(c.programs[0].clock)
    panels = [p for p in (_steps, _kernels, _roofline) if timed and (p is _steps or c.profile)] + [_memory]
    panels += [_plan] if c.profile else []
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(14, 4.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for i, panel in enumerate(panels):
        panel(c, figure.add_subplot(rows, 2, i + 1))
    figure.suptitle(title(c))
    figure.savefig(path, dpi=110, format=form)


def _steps(c: Comparison, axes: Axes) -> None:
    for i, r in enumerate(c.programs):
        ms = [s * 1e3 for s in r.seconds]
        axes.plot(range(1, len(ms) + 1), ms, "o-", ms=4, lw=0.8, color=COLOURS[i % len(COLOURS)],
                  label=f"{r.program}: median {r.median * 1e3:.1f} ms")  # fmt: skip
        axes.axhline(r.median * 1e3, color=COLOURS[i % len(COLOURS)], lw=0.8, ls="--")
    axes.set(title="Step times (programs took turns)", xlabel="timed step", ylabel="ms")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)


def _kernels(c: Comparison, axes: Axes) -> None:
    shown = c.profile["kernels"][:_KERNELS]
    median = c.programs[0].median * 1e3
    names = [f"{k['kernel']} x{k['launches']}" for k in shown]
    axes.barh(range(len(shown)), [k["share"] * median for k in shown], color=COLOURS[0])
    axes.set_yticks(range(len(shown)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set(title="tcomp: time by kernel (all launches of a step)", xlabel="ms")


def _roofline(c: Comparison, axes: Axes) -> None:
    median = c.programs[0].median
    points = [k for k in c.profile["kernels"] if k["flops"] and k["bytes"] and k["share"]]
    x = [k["flops"] / k["bytes"] for k in points]
    y = [k["flops"] / (k["share"] * median) / 1e9 for k in points]
    axes.scatter(x, y, s=[20 + 600 * k["share"] for k in points], color=COLOURS[0], alpha=0.5)
    for k, a, b in list(zip(points, x, y, strict=True))[:8]:
        axes.annotate(k["kernel"], (a, b), fontsize=7, ha="right" if a > max(x) / 4 else "left")
    limits = max((r for k in points if (r := roofline(c, k.get("instruction", "")))), default=None)
    if limits and x:
        peak, bandwidth = (v / 1e9 for v in limits)
        low, high = min(x) / 2, max(*x, 2 * peak / bandwidth)
        axes.plot([low, peak / bandwidth, high], [low * bandwidth, peak, peak], color="black", lw=1,
                  label=f"measured: {peak:.0f} GFLOP/s, {bandwidth:.0f} GB/s")  # fmt: skip
        axes.legend(fontsize=8)
    axes.set(xscale="log", yscale="log", title="tcomp: roofline (area: share of the step)",
             xlabel="FLOP per byte of operands", ylabel="GFLOP/s")  # fmt: skip


def _memory(c: Comparison, axes: Axes) -> None:
    for i, r in enumerate(c.programs):
        axes.plot([t for t, _ in r.memory], [b / 2**20 for _, b in r.memory], color=COLOURS[i % len(COLOURS)],
                  label=f"{r.program}: peak {r.peak_rss / 2**20:.0f} MiB")  # fmt: skip
    axes.axhline(c.workload.state_bytes / 2**20, color="black", lw=0.6, ls=":")
    axes.set(title="Resident memory of a warm start (dotted: model state)",
             xlabel="seconds since the process started", ylabel="MiB")  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)


def _plan(c: Comparison, axes: Axes) -> None:
    plan = c.profile["plan"]
    live = [b / 2**20 for b in plan["live"]]
    bottom = 0.0
    for i, (kind, size) in enumerate(plan["kinds"].items()):
        axes.fill_between([0, len(live)], bottom, bottom + size / 2**20, color=COLOURS[i % 5], alpha=0.35, lw=0,
                          label=f"{kind} {size / 2**20:.0f} MiB")  # fmt: skip
        bottom += size / 2**20
    axes.step(range(len(live)), live, where="post", color="black", lw=1, label="live")
    axes.axhline(plan["arena"] / 2**20, color="black", lw=0.8, ls="--", label=f"arena {plan['arena'] / 2**20:.0f} MiB")
    axes.set(title="tcomp: planned bytes over the step's launches", xlabel="launch", ylabel="MiB")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, loc="lower right")
