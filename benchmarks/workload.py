"""The work that benchmark programs share: model sizes, hyperparameters, starting weights, batches.

Imports neither tcomp nor torch, so that a program's start-up time holds only what it needs itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MATRICES = ("wte", "wpe", "qkv_w", "proj_w", "up_w", "down_w")
HYPER = {
    "peak_lr": 6e-4, "final_lr": 0.1, "warmup": 100.0, "total": 1000.0,
    "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "clip": 1.0, "weight_decay": 0.1,
}  # fmt: skip
"""The defaults of models/gpt2.tc; weight_decay is that of the matrices (the vectors have none)."""


@dataclass(frozen=True)
class Sizes:
    """A GPT-2: layers, heads, channels, vocabulary, longest sequence."""

    L: int
    H: int
    C: int
    V: int
    S: int


SIZES = {
    "tiny": Sizes(L=4, H=4, C=128, V=256, S=128),
    "124M": Sizes(L=12, H=12, C=768, V=50257, S=1024),
}


def parameter_shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of models/gpt2.tc, in its order."""
    padded = -(-s.V // 128) * 128
    return {
        "wte": (padded, s.C), "wpe": (s.S, s.C),
        "ln1_w": (s.L, s.C), "ln1_b": (s.L, s.C),
        "qkv_w": (s.L, 3 * s.C, s.C), "qkv_b": (s.L, 3 * s.C),
        "proj_w": (s.L, s.C, s.C), "proj_b": (s.L, s.C),
        "ln2_w": (s.L, s.C), "ln2_b": (s.L, s.C),
        "up_w": (s.L, 4 * s.C, s.C), "up_b": (s.L, 4 * s.C),
        "down_w": (s.L, s.C, 4 * s.C), "down_b": (s.L, s.C),
        "lnf_w": (s.C,), "lnf_b": (s.C,),
    }  # fmt: skip


def write_weights(s: Sizes, path: Path, seed: int = 0) -> None:
    """GPT-2's starting weights as raw f32, one parameter after another."""
    rng = np.random.default_rng(seed)
    with path.open("wb") as f:
        for name, shape in parameter_shapes(s).items():
            if name in MATRICES:
                std = 0.02 / math.sqrt(2 * s.L) if name in ("proj_w", "down_w") else 0.02
                value = rng.standard_normal(shape, dtype=np.float32) * np.float32(std)
            elif name in ("ln1_w", "ln2_w", "lnf_w"):
                value = np.ones(shape, np.float32)
            else:
                value = np.zeros(shape, np.float32)
            f.write(memoryview(np.ascontiguousarray(value)).cast("B"))


def batch(s: Sizes, B: int, T: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and targets of one step, i32 [B, T]; four batches come round in turn."""
    rng = np.random.default_rng(1000 + step % 4)
    run = rng.integers(0, s.V, (B, T + 1), dtype=np.int32)
    return np.ascontiguousarray(run[:, :-1]), np.ascontiguousarray(run[:, 1:])


def learning_rate(step: int) -> float:
    """Linear warm-up, then half a cosine down to final_lr * peak_lr; `step` counts from 0."""
    h = HYPER
    if step < h["warmup"]:
        return h["peak_lr"] * (step + 1) / max(h["warmup"], 1)
    turn = min(1.0, (step - h["warmup"]) / max(h["total"] - h["warmup"], 1))
    low = h["final_lr"] * h["peak_lr"]
    return low + 0.5 * (1 + math.cos(math.pi * turn)) * (h["peak_lr"] - low)
