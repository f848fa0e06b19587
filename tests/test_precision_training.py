"""Every precision trains: a few hundred steps on the CPU within a stated gap of f32's loss, a few on the virtual GPU.

The text is a source file of Python's library; models are small, so runs of different roundings part after a while: the
gap allowed is several times what was seen (0.011 nats at most).
"""

from __future__ import annotations

import inspect
import re
import tokenize
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tcomp.dsl.load import library, load
from tcomp.dsl.recipes import RECIPES
from tcomp.machine.cpu import detect
from tcomp.model.build import build_step
from tcomp.model.request import StepRequest
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.cuda.executor import CudaExecutor
from tcomp.runtime.executor import Executor
from tcomp.runtime.initialise import initialise
from tcomp.runtime.scalars import set_scalars
from tests.turns import in_turns

GAP = 0.08
"""nats, of the mean loss over the last 30 of 240 steps"""
NARROW = [p for p in RECIPES if p != "f32"]
DIMS = {"L": 2, "H": 2, "C": 64}


def batches(seed: int, steps: int, batch: int, length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    text = np.frombuffer(inspect.getsource(tokenize).encode(), np.uint8).astype(np.int32)
    random = np.random.default_rng(seed)
    for _ in range(steps):
        at = random.integers(0, len(text) - length - 1, batch)[:, None] + np.arange(length + 1)
        yield text[at[:, :-1]], text[at[:, 1:]]


def losses(
    executor: Executor, steps: int, batch: int, length: int, rate: float = 3e-3, warmup: float = 20.0
) -> list[float]:
    initialise(executor, 1, 1)
    set_scalars(executor, {"peak_lr": rate, "warmup": warmup, "total": float(steps)})
    found = []
    for step, (tokens, targets) in enumerate(batches(2, steps, batch, length)):
        executor.write("step", step)
        with executor.batch() as inputs:
            inputs["tokens"][...], inputs["targets"][...] = tokens, targets
        executor.run("micro_first")
        found.append(float(executor.read("loss")))
        executor.run("update")
    return found


@contextmanager
def on_cpu(precision: str, dims: Mapping[str, int], batch: int, length: int, folder: Path) -> Iterator[Executor]:
    machine = detect()
    module = load(library() / "gpt2.tc")
    step = build_step(
        module, StepRequest("gpt2", "tiny", {"B": batch, "T": length}, dims=dims, precision=precision), machine
    )
    executor = CpuExecutor(step, machine, 1, folder)
    try:
        yield executor
    finally:
        executor.close()


@cache
def f32_end(folder: Path) -> float:
    with on_cpu("f32", DIMS, 8, 64, folder) as executor:
        return float(np.mean(losses(executor, 240, 8, 64)[-30:]))


@in_turns(2)
@pytest.mark.slow
@pytest.mark.parametrize("precision", NARROW)
def test_240_steps_end_near_f32(precision: str, objects: Path) -> None:
    with on_cpu(precision, DIMS, 8, 64, objects) as executor:
        found = losses(executor, 240, 8, 64)
    end, wanted = float(np.mean(found[-30:])), f32_end(objects)
    assert found[0] > 5 and wanted < 2.5, "nothing was learned"
    assert abs(end - wanted) < GAP, f"{precision} ends at {end:.4f}, f32 at {wanted:.4f}"


CLOSE = 0.006
"""nats, of every loss of 6 steps on the virtual GPU from the CPU's in f32; 0.003 was seen"""


def code_of(executor: Executor) -> str:
    """The PTX of every kernel of its step, for sm_90a."""
    assert isinstance(executor, CudaExecutor)
    return "".join(loaded.kernel.ptx for loaded in executor.kernels.values())


@in_turns(2)
@pytest.mark.slow
@pytest.mark.parametrize("precision, operands", [("bf16", "bf16.bf16"), ("fp8", "e5m2.e4m3")])
def test_6_steps_on_the_virtual_gpu(precision: str, operands: str, objects: Path) -> None:
    """sm_90a code on tensor cores, forward and backward, all checks of the virtual GPU on and no findings: losses as
    those of the CPU's f32."""
    from tcomp.runtime.cuda.device import virtual_device

    dims, batch, length, steps = {"L": 1, "H": 2, "C": 32}, 1, 16, 6
    with on_cpu("f32", dims, batch, length, objects) as executor:
        wanted = losses(executor, steps, batch, length, rate=3e-3, warmup=1.0)
    device = virtual_device("h100", objects, True)
    step = build_step(
        load(library() / "gpt2.tc"),
        StepRequest("gpt2", "tiny", {"B": batch, "T": length}, dims=dims, precision=precision),
        device.machine,
    )
    executor = device.open(step)
    try:
        assert re.search(rf"wgmma\.mma_async\S+\.{operands}", code_of(executor))
        found = losses(executor, steps, batch, length, rate=3e-3, warmup=1.0)
    finally:
        executor.close()
    device.finish()
    assert wanted[-1] < wanted[0] - 0.5, "nothing was learned"
    np.testing.assert_allclose(found, wanted, atol=CLOSE)


@pytest.mark.slow
def test_llama_in_fp8_on_the_virtual_gpu(objects: Path) -> None:
    """Its layers without a bias on tensor cores too, forward and backward: two steps as the CPU's f32."""
    from tcomp.runtime.cuda.device import virtual_device

    dims = {"L": 1, "H": 2, "G": 1, "D": 16, "C": 32, "F": 64}
    module, sizes = load(library() / "llama.tc"), {"B": 1, "T": 16}
    device, found = virtual_device("h100", objects, True), {}
    for name, machine in (("f32", detect()), ("fp8", device.machine)):
        step = build_step(module, StepRequest("llama", "tiny", sizes, dims=dims, precision=name), machine)
        executor = CpuExecutor(step, machine, 1, objects) if name == "f32" else device.open(step)
        try:
            assert name == "f32" or re.search(r"wgmma\.mma_async\S+\.e5m2\.e4m3", code_of(executor))
            found[name] = losses(executor, 2, 1, 16)
        finally:
            executor.close()
    device.finish()
    np.testing.assert_allclose(found["fp8"], found["f32"], atol=CLOSE)
