"""A plain PyTorch Llama that says what models/llama.tc says, and the same parameters as transformers names them.

Parameters are a dict with the names, shapes and layout of models/llama.tc. Autograd does the backward.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.reference.torch_gpt2 import Params

MATRICES = ("wte", "qkv_w", "proj_w", "up_w", "down_w", "head_w")


@dataclass(frozen=True)
class Config:
    """Sizes and rotary frequencies by the names of models/llama.tc."""

    L: int
    H: int
    G: int
    D: int
    C: int
    F: int
    V: int
    S: int = 256
    TIED: int = 1
    eps: float = 1e-5
    theta: int = 10000
    factor: int = 1
    low: int = 1
    high: int = 4
    original: int = 8192

    @property
    def P(self) -> int:
        return -(-self.V // 128) * 128

    def shapes(self) -> dict[str, tuple[int, ...]]:
        layers, c = self.L, self.C
        found = {
            "wte": (self.P, c),
            "norm1_w": (layers, c),
            "qkv_w": (layers, (self.H + 2 * self.G) * self.D, c),
            "proj_w": (layers, c, self.H * self.D),
            "norm2_w": (layers, c),
            "up_w": (layers, 2 * self.F, c),
            "down_w": (layers, c, self.F),
            "normf_w": (c,),
        }
        return found if self.TIED else {**found, "head_w": (self.P, c)}

    def hf(self) -> dict[str, Any]:
        """The arguments of transformers' LlamaConfig."""
        scaling = {
            "rope_type": "llama3", "factor": float(self.factor), "low_freq_factor": float(self.low),
            "high_freq_factor": float(self.high), "original_max_position_embeddings": self.original,
        } if self.factor != 1 else {"rope_type": "default"}  # fmt: skip
        return {
            "num_hidden_layers": self.L, "num_attention_heads": self.H, "num_key_value_heads": self.G,
            "head_dim": self.D, "hidden_size": self.C, "intermediate_size": self.F, "vocab_size": self.V,
            "max_position_embeddings": self.S, "tie_word_embeddings": bool(self.TIED), "rms_norm_eps": self.eps,
            "rope_parameters": {"rope_theta": float(self.theta), **scaling},
        }  # fmt: skip


def dims(cfg: Config) -> dict[str, int | float]:
    return asdict(cfg)


def random_params(cfg: Config, seed: int, dtype: torch.dtype = torch.float32) -> Params:
    """Gains off 1 and matrices large enough that every term shows."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in cfg.shapes().items():
        value = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.06 if name in MATRICES else 0.1)
        if name not in MATRICES:
            value += 1
        params[name] = torch.from_numpy(value).to(dtype)
    return params


def rmsnorm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * w


def frequencies(cfg: Config) -> Tensor:
    """Llama 3.1's scaled inverse frequencies, by its three cases."""
    f = 1.0 / cfg.theta ** (torch.arange(0, cfg.D, 2, dtype=torch.float64) / cfg.D)
    long, short = cfg.original / cfg.low, cfg.original / cfg.high
    out = []
    for x in f.tolist():
        wave = 2 * math.pi / x
        if wave < short:
            out.append(x)
        elif wave > long:
            out.append(x / cfg.factor)
        else:
            smooth = (cfg.original / wave - cfg.low) / (cfg.high - cfg.low)
            out.append((1 - smooth) * x / cfg.factor + smooth * x)
    return torch.tensor(out, dtype=torch.float64)


def logits(params: Params, tokens: Tensor, cfg: Config) -> Tensor:
    p = params
    b, t = tokens.shape
    angles = torch.arange(t)[:, None] * frequencies(cfg)
    cosine, sine = (torch.cat([f(angles)] * 2, -1).to(p["wte"].dtype) for f in (torch.cos, torch.sin))

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cosine + torch.cat([-second, first], -1) * sine

    x = p["wte"][tokens]
    for i in range(cfg.L):
        h = rmsnorm(x, p["norm1_w"][i], cfg.eps) @ p["qkv_w"][i].T
        q, k, v = h.view(b, t, -1, cfg.D).transpose(1, 2).split([cfg.H, cfg.G, cfg.G], dim=1)
        q, k = turned(q), turned(k)
        k, v = (y.repeat_interleave(cfg.H // cfg.G, dim=1) for y in (k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(cfg.D)
        scores = scores.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), -math.inf)
        x = x + (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, -1) @ p["proj_w"][i].T
        gate, up = (rmsnorm(x, p["norm2_w"][i], cfg.eps) @ p["up_w"][i].T).chunk(2, dim=-1)
        x = x + (F.silu(gate) * up) @ p["down_w"][i].T
    head = p["wte"] if cfg.TIED else p["head_w"]
    return (rmsnorm(x, p["normf_w"], cfg.eps) @ head.T)[..., : cfg.V]


def forward(params: Params, tokens: Tensor, targets: Tensor, cfg: Config) -> Tensor:
    """Mean cross-entropy (nats) of the targets."""
    return F.cross_entropy(logits(params, tokens, cfg).reshape(-1, cfg.V), targets.reshape(-1))


def hf_state(params: Params, cfg: Config) -> dict[str, Tensor]:
    """The parameters by the names of transformers' LlamaForCausalLM."""
    h, g = cfg.H * cfg.D, cfg.G * cfg.D
    state = {
        "model.embed_tokens.weight": params["wte"][: cfg.V],
        "model.norm.weight": params["normf_w"],
        "lm_head.weight": params["wte" if cfg.TIED else "head_w"][: cfg.V],
    }
    for i in range(cfg.L):
        q, k, v = params["qkv_w"][i].split([h, g, g])
        gate, up = params["up_w"][i].chunk(2)
        names = {
            "input_layernorm": params["norm1_w"][i], "post_attention_layernorm": params["norm2_w"][i],
            "self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v,
            "self_attn.o_proj": params["proj_w"][i], "mlp.gate_proj": gate, "mlp.up_proj": up,
            "mlp.down_proj": params["down_w"][i],
        }  # fmt: skip
        state |= {f"model.layers.{i}.{n}.weight": t for n, t in names.items()}
    return state


def from_hf(state: dict[str, Tensor], cfg: Config) -> Params:
    """The inverse of `hf_state`, padding rows zero; also for gradients (where tied, the head has none of its own)."""

    def padded(t: Tensor) -> Tensor:
        return F.pad(t, (0, 0, 0, cfg.P - cfg.V))

    def layers(*names: str) -> Tensor:
        return torch.stack([torch.cat([state[f"model.layers.{i}.{n}.weight"] for n in names]) for i in range(cfg.L)])

    found = {
        "wte": padded(state["model.embed_tokens.weight"]),
        "norm1_w": layers("input_layernorm"),
        "qkv_w": layers("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "proj_w": layers("self_attn.o_proj"),
        "norm2_w": layers("post_attention_layernorm"),
        "up_w": layers("mlp.gate_proj", "mlp.up_proj"),
        "down_w": layers("mlp.down_proj"),
        "normf_w": state["model.norm.weight"],
    }
    return found if cfg.TIED else {**found, "head_w": padded(state["lm_head.weight"])}
