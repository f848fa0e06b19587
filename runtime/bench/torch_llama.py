"""Llama in PyTorch as one would write it for speed: fused library calls, rotary tables made once.

The mathematics and parameters are those of models/llama.tc: RMSNorm, rotary positions with Llama 3.1's scaling,
grouped-query attention, SwiGLU.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tcomp.runtime.bench.torch_base import Counterpart
from tcomp.runtime.bench.workload import Workload


class Llama(Counterpart):
    """`head_w` is there only where the head is not tied to the embedding."""

    whole = ("wte", "normf_w", "head_w")
    padded = ("wte", "head_w")

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        angles = torch.outer(torch.arange(workload.length, dtype=torch.float64), self.frequencies())
        self.register_buffer("cosine", angles.cos().float()[:, None], persistent=False)  # [T, 1, E]
        self.register_buffer("sine", angles.sin().float()[:, None], persistent=False)

    def frequencies(self) -> Tensor:
        """The rotation of each pair of coordinates per position, f64 [E] (`fn scaled` of models/ops/rotary.tc)."""
        d = self.dims
        e = self.integer("E")
        plain = d["theta"] ** (-torch.arange(e, dtype=torch.float64) / e)
        kept = ((d["original"] * plain / (2 * math.pi) - d["low"]) / (d["high"] - d["low"])).clamp(0, 1)
        return plain * ((1 - kept) / d["factor"] + kept)

    def rotate(self, x: Tensor) -> Tensor:
        """x [B, T, heads, 2 E], each head's coordinates e and e + E turned by the position's angle."""
        a, b = x.chunk(2, dim=-1)
        c, s = self.cosine.to(x.dtype), self.sine.to(x.dtype)
        return torch.cat((a * c - b * s, b * c + a * s), dim=-1)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of [B, T] tokens."""
        b, t = tokens.shape
        c, h, g, d, p = *(self.integer(n) for n in "CHGD"), self.tables
        eps = self.dims["eps"]
        x = F.embedding(tokens, p["wte"])
        for i in range(self.integer("L")):
            n = F.rms_norm(x, (c,), p[f"norm1_w_{i}"], eps)
            qkv = F.linear(n, p[f"qkv_w_{i}"]).view(b, t, h + 2 * g, d)
            turned, v = self.rotate(qkv[:, :, : h + g]).transpose(1, 2), qkv[:, :, h + g :].transpose(1, 2)
            q, k = turned.split((h, g), dim=1)
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + F.linear(a.transpose(1, 2).reshape(b, t, h * d), p[f"proj_w_{i}"])
            n = F.rms_norm(x, (c,), p[f"norm2_w_{i}"], eps)
            gate, up = F.linear(n, p[f"up_w_{i}"]).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, p[f"down_w_{i}"])
        head = p["head_w"] if "head_w" in p else p["wte"]
        logits = F.linear(F.rms_norm(x, (c,), p["normf_w"], eps), head)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))
