"""Precision bf16_stochastic: no master weights, and yet small updates are not lost; repeatable and resumable."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from tcomp.dsl.ast import DType
from tcomp.runtime.values import values
from tests.reference import torch_gpt2 as reference
from tests.reference.runs import built, doubled, train
from tests.reference.torch_gpt2 import Config, Hyper

CONFIG = Config(L=3, H=4, C=96, V=211, S=64)  # of which test_bf16_training.py has most kernels
# Updates of 2e-5 on weights of about 0.02, whose bf16 unit is 1.2e-4: rounded to nearest, none would ever count.
HYPER = Hyper(peak_lr=2e-5, warmup=0, total=1000, clip=0.0, weight_decay={"matrices": 0.0, "vectors": 0.0})


def test_small_updates_count_on_average(objects: Path) -> None:
    params = reference.random_params(CONFIG, seed=1)
    batches = reference.random_batches(CONFIG, 2, 3, 37, 8)
    with built("gpt2", asdict(CONFIG), 3, 37, 1, 2, objects, precision="bf16_stochastic") as (step, executor):
        assert not any(s.kind == "master" for s in step.slots.values())
        assert all(step.slots[p.slot].dtype is DType.BF16 for p in step.parameters)
        train(step, executor, params, batches[:0], HYPER, 1)
        start = {p.slot: values(executor.array(p.slot), DType.BF16).astype(np.float64) for p in step.parameters}
        train_on = {n: p.clone() for n, p in params.items()}
        run = train(step, executor, train_on, batches, HYPER, 1)
        end = {p.slot: values(executor.array(p.slot), DType.BF16).astype(np.float64) for p in step.parameters}
    truth = reference.train_steps(doubled(params), batches, CONFIG, HYPER)
    np.testing.assert_allclose(run.losses, truth.losses, rtol=2e-4)
    for name in ("qkv_w", "up_w"):
        ours = end[name] - start[name]
        wanted = truth.params[name].numpy() - params[name].double().numpy()
        # The projection of ours onto the exact change: 1 on average, 0 were small updates lost.
        share = float((ours * wanted).sum() / (wanted * wanted).sum())
        assert abs(share - 1) < 0.1, f"{name}: {share:.3f} of the exact change"


def test_two_runs_are_bitwise_equal(objects: Path) -> None:
    params = reference.random_params(CONFIG, seed=5)
    batches = reference.random_batches(CONFIG, 6, 3, 37, 3)
    hyper = Hyper(peak_lr=1e-3, warmup=0, total=10, clip=0.0)
    runs = []
    for _ in range(2):
        with built("gpt2", asdict(CONFIG), 3, 37, 1, 2, objects, precision="bf16_stochastic") as (step, executor):
            runs.append(train(step, executor, params, batches, hyper, 1))
    assert runs[0].losses == runs[1].losses
    for name in runs[0].params:
        assert runs[0].params[name].tobytes() == runs[1].params[name].tobytes(), name
