"""A model each of whose groups has another optimizer, as people write them next: vectors, matrices and updates at once.

Gradients against PyTorch in float64; what the update makes of these against the publications' formulas in NumPy, which
know nothing of flat vectors: Muon, LAMB (a rate for each matrix), Adafactor (factored second moments), SGD, AdamW.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tcomp.dsl.load import load_text
from tcomp.machine.cpu import detect
from tcomp.model.build import build_step
from tcomp.model.request import StepRequest
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.values import values
from tests.reference.starts import start_anywhere
from tests.reference.torch_muon import orthogonal
from tests.turns import in_turns

TEXT = (Path(__file__).parent / "reference" / "many_optimizers.tc").read_text(encoding="utf-8")
B, T, L, E, C, F, V = 2, 11, 2, 3, 12, 20, 37
Array = NDArray[np.float64]


def loss_of(p: dict[str, torch.Tensor], tokens: Array, targets: Array) -> torch.Tensor:
    x = p["wte"][torch.from_numpy(tokens)].reshape(B * T, C)
    for layer in range(L):
        h = x * torch.rsqrt((x * x).mean(1, keepdim=True) + 1e-5) * p["gain"][layer]
        for e in range(E):
            u = h @ p["up"][layer, e].T
            d = (u * u.clamp(min=0) + u) @ p["down"][layer, e].T
            weight = p["alpha"][layer] * torch.sigmoid(h @ p["router"][layer, e])
            x = x + weight[:, None] * (d + p["bias"][layer]) * (1 + p["fixed"])
        x = x @ p["mix"][layer].T + x
    logits = (x @ p["wte"].T)[:, :V]
    return torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets).reshape(-1).long())


class Formulas:
    """What each parameter becomes; `g` is clipped already."""

    def __init__(self) -> None:
        self.states: dict[str, Array] = {}

    def mean(self, name: str, value: Array, keep: float, share: float) -> Array:
        """The next value of a running mean or sum."""
        self.states[name] = keep * self.states.get(name, np.zeros_like(value)) + share * value
        return self.states[name]

    def adam(self, name: str, g: Array, step: int) -> Array:
        m, v = self.mean(f"{name}.m", g, 0.9, 0.1), self.mean(f"{name}.v", g * g, 0.95, 0.05)
        return m / (1 - 0.9 ** (step + 1)) / (np.sqrt(v / (1 - 0.95 ** (step + 1))) + 1e-8)

    def next(self, name: str, p: Array, g: Array, step: int, rate: float) -> Array:
        if name == "wte":
            return p - 5e-3 * (self.adam(name, g, step) + 0.1 * p)
        if name == "router":
            return p - rate * self.mean(name, g, 0.8, 1.0)
        if name == "up":
            ahead = 0.95 * self.mean(name, g, 0.95, 0.05) + 0.05 * g
            whole = np.array([[orthogonal(torch.from_numpy(x)).numpy() for x in row] for row in ahead])
            return p - rate * (0.2 * np.sqrt(F) * whole + 0.1 * p)
        if name == "down":
            u = self.adam(name, g, step) + 0.05 * p
            a, b = ((x * x).sum((2, 3), keepdims=True) for x in (p, u))
            return p - rate * np.sqrt(a / b) * u
        if name == "mix":
            rows = self.mean("mix.a", (g * g + 1e-12).mean(2), 0.9, 0.1)
            columns = self.mean("mix.b", (g * g + 1e-12).mean(1), 0.9, 0.1)
            return p - rate * g / np.sqrt(rows[:, :, None] * columns[:, None] / rows.mean(1)[:, None, None])
        return p - rate * self.adam(name, g, step)


def rate_at(step: int) -> float:
    """1e-2 after two steps of warm-up, then by a cosine to a tenth at step 20."""
    turn = 0.5 * (1 + np.cos(np.pi * (step - 2) / 18))
    return 1e-2 * (step + 1) / 2 if step < 2 else float(1e-3 + turn * 9e-3)


@in_turns(2)
@pytest.mark.slow
@pytest.mark.parametrize(("precision", "accumulation", "threads"), [("f32", 1, 2), ("f32", 2, 1), ("bf16", 1, 1)])
def test_each_group_is_trained_by_its_own(precision: str, accumulation: int, threads: int, objects: Path) -> None:
    request = StepRequest("many", "tiny", {"B": B, "T": T}, precision=precision, accumulation=accumulation)
    step = build_step(load_text(TEXT, "many.tc"), request, detect(), threads)
    executor = CpuExecutor(step, detect(), threads, objects)

    def read(name: str) -> Array:
        return values(executor.read(name), step.slots[name].dtype).astype(np.float64)

    formulas, random = Formulas(), np.random.default_rng(0)
    tolerance = 1e-4 if precision == "f32" else 5e-2
    try:
        places = start_anywhere(executor, random)
        for number in range(3):
            executor.write("step", number)
            before, kept = {n: read(n) for n in places}, {n: read(x) for n, x in places.items()}
            torch_p = {n: torch.tensor(v, requires_grad=n != "fixed") for n, v in before.items()}
            for micro in range(accumulation):
                tokens, targets = (random.integers(0, V, (B, T)) for _ in range(2))
                executor.write("tokens", tokens.astype(np.int32))
                executor.write("targets", targets.astype(np.int32))
                executor.run("micro_next" if micro else "micro_first")
                (loss_of(torch_p, tokens, targets) / accumulation).backward()
            trained = [n for n in places if n != "fixed"]
            gradients = {n: read(f"grad.{n}") for n in trained}
            for n, ours in gradients.items():
                theirs = torch_p[n].grad
                assert theirs is not None and far(ours, theirs.numpy(), 0.0) < tolerance, n
            executor.run("update")
            norm = float(np.sqrt(sum((g * g).sum() for g in gradients.values())))
            for n in trained:
                g = gradients[n] * min(1.0, 1.0 / (norm + 1e-6))
                want = formulas.next(n, kept[n], g, number, rate_at(number))
                assert far(read(places[n]), want, kept[n]) < tolerance, f"{n} in step {number}"
            np.testing.assert_array_equal(read("fixed"), before["fixed"])
    finally:
        executor.close()


def far(ours: Array, theirs: Array, start: Array | float) -> float:
    """Relative L2 distance of two changes."""
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs - start))
