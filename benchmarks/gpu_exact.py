"""Attention in float64, head by head: for lengths at which the oracle's arrays (all pairs of positions by all channels)
would not fit in memory. tests/ holds it to the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def attention(inputs: Mapping[str, Array], full: bool) -> dict[str, Array]:
    """What `attention` or `grouped_attention` gives, or with dO among the inputs its gradients."""
    x = {n: np.asarray(a, np.float64) for n, a in inputs.items()}
    packed = "QKV" in x
    if packed:  # every head has a key of its own: groups of one
        q, k, v = (x["QKV"][:, :, i] for i in range(3))
        q = q[:, :, :, None]
    else:
        q, k, v = x["Q"], x["K"], x["V"]
    b, t, g, r, d = q.shape
    out, logs = np.empty_like(q), np.empty((b, g, r, t))
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    hidden = np.zeros((t, t), bool) if full else ~np.tri(t, dtype=bool)
    for n, i, j in np.ndindex(b, g, r):
        qs, ks, vs = q[n, :, i, j], k[n, :, i], v[n, :, i]
        scores = np.where(hidden, -np.inf, qs @ ks.T * d**-0.5)
        if "dO" not in x:
            top = scores.max(1)
            weights = np.exp(scores - top[:, None])
            out[n, :, i, j] = weights @ vs / weights.sum(1)[:, None]
            logs[n, i, j] = top + np.log(weights.sum(1))
            continue
        o, do = (x[a].reshape(q.shape)[n, :, i, j] for a in ("O", "dO"))
        weights = np.exp(scores - x["L"].reshape(b, g, r, t)[n, i, j][:, None])
        inner = weights * (do @ vs.T - (o * do).sum(1)[:, None]) * d**-0.5
        dq[n, :, i, j] = inner @ ks
        dk[n, :, i] += inner.T @ qs
        dv[n, :, i] += weights.T @ do
    if "dO" in x:
        if packed:
            return {"dQKV": np.stack([dq[:, :, :, 0], dk, dv], 2)}
        return {"dQ": dq, "dK": dk, "dV": dv}
    return {"O": out[:, :, :, 0], "L": logs[:, :, 0]} if packed else {"O": out, "L": logs}
