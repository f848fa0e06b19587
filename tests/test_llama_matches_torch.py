"""models/llama.tc on the CPU against transformers' LlamaForCausalLM and a plain PyTorch Llama (tests/reference).

Logits and gradients within 1e-4 relative of transformers in float64; ten AdamW steps as tests/reference/runs.py says.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.reference import torch_llama as reference
from tests.reference.runs import TENSOR_TOLERANCE, assert_same, built, distance, doubled, train
from tests.reference.torch_gpt2 import Hyper, random_batches, train_steps
from tests.reference.torch_llama import Config, dims

CASES = {
    "tied": (Config(L=2, H=4, G=2, D=8, C=40, F=56, V=211), 2, 37, 2),
    "untied-scaled": (
        Config(L=2, H=6, G=2, D=12, C=48, F=40, V=97, TIED=0, factor=8, original=64, theta=500),
        1,
        67,
        3,
    ),
    "all-heads": (Config(L=1, H=3, G=3, D=16, C=33, F=35, V=64, eps=1e-3), 2, 19, 1),
    "scaled": (Config(L=3, H=9, G=3, D=32, C=144, F=272, V=513, factor=32, original=64), 2, 131, 2),
}
PARAMETERS = [pytest.param(c, id=n, marks=[pytest.mark.slow] if n != "untied-scaled" else []) for n, c in CASES.items()]


@pytest.mark.parametrize("case", PARAMETERS)
def test_logits_and_gradients_are_those_of_transformers(case: tuple[Config, int, int, int], objects: Path) -> None:
    transformers = pytest.importorskip("transformers")
    cfg, B, T, threads = case
    params = reference.random_params(cfg, seed=1)
    ((x, y),) = random_batches(cfg, 2, B, T, 1)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**cfg.hf())).double()
    model.load_state_dict({n: t.double() for n, t in reference.hf_state(params, cfg).items()})
    out = model(input_ids=x).logits
    torch.nn.functional.cross_entropy(out.reshape(-1, cfg.V), y.reshape(-1)).backward()
    want = reference.from_hf({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, cfg)
    assert set(want) == set(cfg.shapes())
    with built("llama", dims(cfg), B, T, 2, threads, objects, keep_logits=True) as (step, executor):
        assert set(cfg.shapes()) == {p.slot for p in step.parameters}
        for name, value in {**step.scalars, "loss_gradient": 1.0}.items():
            executor.write(name, value)
        for name, tensor in params.items():
            executor.write(name, tensor.numpy())
        executor.write("tokens", x.numpy())
        executor.write("targets", y.numpy())
        executor.run("micro_first")
        got = executor.array("logits").reshape(B, T, -1)[..., : cfg.V]
        assert distance(got, out.detach()) < TENSOR_TOLERANCE
        assert np.abs(got - out.detach().numpy()).max() < 1e-4 * float(out.detach().abs().max())
        for name, gradient in want.items():
            assert distance(executor.array(f"grad.{name}"), gradient) < TENSOR_TOLERANCE, name


@pytest.mark.parametrize("case", PARAMETERS)
def test_ten_adamw_steps(case: tuple[Config, int, int, int], objects: Path) -> None:
    cfg, B, T, threads = case
    hyper = Hyper(peak_lr=2e-3, warmup=3, total=12, clip=0.9)
    params = reference.random_params(cfg, seed=3)
    batches = random_batches(cfg, 4, B, T, 20)
    want = train_steps(doubled(params), batches, cfg, hyper, 2, reference.forward, reference.MATRICES)
    with built("llama", dims(cfg), B, T, 2, threads, objects) as (step, executor):
        run = train(step, executor, params, batches, hyper, 2)
    assert_same(run, want)
