"""A plain PyTorch Muon, written from the publication (Jordan et al., 2024): momentum with Nesterov's look ahead, five
Newton-Schulz iterations, and the size that makes an element's update 0.2 (Liu et al., 2025).

Computes in the dtype of what it is given, the iterations in `iterate` where that is narrower. Tensors of three axes
are matrices one behind the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

COEFFICIENTS = 3.4445, -4.7750, 2.0315


def orthogonal(g: Tensor) -> Tensor:
    """About U V^T of one matrix U S V^T; singular values end between 0.7 and 1.2, but for small ones."""
    a, b, c = COEFFICIENTS
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (torch.linalg.matrix_norm(x) + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


@dataclass
class Muon:
    """`step` updates a parameter in place, by its gradient (clipped already)."""

    momentum: float = 0.95
    rms: float = 0.2
    weight_decay: float = 0.1
    iterate: torch.dtype | None = None
    buffers: dict[str, Tensor] = field(default_factory=dict)

    def step(self, name: str, p: Tensor, g: Tensor, lr: float) -> None:
        m = self.buffers.setdefault(name, torch.zeros_like(p))
        m.lerp_(g, 1 - self.momentum)
        ahead = torch.lerp(g, m, self.momentum)
        for one, direction in zip(_matrices(p), _matrices(ahead), strict=True):
            whole = orthogonal(direction.to(self.iterate or direction.dtype)).to(one.dtype)
            one.mul_(1 - lr * self.weight_decay)
            one.sub_(whole, alpha=lr * self.rms * math.sqrt(max(one.shape)))


def _matrices(t: Tensor) -> list[Tensor]:
    return list(t) if t.ndim == 3 else [t]
