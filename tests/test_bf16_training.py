"""GPT-2 trained with precision bf16 beside PyTorch's bf16 autocast, and beside float64.

Both start from the same parameters. tcomp rounds more tensors than autocast does (the residual stream and its gradient
are bf16, autocast keeps them f32), so it may be further from the float64 run, by a stated factor.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from tcomp.dsl.ast import DType
from tcomp.ir.walk import instruction_of
from tcomp.machine.cpu import detect
from tcomp.runtime.values import values
from tests.reference import torch_gpt2 as reference
from tests.reference.runs import built, distance, doubled, train
from tests.reference.torch_gpt2 import Config, Hyper

CONFIG = Config(L=3, H=4, C=96, V=211, S=64)
HYPER = Hyper(peak_lr=2e-3, warmup=3, total=12, clip=0.95)
LOSS_TOLERANCE = 2e-4
"""relative, of float64's and of autocast's loss in each of ten steps"""
FACTOR = 2.5
"""how much further than autocast from the float64 gradient (relative L2), tensor by tensor"""


@pytest.mark.parametrize(
    ("accumulation", "threads", "dots"),
    [
        (1, 2, False),
        pytest.param(3, 1, False, marks=pytest.mark.slow),
        pytest.param(2, 2, True, marks=pytest.mark.slow, id="2-2-products by emulated vdpbf16ps"),
    ],
)
def test_ten_steps_are_about_as_near_the_truth_as_autocasts(
    accumulation: int, threads: int, dots: bool, objects: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dots:
        monkeypatch.setenv("TCOMP_CPU", f"{detect().name.removesuffix('bf16')}+avx512bf16")
    params = reference.random_params(CONFIG, seed=1)
    batches = reference.random_batches(CONFIG, 2, 3, 37, 10 * accumulation)
    truth = reference.train_steps(doubled(params), batches, CONFIG, HYPER, accumulation)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = reference.train_steps(params, batches, CONFIG, HYPER, accumulation)
    with built("gpt2", asdict(CONFIG), 3, 37, accumulation, threads, objects, precision="bf16") as (step, executor):
        assert any(instruction_of(k) == "vdpbf16ps" for k in step.kernels.values()) or not dots
        run = train(step, executor, params, batches, HYPER, accumulation)
        for p in step.parameters:
            narrow, master = values(executor.array(p.slot), DType.BF16), executor.array(p.master)
            assert (np.abs(narrow - master) <= np.abs(master) * 2.0**-8).all(), f"{p.slot} is not its master rounded"
    np.testing.assert_allclose(run.losses, truth.losses, rtol=LOSS_TOLERANCE)
    np.testing.assert_allclose(run.losses, autocast.losses, rtol=LOSS_TOLERANCE)
    for name, wanted in truth.gradients[0].items():
        ours, theirs = (distance(g, wanted) for g in (run.gradients[0][name], autocast.gradients[0][name].numpy()))
        assert ours <= FACTOR * theirs + 2.0**-9, (
            f"gradient of {name}: {ours:.1e} from float64, autocast's {theirs:.1e}"
        )


@pytest.mark.slow
def test_two_bf16_runs_are_bitwise_equal(objects: Path) -> None:
    params = reference.random_params(CONFIG, seed=5)
    batches = reference.random_batches(CONFIG, 6, 3, 37, 4)
    runs = []
    for _ in range(2):
        with built("gpt2", asdict(CONFIG), 3, 37, 2, 2, objects, precision="bf16") as (step, executor):
            runs.append(train(step, executor, params, batches, HYPER, 2))
    assert runs[0].losses == runs[1].losses
    for name in runs[0].params:
        assert runs[0].params[name].tobytes() == runs[1].params[name].tobytes(), name
