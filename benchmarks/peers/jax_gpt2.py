"""GPT-2's training step in JAX, for `tcomp bench gpt2 --against benchmarks/peers/jax_gpt2.py` (pip install jax).

The whole step is one jitted function whose parameters and moments are donated, as JAX programs are written for speed:
layers by `lax.scan` over stacked parameters, the vocabulary not padded, AdamW and the clip inside. In bf16
products and activations are that; parameters, statistics, the loss and the update stay f32.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tcomp.runtime.bench.workload import Ints, Weights, Workload

Arrays = dict[str, jax.Array]
LAYERS = ("ln1_w", "ln1_b", "qkv_w", "qkv_b", "proj_w", "proj_b", "ln2_w", "ln2_b", "up_w", "up_b", "down_w", "down_b")


class State(NamedTuple):
    """What a step changes: parameters and AdamW's moments, by name."""

    parameters: Arrays
    m: Arrays
    v: Arrays


class Program:
    """See `tcomp.runtime.bench.own_program`."""

    def __init__(self, workload: Workload, weights: Weights) -> None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: workload.threads])  # XLA has a thread for each
        jax.config.update("jax_compilation_cache_dir", os.environ["XDG_CACHE_HOME"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        parameters: Arrays = {}
        for p in workload.parameters:
            values = np.empty(p.shape, np.float32)
            weights.read(p.name, [values])
            parameters[p.name] = jnp.asarray(values[: int(workload.dims["V"])] if p.name == "wte" else values)
        m, v = ({name: jnp.zeros_like(p) for name, p in parameters.items()} for _ in range(2))
        self.state = State(parameters, m, v)
        self.heads, self.hyper = int(workload.dims["H"]), workload.hyper
        self.dtype = jnp.bfloat16 if workload.dtype == "bf16" else jnp.float32
        every = self.hyper.get("weight_decay", 0.0)
        self.decay = {p.name: self.hyper.get(f"{p.group}.weight_decay", every) for p in workload.parameters}
        self.update = jax.jit(self.train_step, donate_argnums=0)
        self.number = 0

    def step(self, tokens: Ints, targets: Ints, learning_rate: float) -> float:
        """One whole step; everything of it is waited for."""
        self.number += 1
        self.state, loss = self.update(self.state, tokens, targets, learning_rate, float(self.number))
        jax.block_until_ready(self.state)
        return float(loss)

    def train_step(
        self, state: State, tokens: jax.Array, targets: jax.Array, rate: jax.Array, number: jax.Array
    ) -> tuple[State, jax.Array]:
        """Parameters and moments after a step, and its loss; `number` counts from 1."""
        h = self.hyper
        loss, g = jax.value_and_grad(loss_of)(state.parameters, tokens, targets, self.heads, self.dtype)
        if h["clip"] > 0:
            norm = jnp.sqrt(sum(jnp.vdot(x, x) for x in g.values()))
            g = {name: x * jnp.minimum(1.0, h["clip"] / (norm + 1e-6)) for name, x in g.items()}
        b1, b2 = h["beta1"], h["beta2"]
        m = {name: b1 * state.m[name] + (1 - b1) * x for name, x in g.items()}
        v = {name: b2 * state.v[name] + (1 - b2) * x * x for name, x in g.items()}
        c1, c2 = 1 - b1**number, 1 - b2**number
        moved = {}
        for name, x in state.parameters.items():
            change = (m[name] / c1) / (jnp.sqrt(v[name] / c2) + h["eps"])
            moved[name] = x - rate * (change + self.decay[name] * x)
        return State(moved, m, v), loss


def layer_norm(given: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    x = given.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return ((x - mean) * jax.lax.rsqrt(variance + 1e-5) * w + b).astype(given.dtype)


def loss_of(masters: Arrays, tokens: jax.Array, targets: jax.Array, heads: int, dtype: type) -> jax.Array:
    """Mean cross-entropy of [B, T] tokens."""
    p = {name: x.astype(dtype) for name, x in masters.items()}
    batch, length = tokens.shape
    x = p["wte"][tokens] + p["wpe"][:length]
    channels = x.shape[-1]

    def layer(x: jax.Array, w: Arrays) -> tuple[jax.Array, None]:
        h = layer_norm(x, w["ln1_w"], w["ln1_b"])
        qkv = (h @ w["qkv_w"].T + w["qkv_b"]).reshape(batch, length, 3, heads, channels // heads)
        a = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], is_causal=True)
        x = x + a.reshape(batch, length, channels) @ w["proj_w"].T + w["proj_b"]
        h = layer_norm(x, w["ln2_w"], w["ln2_b"])
        u = jax.nn.gelu(h @ w["up_w"].T + w["up_b"], approximate=True)
        return x + u @ w["down_w"].T + w["down_b"], None

    x, _ = jax.lax.scan(layer, x, {name: p[name] for name in LAYERS})
    logits = layer_norm(x, p["lnf_w"], p["lnf_b"]) @ p["wte"].T
    logits = logits.astype(jnp.float32)
    right = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return (jax.nn.logsumexp(logits, -1) - right).mean()
