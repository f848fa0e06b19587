"""The same training run on the CPU and on the virtual GPU: equal losses, equal bits from run to run, no finding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tcomp.cli import common
from tcomp.model.request import StepRequest
from tcomp.runtime.device import Device
from tcomp.runtime.generate import Decoding
from tcomp.runtime.initialise import initialise
from tcomp.runtime.scalars import set_scalars

MICRO = {"L": 2, "H": 2, "C": 16, "V": 61, "S": 16}
B, T = 2, 16


def train(
    device: Device, steps: int, accumulation: int = 1, sizes: dict[str, int] = MICRO, model: str = "gpt2"
) -> tuple[list[float], dict[str, bytes]]:
    """Losses of a few steps from seed 1, and the parameters' bits after them."""
    built = common.build_step(
        StepRequest(model, "tiny", {"B": B, "T": T}, dims=sizes, accumulation=accumulation), device
    )
    executor = device.open(built.step)
    try:
        initialise(executor, 1, 1)
        set_scalars(executor, {"peak_lr": 1e-2, "warmup": 1.0})
        random = np.random.default_rng(7)
        readings = []
        for number in range(steps):
            executor.write("step", number)
            for micro in range(accumulation):
                with executor.batch() as inputs:
                    run = (random.integers(0, sizes["V"], (B, 1)) + np.arange(T + 1)) % sizes["V"]
                    inputs["tokens"][...], inputs["targets"][...] = run[:, :-1], run[:, 1:]
                executor.run("micro_next" if micro else "micro_first")
                readings.append(executor.fetch("loss"))
            executor.run("update")
        losses = [float(r.value()) for r in readings]
        return losses, {p.slot: executor.read(p.slot).tobytes() for p in built.step.parameters}
    finally:
        executor.close()


@pytest.mark.slow(seconds=20)
def test_llama_equals_the_cpus(virtual: Any) -> None:
    """Two micro-batches, grouped heads, an untied head, logits in chunks, decoding with cached keys and values."""
    sizes = {"L": 1, "H": 4, "G": 2, "D": 8, "C": 32, "F": 40, "V": 61, "TIED": 0, "K": 3}
    want, _ = train(common.device_for("cpu", threads=1), 2, 2, sizes, "llama")
    device = common.device_for("virtual")
    got, _ = train(device, 2, 2, sizes, "llama")
    np.testing.assert_allclose(got, want, rtol=1e-5)
    scores = [decoded(d, sizes) for d in (common.device_for("cpu", threads=1), device)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-5)
    assert not virtual.findings, str(virtual.findings[0])


@pytest.mark.slow(seconds=11)
def test_parts_that_begin_anywhere_equal_the_cpus(virtual: Any) -> None:
    """Parameters of layers, their gradients over two micro-batches and kept keys that are no multiples of 16 bytes."""
    sizes = {"L": 2, "H": 1, "G": 1, "D": 2, "C": 6, "F": 9, "V": 29}
    want, bits = train(common.device_for("cpu", threads=1), 1, 2, sizes, "llama")
    device = common.device_for("virtual")
    got, found = train(device, 1, 2, sizes, "llama")
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for name in bits:
        ours, theirs = (np.frombuffer(b[name], np.float32) for b in (found, bits))
        assert np.linalg.norm(ours - theirs) <= 1e-3 * np.linalg.norm(theirs), name
    scores = [decoded(d, sizes, 9) for d in (common.device_for("cpu", threads=1), device)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-5)
    assert not virtual.findings, str(virtual.findings[0])


def decoded(device: Device, sizes: dict[str, int], window: int = 8) -> np.ndarray:
    """Scores after a prompt and after one more token."""
    built = common.build_step(
        StepRequest("llama", "tiny", {"B": 1, "T": 2, "W": window}, dims=sizes, programs=("decode",)),
        device,
    )
    executor = device.open(built.step)
    try:
        initialise(executor, 1, 1)
        set_scalars(executor, {})
        decoding = Decoding(executor, sizes["V"])
        return np.array([decoding.scores(text) for text in ([3, 1, 4, 1, 5], [3, 1, 4, 1, 5, 9])])
    finally:
        executor.close()


@pytest.mark.slow(seconds=20)
def test_a_training_run_equals_the_cpus_as_a_graph_or_not(virtual: Any) -> None:
    steps = 3
    want, parameters = train(common.device_for("cpu", threads=1), steps)
    got = train(common.device_for("virtual"), steps)
    losses, first = got
    assert want[-1] < want[0] - 0.01, "nothing was learnt: the comparison would say little"
    np.testing.assert_allclose(losses, want, rtol=1e-5)
    for name, bits in parameters.items():
        ours, theirs = (np.frombuffer(b, np.float32) for b in (first[name], bits))
        # Wider than the losses: Adam scales a gradient that is nearly zero, rounding and all, to a whole update.
        assert np.linalg.norm(ours - theirs) <= 1e-3 * np.linalg.norm(theirs), name
    assert train(common.device_for("virtual", graph=False), steps) == got, "the second run has other bits"
    assert not virtual.findings, str(virtual.findings[0])
