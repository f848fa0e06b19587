"""A plain PyTorch GPT-2 and AdamW that say what models/gpt2.tc says, written from the mathematics.

Takes the parameters as a dict of tensors with the names, shapes and layout of models/gpt2.tc (layers
stacked in front, weights [outputs, inputs], wte padded to P rows of which V are words) and gives losses,
gradients and trained parameters. Nothing is fused and nothing is clever: autograd does the backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.reference.torch_muon import Muon

Params = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]
"""Tokens and targets, both integer [B, T]."""

MATRICES = ("wte", "wpe", "qkv_w", "proj_w", "up_w", "down_w")
"""The parameters that weight decay applies to; the others are biases and layernorm gains."""


@dataclass(frozen=True)
class Config:
    """Sizes: layers, heads, channels, vocabulary, longest sequence."""

    L: int
    H: int
    C: int
    V: int
    S: int

    @property
    def P(self) -> int:
        """The vocabulary padded to whole tiles of 128 rows."""
        return -(-self.V // 128) * 128

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's shape, in the order of models/gpt2.tc."""
        layers, c = self.L, self.C
        return {
            "wte": (self.P, c),
            "wpe": (self.S, c),
            "ln1_w": (layers, c),
            "ln1_b": (layers, c),
            "qkv_w": (layers, 3 * c, c),
            "qkv_b": (layers, 3 * c),
            "proj_w": (layers, c, c),
            "proj_b": (layers, c),
            "ln2_w": (layers, c),
            "ln2_b": (layers, c),
            "up_w": (layers, 4 * c, c),
            "up_b": (layers, 4 * c),
            "down_w": (layers, c, 4 * c),
            "down_b": (layers, c),
            "lnf_w": (c,),
            "lnf_b": (c,),
        }


CONFIGS = {
    "tiny": Config(L=4, H=4, C=128, V=256, S=128),
    "124M": Config(L=12, H=12, C=768, V=50257, S=1024),
}


@dataclass(frozen=True)
class Hyper:
    """The optimizer's scalars, with the defaults of models/gpt2.tc. `clip` <= 0 turns clipping off."""

    peak_lr: float = 6e-4
    final_lr: float = 0.1
    warmup: float = 100.0
    total: float = 1000.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip: float = 1.0
    weight_decay: Mapping[str, float] = field(default_factory=lambda: {"matrices": 0.1, "vectors": 0.0})


@dataclass
class Trained:
    """What `train_steps` gives. `gradients[i]` are step i's, averaged over its micro-batches and not yet
    clipped; `norms[i]` is their global norm and `lrs[i]` the step's learning rate."""

    losses: list[float]
    gradients: list[Params]
    norms: list[float]
    lrs: list[float]
    params: Params


def random_params(cfg: Config, seed: int, dtype: torch.dtype = torch.float32) -> Params:
    """Parameters for comparing programs: like GPT-2's start, but with no gain at 1 and no bias at 0, so
    that a term that is left out or put twice shows in the loss and in every gradient."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in cfg.shapes().items():
        std = 0.02 / math.sqrt(2 * cfg.L) if name in ("proj_w", "down_w") else 0.02
        value = rng.standard_normal(shape, dtype=np.float32) * np.float32(std if name in MATRICES else 0.1)
        if name in ("ln1_w", "ln2_w", "lnf_w"):
            value += 1
        params[name] = torch.from_numpy(value).to(dtype)
    return params


def random_batches(cfg: Any, seed: int, B: int, T: int, count: int) -> list[Batch]:
    """`count` batches of random tokens with their targets."""
    rng = np.random.default_rng(seed)
    return [
        (torch.from_numpy(rng.integers(0, cfg.V, (B, T))), torch.from_numpy(rng.integers(0, cfg.V, (B, T))))
        for _ in range(count)
    ]


def layernorm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Normalise the last axis to mean 0 and variance 1 (eps 1e-5 beside the variance), then scale, shift."""
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5) * w + b


