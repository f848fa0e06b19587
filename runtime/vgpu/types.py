"""PTX scalar types: width, kind and the NumPy type whose bits they are.

`bf16`, the 8-bit floats and packed types have no NumPy type; their dtype here is the unsigned integer of
their width, and the modules that compute with them convert by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tcomp.runtime.vgpu.errors import PtxError


@dataclass(frozen=True)
class Scalar:
    name: str
    bits: int
    kind: str  # "u" unsigned, "s" signed, "b" untyped, "f" float, "p" predicate, "x" packed or special float
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        return max(1, self.bits // 8)

    @property
    def signed(self) -> bool:
        return self.kind == "s"


def _table() -> dict[str, Scalar]:
    table = {}
    for bits in (8, 16, 32, 64):
        table[f"u{bits}"] = Scalar(f"u{bits}", bits, "u", np.dtype(f"uint{bits}"))
        table[f"s{bits}"] = Scalar(f"s{bits}", bits, "s", np.dtype(f"int{bits}"))
        table[f"b{bits}"] = Scalar(f"b{bits}", bits, "b", np.dtype(f"uint{bits}"))
        if bits > 8:
            table[f"f{bits}"] = Scalar(f"f{bits}", bits, "f", np.dtype(f"float{bits}"))
    table["pred"] = Scalar("pred", 1, "p", np.dtype(bool))
    for name, bits in (("bf16", 16), ("f16x2", 32), ("bf16x2", 32), ("tf32", 32), ("e4m3x2", 16), ("e5m2x2", 16),
                       ("e4m3", 8), ("e5m2", 8), ("u16x2", 32), ("s16x2", 32), ("f32x2", 64)):  # fmt: skip
        table[name] = Scalar(name, bits, "x", np.dtype(f"uint{bits}"))
    table["b128"] = Scalar("b128", 128, "b", np.dtype("V16"))
    return table


SCALARS = _table()


def scalar(name: str, line: int = 0) -> Scalar:
    found = SCALARS.get(name)
    if found is None:
        raise PtxError(f"unknown type `.{name}`", line)
    return found
