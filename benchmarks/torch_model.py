"""GPT-2 in PyTorch as one would write it for speed: the program that tcomp is timed against.

Fused library calls throughout (scaled_dot_product_attention, layer_norm, gelu, cross_entropy, the fused
AdamW), the vocabulary not padded. The mathematics, hyperparameters and starting weights are those of
models/gpt2.tc, so that the two programs' losses can be held against each other step by step.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from workload import HYPER, MATRICES, Sizes, parameter_shapes


class Gpt2(nn.Module):
    """Parameters are per layer, named as in models/gpt2.tc with the layer's number behind: `qkv_w_3`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.tables = nn.ParameterDict()
        for name, shape in parameter_shapes(sizes).items():
            if name == "wte":
                self.tables[name] = nn.Parameter(torch.empty(sizes.V, sizes.C))
            elif name in ("wpe", "lnf_w", "lnf_b"):
                self.tables[name] = nn.Parameter(torch.empty(shape))
            else:
                for layer in range(sizes.L):
                    self.tables[f"{name}_{layer}"] = nn.Parameter(torch.empty(shape[1:]))

    @torch.no_grad()
    def read_weights(self, path: Path) -> None:
        """Fill the parameters from the file that `workload.write_weights` made, with no copy in between."""
        with path.open("rb") as f:
            for name, shape in parameter_shapes(self.sizes).items():
                whole = name in ("wte", "wpe", "lnf_w", "lnf_b")
                parts = [name] if whole else [f"{name}_{layer}" for layer in range(self.sizes.L)]
                end = f.tell() + 4 * math.prod(shape)
                for part in parts:
                    f.readinto(memoryview(self.tables[part].numpy()).cast("B"))
                f.seek(end)  # past the padding rows of wte

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy."""
        b, t = tokens.shape
        c, heads, p = self.sizes.C, self.sizes.H, self.tables
        x = F.embedding(tokens, p["wte"]) + p["wpe"][:t]
        for i in range(self.sizes.L):
            h = F.layer_norm(x, (c,), p[f"ln1_w_{i}"], p[f"ln1_b_{i}"])
            qkv = F.linear(h, p[f"qkv_w_{i}"], p[f"qkv_b_{i}"])
            q, k, v = (z.view(b, t, heads, c // heads).transpose(1, 2) for z in qkv.split(c, dim=2))
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + F.linear(a.transpose(1, 2).reshape(b, t, c), p[f"proj_w_{i}"], p[f"proj_b_{i}"])
            h = F.layer_norm(x, (c,), p[f"ln2_w_{i}"], p[f"ln2_b_{i}"])
            u = F.gelu(F.linear(h, p[f"up_w_{i}"], p[f"up_b_{i}"]), approximate="tanh")
            x = x + F.linear(u, p[f"down_w_{i}"], p[f"down_b_{i}"])
        logits = F.linear(F.layer_norm(x, (c,), p["lnf_w"], p["lnf_b"]), p["wte"])
        return F.cross_entropy(logits.view(-1, self.sizes.V), targets.view(-1))


class Trainer:
    """The whole step: forward, backward, clip by global norm, AdamW with decay on the matrices only."""

    def __init__(self, sizes: Sizes, weights: Path, threads: int, compiled: bool) -> None:
        torch.set_num_threads(threads)
        self.model = Gpt2(sizes)
        self.model.read_weights(weights)
        self.parameters = list(self.model.parameters())
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, p in self.model.tables.items():
            groups[name.rstrip("0123456789").rstrip("_") in MATRICES].append(p)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": groups[True], "weight_decay": HYPER["weight_decay"]},
                {"params": groups[False], "weight_decay": 0.0},
            ],
            lr=HYPER["peak_lr"],
            betas=(HYPER["beta1"], HYPER["beta2"]),
            eps=HYPER["eps"],
            fused=True,
        )
        self.loss = torch.compile(self.model) if compiled else self.model
        self.count = 0

    def step(self, tokens: torch.Tensor, targets: torch.Tensor, lr: float) -> float:
        """One training step; returns its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = self.loss(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, HYPER["clip"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.count += 1
        return float(loss.detach())
