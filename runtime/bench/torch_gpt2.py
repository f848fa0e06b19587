"""GPT-2 in PyTorch as one would write it for speed: fused library calls, the vocabulary not padded.

The mathematics and parameters are those of models/gpt2.tc.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tcomp.runtime.bench.torch_base import Counterpart


class Gpt2(Counterpart):
    """Pre-norm blocks, GELU by tanh, the output head tied to the embedding."""

    whole = ("wte", "wpe", "lnf_w", "lnf_b")
    padded = ("wte",)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of [B, T] tokens."""
        b, t = tokens.shape
        c, heads, p = self.integer("C"), self.integer("H"), self.tables
        x = F.embedding(tokens, p["wte"]) + p["wpe"][:t]
        for i in range(self.integer("L")):
            h = F.layer_norm(x, (c,), p[f"ln1_w_{i}"], p[f"ln1_b_{i}"])
            qkv = F.linear(h, p[f"qkv_w_{i}"], p[f"qkv_b_{i}"])
            q, k, v = (z.view(b, t, heads, c // heads).transpose(1, 2) for z in qkv.split(c, dim=2))
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + F.linear(a.transpose(1, 2).reshape(b, t, c), p[f"proj_w_{i}"], p[f"proj_b_{i}"])
            h = F.layer_norm(x, (c,), p[f"ln2_w_{i}"], p[f"ln2_b_{i}"])
            u = F.gelu(F.linear(h, p[f"up_w_{i}"], p[f"up_b_{i}"]), approximate="tanh")
            x = x + F.linear(u, p[f"down_w_{i}"], p[f"down_b_{i}"])
        logits = F.linear(F.layer_norm(x, (c,), p["lnf_w"], p["lnf_b"]), p["wte"])
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))
