"""GPT-2's training step in tinygrad, for `tcomp bench gpt2 --against benchmarks/peers/tinygrad_gpt2.py`.

It takes pip install tinygrad, and clang. The whole step is under one TinyJit on tinygrad's CPU device: two calls
run without the jit, the third captures it; `tcomp bench` checks the losses of three before it times any.
BEAM=N has it search for its kernels. Plain attention, as scaled_dot_product_attention there writes it. f32 only.
"""

from __future__ import annotations

import os

os.environ.setdefault("CACHEDB", os.path.join(os.environ["XDG_CACHE_HOME"], "tinygrad.db"))
os.environ.setdefault("DEV", "CPU")

import numpy as np
from tinygrad import Tensor, TinyJit, dtypes

from tcomp.errors import UserError
from tcomp.runtime.bench.workload import Ints, Weights, Workload


class Program:
    """See `tcomp.runtime.bench.own_program`."""

    def __init__(self, workload: Workload, weights: Weights) -> None:
        if workload.dtype != "f32":
            raise UserError("tinygrad_gpt2.py computes in f32 only", "give --dtype f32")
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: workload.threads])
        Tensor.training = True
        self.heads, self.layers = int(workload.dims["H"]), int(workload.dims["L"])
        self.hyper = hyper = workload.hyper
        self.p: dict[str, Tensor] = {}
        self.decay: dict[str, float] = {}
        for p in workload.parameters:
            values = np.empty(p.shape, np.float32)
            weights.read(p.name, [values])
            decay = hyper.get(f"{p.group}.weight_decay", hyper.get("weight_decay", 0.0))
            single = p.name in ("wte", "wpe", "lnf_w", "lnf_b")
            parts = [values[: int(workload.dims["V"])] if p.name == "wte" else values] if single else list(values)
            for i, part in enumerate(parts):
                name = p.name if single else f"{p.name}_{i}"
                self.p[name] = Tensor(np.ascontiguousarray(part)).is_param_().realize()
                self.decay[name] = decay
        self.m = {n: Tensor.zeros(*p.shape).contiguous().realize() for n, p in self.p.items()}
        self.v = {n: Tensor.zeros(*p.shape).contiguous().realize() for n, p in self.p.items()}
        self.jitted = TinyJit(self.update)
        self.number = 0

    def step(self, tokens: Ints, targets: Ints, learning_rate: float) -> float:
        """One whole step; reading the loss waits for all of it."""
        self.number += 1
        h = self.hyper
        scalars = np.array([learning_rate, 1 - h["beta1"] ** self.number, 1 - h["beta2"] ** self.number], np.float32)
        loss = self.jitted(Tensor(tokens).realize(), Tensor(targets).realize(), Tensor(scalars).realize())
        return float(loss.item())

    def update(self, tokens: Tensor, targets: Tensor, scalars: Tensor) -> Tensor:
        h = self.hyper
        loss = self.loss(tokens, targets)
        names = list(self.p)
        grads = dict(zip(names, loss.gradient(*(self.p[n] for n in names)), strict=True))
        if h["clip"] > 0:
            norm = sum((g.square().sum() for g in grads.values()), start=Tensor(0.0)).sqrt()
            scale = (h["clip"] / (norm + 1e-6)).minimum(1.0).contiguous()
            grads = {n: g * scale for n, g in grads.items()}
        for n, g in grads.items():
            self.m[n].assign(h["beta1"] * self.m[n] + (1 - h["beta1"]) * g)
            self.v[n].assign(h["beta2"] * self.v[n] + (1 - h["beta2"]) * g * g)
            change = (self.m[n] / scalars[1]) / ((self.v[n] / scalars[2]).sqrt() + h["eps"])
            self.p[n].assign(self.p[n].detach() - scalars[0] * (change + self.decay[n] * self.p[n].detach()))
        return loss.realize(*self.p.values(), *self.m.values(), *self.v.values())

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of [B, T] tokens."""
        b, t = tokens.shape
        p = self.p
        x = p["wte"][tokens] + p["wpe"][:t]
        c = x.shape[-1]
        for i in range(self.layers):
            h = x.layernorm(eps=1e-5) * p[f"ln1_w_{i}"] + p[f"ln1_b_{i}"]
            qkv = h.linear(p[f"qkv_w_{i}"].T, p[f"qkv_b_{i}"]).reshape(b, t, 3, self.heads, c // self.heads)
            q, k, v = (qkv[:, :, n].transpose(1, 2) for n in range(3))
            a = q.scaled_dot_product_attention(k, v, is_causal=True).transpose(1, 2).reshape(b, t, c)
            x = x + a.linear(p[f"proj_w_{i}"].T, p[f"proj_b_{i}"])
            h = x.layernorm(eps=1e-5) * p[f"ln2_w_{i}"] + p[f"ln2_b_{i}"]
            u = h.linear(p[f"up_w_{i}"].T, p[f"up_b_{i}"]).gelu()
            x = x + u.linear(p[f"down_w_{i}"].T, p[f"down_b_{i}"])
        h = x.layernorm(eps=1e-5) * p["lnf_w"] + p["lnf_b"]
        logits = h.linear(p["wte"].T).cast(dtypes.float)
        return logits.reshape(b * t, -1).sparse_categorical_crossentropy(targets.reshape(-1))