def gelu(x: Tensor) -> Tensor:
    """GELU by its tanh formula."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(qkv: Tensor, heads: int) -> Tensor:
    """Causal self-attention on packed projections [B, T, 3C], each third holding the heads side by side."""
    b, t, c3 = qkv.shape
    q, k, v = qkv.view(b, t, 3, heads, c3 // 3 // heads).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    causal = torch.ones(t, t, dtype=torch.bool, device=qkv.device).tril()
    weights = scores.masked_fill(~causal, -math.inf).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(b, t, c3 // 3)


def logits(params: Params, tokens: Tensor, cfg: Config) -> Tensor:
    """Scores of the V words at every position, [B, T, V]: the padded rows of wte take no part."""
    p = params
    x = p["wte"][tokens] + p["wpe"][: tokens.shape[1]]
    for i in range(cfg.L):
        h = layernorm(x, p["ln1_w"][i], p["ln1_b"][i])
        a = attention(h @ p["qkv_w"][i].T + p["qkv_b"][i], cfg.H)
        x = x + (a @ p["proj_w"][i].T + p["proj_b"][i])
        h = layernorm(x, p["ln2_w"][i], p["ln2_b"][i])
        u = gelu(h @ p["up_w"][i].T + p["up_b"][i])
        x = x + (u @ p["down_w"][i].T + p["down_b"][i])
    h = layernorm(x, p["lnf_w"], p["lnf_b"])
    return (h @ p["wte"].T)[..., : cfg.V]


def forward(params: Params, tokens: Tensor, targets: Tensor, cfg: Config) -> Tensor:
    """Mean cross-entropy (nats) of the targets."""
    scores = logits(params, tokens, cfg)
    return F.cross_entropy(scores.reshape(-1, cfg.V), targets.reshape(-1))


def learning_rate(step: int, hyper: Hyper) -> float:
    """Linear warm-up, then half a cosine from peak_lr down to final_lr * peak_lr. `step` counts from 0."""
    if step < hyper.warmup:
        return hyper.peak_lr * (step + 1) / max(hyper.warmup, 1)
    turn = min(1.0, max(0.0, (step - hyper.warmup) / max(hyper.total - hyper.warmup, 1)))
    low = hyper.final_lr * hyper.peak_lr
    return low + 0.5 * (1 + math.cos(math.pi * turn)) * (hyper.peak_lr - low)


def train_steps(
    params: Params,
    batches: Sequence[Batch],
    cfg: Any,
    hyper: Hyper | None = None,
    accumulation: int = 1,
    loss_of: Callable[[Params, Tensor, Tensor, Any], Tensor] = forward,
    matrices: Collection[str] = MATRICES,
    muon: tuple[Muon, Collection[str]] | None = None,
) -> Trained:
    """AdamW steps over `batches`, `accumulation` of them to a step, in the dtype of `params` (not changed).

    A step's gradient is the mean of its micro-batches' gradients; its norm over all parameters is held to
    `clip`; weight decay is decoupled from the moments and scaled by the learning rate. `muon` trains the parameters
    named behind it in AdamW's place.
    """
    hyper = hyper or Hyper()
    theta = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
    m = {n: torch.zeros_like(p) for n, p in params.items()}
    v = {n: torch.zeros_like(p) for n, p in params.items()}
    out = Trained([], [], [], [], {})
    for step, micro_batches in enumerate(_groups(batches, accumulation)):
        loss = torch.stack([loss_of(theta, x, y, cfg) for x, y in micro_batches]).mean()
        gradients = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        scale = min(1.0, hyper.clip / (norm + 1e-6)) if hyper.clip > 0 else 1.0
        lr = learning_rate(step, hyper)
        with torch.no_grad():
            for name, p in theta.items():
                g = gradients[name] * scale
                if muon is not None and name in muon[1]:
                    muon[0].step(name, p, g, lr)
                    continue
                m[name].mul_(hyper.beta1).add_(g, alpha=1 - hyper.beta1)
                v[name].mul_(hyper.beta2).addcmul_(g, g, value=1 - hyper.beta2)
                mean = m[name] / (1 - hyper.beta1 ** (step + 1))
                spread = (v[name] / (1 - hyper.beta2 ** (step + 1))).sqrt()
                decay = hyper.weight_decay["matrices" if name in matrices else "vectors"]
                p -= lr * (mean / (spread + hyper.eps) + decay * p)
        out.losses.append(float(loss.detach()))
        out.gradients.append(gradients)
        out.norms.append(norm)
        out.lrs.append(lr)
    out.params = {n: p.detach() for n, p in theta.items()}
    return out


def _groups(batches: Sequence[Batch], size: int) -> Iterator[Sequence[Batch]]:
    if len(batches) % size:
        raise ValueError(f"{len(batches)} batches do not make whole steps of {size} micro-batches")
    for start in range(0, len(batches), size):
        yield batches[start : start + size]
