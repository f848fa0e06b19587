"""A whole training run of models/gpt2.tc on the CPU against a plain PyTorch GPT-2 (tests/reference).

The reference computes in float64, so the differences found here are tcomp's own rounding: losses within
1e-5 relative, every gradient tensor and every trained parameter within 1e-4 relative in the L2 norm.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from tests.reference import torch_gpt2 as reference
from tests.reference.runs import assert_same, built, doubled, train
from tests.reference.torch_gpt2 import Config, Hyper

CASES = {
    "odd-sizes-accumulated": (Config(L=3, H=4, C=96, V=211, S=64), 3, 37, 2, 2, 0.69),
    "one-head-one-row-three-threads": (Config(L=1, H=1, C=31, V=130, S=19), 1, 19, 1, 3, 0.0),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_ten_adamw_steps(case: tuple[Config, int, int, int, int, float], objects: Path) -> None:
    cfg, B, T, accumulation, threads, clip = case
    hyper = Hyper(peak_lr=2e-3, warmup=3, total=12, clip=clip)
    params = reference.random_params(cfg, seed=1)
    batches = reference.random_batches(cfg, 2, B, T, 10 * accumulation)
    want = reference.train_steps({n: p.double() for n, p in params.items()}, batches, cfg, hyper, accumulation)
    with built("gpt2", asdict(cfg), B, T, accumulation, threads, objects) as (step, executor):
        run = train(step, executor, params, batches, hyper, accumulation)
    assert_same(run, want)
    if clip:
        assert min(want.norms) < clip < max(want.norms), "one of the branches of clipping was not taken"


@pytest.mark.slow
def test_padding_rows_of_the_vocabulary_only_decay(objects: Path) -> None:
    """Rows V to P of wte stand for no word: they get no gradient, and weight decay alone moves them."""
    cfg = Config(L=1, H=2, C=24, V=100, S=16)
    hyper = Hyper(peak_lr=1e-2, warmup=0, total=5)
    params = reference.random_params(cfg, seed=3)
    batches = reference.random_batches(cfg, 4, 2, 16, 1)
    with built("gpt2", asdict(cfg), 2, 16, 1, 2, objects) as (step, executor):
        run = train(step, executor, params, batches, hyper, 1)
    assert not run.gradients[0]["wte"][cfg.V :].any()
    decayed = params["wte"][cfg.V :].numpy() * (1 - run.lrs[0] * hyper.weight_decay["matrices"])
    np.testing.assert_allclose(run.params["wte"][cfg.V :], decayed, rtol=1e-5)


def test_two_runs_are_bitwise_equal(objects: Path) -> None:
    cfg, B, T, accumulation, threads, _ = CASES["odd-sizes-accumulated"]  # whose kernels are there
    params = reference.random_params(cfg, seed=5)
    batches = reference.random_batches(cfg, 6, B, T, 2 * accumulation)
    runs = []
    for _ in range(2):
        with built("gpt2", asdict(cfg), B, T, accumulation, threads, objects) as (step, executor):
            runs.append(train(step, executor, params, batches, Hyper(), accumulation))
    assert runs[0].losses == runs[1].losses
    for name in runs[0].params:
        assert runs[0].params[name].tobytes() == runs[1].params[name].tobytes(), name


@pytest.mark.slow(seconds=10)
@pytest.mark.parametrize(
    ("cfg", "B", "T"),
    [(replace(reference.CONFIGS["124M"], L=2), 2, 33), (replace(CASES["odd-sizes-accumulated"][0], L=12), 3, 37)],
    ids=["widths", "layers"],
)
def test_one_step_of_124m(cfg: Config, B: int, T: int, objects: Path) -> None:
    """Its widths by two layers, its twelve layers by other tests' kernels: the model itself takes half a minute."""
    params = reference.random_params(cfg, seed=7)
    batches = reference.random_batches(cfg, 8, B, T, 1)
    with built("gpt2", asdict(cfg), B, T, 1, 2, objects) as (step, executor):
        run = train(step, executor, params, batches, Hyper(), 1)
    want = reference.train_steps(doubled(params), batches, cfg, Hyper())
    assert_same(run, want)
