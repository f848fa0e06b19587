"""LAMB (You et al., 2020) as one op of vectors for all parameters: its norms are of each tensor, a bias as a matrix,
whatever lies beside it. What steps make of parameters, moments and a state of one number a tensor, against the formulas
in float64 NumPy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tcomp.dsl.load import load
from tcomp.machine.cpu import detect
from tcomp.model.build import build_step
from tcomp.model.request import StepRequest
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.values import stored, values
from tests.reference.starts import start_anywhere

FILE = Path(__file__).parent / "reference" / "lamb.tc"
LAYERED = ("up", "bias", "gain", "alpha")
Array = NDArray[np.float64]


def lamb(p: Array, g: Array, m: Array, v: Array, step: int, decay: float) -> tuple[Array, Array, Array]:
    """The next value of a tensor and of its moments."""
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    u = m / (1 - 0.9 ** (step + 1)) / (np.sqrt(v / (1 - 0.99 ** (step + 1))) + 1e-6) + decay * p
    a, b = float(np.linalg.norm(p)), float(np.linalg.norm(u))
    return p - 1e-2 * (a / b if a > 0 and b > 0 else 1.0) * u, m, v


@pytest.mark.parametrize("precision", [pytest.param("f32", marks=pytest.mark.slow(seconds=5)), "bf16"])
def test_each_tensor_has_its_own_rate(precision: str, objects: Path) -> None:
    step = build_step(load(FILE), StepRequest("small", "tiny", {"B": 5}, precision=precision), detect(), 1)
    executor, random = CpuExecutor(step, detect(), 1, objects), np.random.default_rng(0)

    def read(name: str) -> Array:
        return values(executor.read(name), step.slots[name].dtype).astype(np.float64)

    try:
        places = start_anywhere(executor, random)
        for number in range(2):
            x = random.standard_normal(step.slots["z"].shape).astype(np.float32)
            executor.write("z", stored(x, step.slots["z"].dtype))
            executor.write("targets", random.integers(0, 13, 5).astype(np.int32))
            executor.write("step", number)
            executor.run("micro_first")
            gradients = {n: read(f"grad.{n}") for n in places}
            kept = {n: [read(place), read(f"state.m.{n}"), read(f"state.v.{n}")] for n, place in places.items()}
            executor.run("update")
            scale = min(1.0, 1.0 / (np.sqrt(sum((g * g).sum() for g in gradients.values())) + 1e-6))
            for n, place in places.items():
                decay, g = 0.0 if n == "alpha" else 0.1, gradients[n] * scale
                ours = [read(place), read(f"state.m.{n}"), read(f"state.v.{n}")]
                for at in np.ndindex(*g.shape[:1]) if n in LAYERED else [()]:
                    want = lamb(*(np.asarray(t[at]) for t in (kept[n][0], g, *kept[n][1:])), number, decay)
                    for found, expected, before in zip(ours, want, kept[n], strict=True):
                        far = np.linalg.norm(found[at] - expected) / np.linalg.norm(expected - before[at])
                        assert far < 1e-4, f"{n}{list(at)} in step {number}"
                np.testing.assert_array_equal(read(f"state.turns.{n}"), number + 1)
                assert read(f"state.turns.{n}").size == (2 if n in LAYERED else 1)
    finally:
        executor.close()
