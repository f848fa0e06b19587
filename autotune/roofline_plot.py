"""The roofline figure: each kernel of a step at its arithmetic intensity and predicted rate, under the ceilings."""

from __future__ import annotations

from pathlib import Path

from tcomp.autotune.gpu_predict import StepPrediction
from tcomp.machine.gpu import GpuMachine

COLOURS = {
    "tensor": "tab:purple", "fma": "tab:blue", "issue": "tab:cyan", "special": "tab:olive",
    "shared memory": "tab:brown", "L2": "tab:orange", "HBM": "tab:red", "latency": "tab:gray", "launch": "black",
}  # fmt: skip


SHOWN = 1e-3
"""Kernels that take less than this share of the step are left out."""


def plot(step: StepPrediction, machine: GpuMachine, path: Path) -> None:
    """Write the figure as PNG. A marker's area follows the kernel's share of the step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6))
    x = [2.0**e for e in range(-4, 15)]
    ceilings = {"f32 FMA": machine.f32_flops}
    ceilings |= {f"{t} matrix units": r for t, r in machine.tensor_flops if t in ("bf16", "e4m3")}
    for name, rate in ceilings.items():
        axes.plot(x, [min(rate, i * machine.memory_bandwidth) / 1e12 for i in x], color="0.6", lw=1)
        axes.annotate(name, (x[-1], rate / 1e12), ha="right", va="bottom", fontsize=8, color="0.4")
    seen = set()
    for k, n in step.kernels:
        flops, moved = sum(p.flops for p in k.launches), sum(p.hbm_bytes for p in k.launches)
        share = k.seconds * n / step.seconds
        if flops <= 0 or moved <= 0 or share < SHOWN:
            continue
        at = flops / moved, flops / k.seconds / 1e12
        label = k.binding if k.binding not in seen else None
        seen.add(k.binding)
        axes.scatter(*at, s=20 + 1500 * share, alpha=0.6, color=COLOURS[k.binding], label=label)
        if share > 0.03:
            axes.annotate(k.name, at, fontsize=7)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("FLOP per byte of device memory")
    axes.set_ylabel("TFLOP/s, predicted")
    axes.set_title(f"{machine.label}: predicted step {step.seconds * 1e3:.2f} ms")
    axes.legend(title="bound by", fontsize=8, loc="lower right")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
