"""A comparison as text: a Markdown table for people and documents, a dictionary for JSON."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from tcomp.runtime.bench.measure import Comparison, Measured, difference
from tcomp.runtime.bench.workload import Workload

BUSY = 0.1
"""Share of the processors taken by others from which on a report warns."""
_SHOWN = 12


def as_json(c: Comparison) -> dict[str, Any]:
    """Everything that was measured, with what follows from it."""
    programs = []
    for r in c.programs:
        derived = {
            "median": r.median,
            "spread": r.spread,
            "ratio": _ratio(c, r),
            "compiling": r.compiling,
            "others_share": r.noise.share,
            "loss_difference": difference(c.programs[0], r),
        }
        programs.append({**asdict(r), **derived})
    return {
        "workload": _workload(c.workload),
        "programs": programs,
        "ceilings": c.ceilings,
        "profile": c.profile,
        "others_share": c.noise.share,
    }


def _workload(w: Workload) -> dict[str, Any]:
    """What was measured, without levels: the request's values beside the others."""
    plain = asdict(w)
    asked = plain.pop("request")
    sizes = {"batch": w.batch, "length": w.length, "dtype": w.dtype, "file": asked["model"], "overrides": asked["dims"]}
    return {**plain, **sizes, **{name: asked[name] for name in ("config", "memory_limit", "recompute", "lock")}}


def title(c: Comparison) -> str:
    """`gpt2 124M, B x T = 4 x 64, f32, 2 threads`"""
    w = c.workload
    where = f"{w.threads} threads" if w.device == "cpu" else f"{w.device} {w.gpu}".strip()
    return f"{w.model} {w.request.config}, B x T = {w.batch} x {w.length}, {w.dtype}, {where}"


def markdown(c: Comparison) -> str:
    """The whole report. Ratios are to tcomp: above 1, the program takes more."""
    parts = [f"### {title(c)}", "", *_steps(c), "", *_starts(c), "", *_memory(c)]
    if c.ceilings and c.programs[0].clock:
        parts += ["", "Ceilings of the machine:", ""]
        for x in c.ceilings:
            spread = f" ({x['low']:.1f} .. {x['high']:.1f})" if x["low"] < x["high"] else ""
            parts.append(f"- {x['name']}: {x['median']:.1f} {x['unit']}{spread}")
    if c.profile:
        parts += ["", *_kernels(c)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join([*parts, "", *_remarks(c)])) + "\n"


def _steps(c: Comparison) -> list[str]:
    if not c.programs[0].clock:
        return ["The virtual GPU simulates: its times say nothing, so none are given."]
    lines = [
        "| program | step, median ms | least .. greatest | spread | tokens/s | ratio |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for r in c.programs:
        low, high = min(r.seconds) * 1e3, max(r.seconds) * 1e3
        lines.append(
            f"| {r.program} | {r.median * 1e3:.1f} | {low:.1f} .. {high:.1f} | {r.spread:.0%} "
            f"| {c.workload.tokens / r.median:.0f} | {_ratio(c, r):.2f} |"
        )
    return lines


def _starts(c: Comparison) -> list[str]:
    lines = [
        "| program | process start to first step: cold, s | of it compiling | warm, s | cold ratio | warm ratio |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    base = c.programs[0]
    for r in c.programs if base.clock else []:
        lines.append(
            f"| {r.program} | {r.cold:.2f} | {r.compiling:.2f} | {r.warm:.2f} "
            f"| {r.cold / base.cold:.2f} | {r.warm / base.warm:.2f} |"
        )
    return lines if base.clock else []


def _memory(c: Comparison) -> list[str]:
    """Peak memory, and how much of it is not the model's state (16 bytes a parameter in f32)."""
    base, state = c.programs[0], c.workload.state_bytes
    name = "peak RSS" if c.workload.device == "cpu" else "peak GPU memory"
    lines = [f"| program | {name}, MiB | beyond the model's state, MiB | ratio |", "|---|---:|---:|---:|"]
    for r in c.programs if base.clock else []:
        used = memory_used(c, r)
        lines.append(
            f"| {r.program} | {used / 2**20:.0f} | {(used - state) / 2**20:.0f} | {used / memory_used(c, base):.2f} |"
        )
    lines = lines if base.clock else []
    plan = c.profile.get("plan")
    if plan:
        arena, temporary = plan["arena"] / 2**20, plan["temporary"] / 2**20
        lines += [
            "",
            f"tcomp's plan: arena {arena:.0f} MiB ({plan['arena'] / plan['lower_bound']:.4f} of the lower bound), "
            f"activations and workspace {temporary:.0f} MiB of it.",
        ]
    return lines


def memory_used(c: Comparison, r: Measured) -> int:
    """Bytes that count on this device: of the GPU, else the process's."""
    return r.device_bytes if c.workload.device.startswith("cuda") else r.peak_rss


def _kernels(c: Comparison) -> list[str]:
    """tcomp's kernels by their share of the step; on a machine whose times count, with what they reach."""
    kernels = c.profile["kernels"]
    median = c.programs[0].median
    if not c.programs[0].clock:
        return []
    lines = [
        "| tcomp's kernel | launches | ms | share | GFLOP/s | GB/s at least | roofline share |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for k in kernels[:_SHOWN]:
        seconds = k["share"] * median
        best = roofline_seconds(c, k)
        share = f"{best / seconds:.0%}" if best and seconds else "-"
        lines.append(
            f"| {k['kernel']} | {k['launches']} | {seconds * 1e3:.2f} | {k['share']:.1%} "
            f"| {k['flops'] / seconds / 1e9:.1f} | {k['bytes'] / seconds / 1e9:.1f} | {share} |"
        )
    rest = kernels[_SHOWN:]
    if rest:
        launches, share = (sum(k[n] for k in rest) for n in ("launches", "share"))
        lines.append(f"| {len(rest)} others | {launches} | {share * median * 1e3:.2f} | {share:.1%} | | | |")
    return lines


def roofline(c: Comparison, instruction: str = "") -> tuple[float, float] | None:
    """FLOP/s and bytes/s of the measured ceilings, of a kernel that uses this instruction."""
    general = [x for x in c.ceilings if not x.get("instruction")]
    own = [x for x in c.ceilings if instruction and x.get("instruction") == instruction]
    by_unit = {x["unit"]: x["median"] * 1e9 for x in (*general, *own)}
    return (by_unit["GFLOP/s"], by_unit["GB/s"]) if {"GFLOP/s", "GB/s"} <= set(by_unit) else None


def roofline_seconds(c: Comparison, kernel: dict[str, Any]) -> float:
    """The least time for a kernel's launches under the ceilings; 0 when they are unknown."""
    limits = roofline(c, kernel.get("instruction", ""))
    return max(kernel["flops"] / limits[0], kernel["bytes"] / limits[1]) if limits else 0.0


def _remarks(c: Comparison) -> list[str]:
    base, others = c.programs[0], c.programs[1:]
    lines = []
    if others:
        worst = max(difference(base, r) for r in others)
        lines.append(f"Losses of all steps agree to {worst:.1e} relative.")
    if base.clock:
        share = c.noise.share
        lines.append(f"Processor time taken by others during the turns: {share:.0%}.")
        if share > BUSY:
            lines.append("The machine was busy: trust the ratios more than the times, and neither much.")
    return lines


def _ratio(c: Comparison, r: Measured) -> float:
    return r.median / c.programs[0].median if c.programs[0].median else 0.0
