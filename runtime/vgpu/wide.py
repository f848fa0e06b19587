"""128-bit registers, as two 64-bit halves (low first): NumPy has no 128-bit integer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tcomp.runtime.vgpu.decoder import Decoder, Put, Source
from tcomp.runtime.vgpu.errors import PtxError
from tcomp.runtime.vgpu.lanes import Array
from tcomp.runtime.vgpu.ptx import Operand, Reg


def _rows(d: Decoder, o: Operand) -> tuple[str, Array]:
    if not isinstance(o, Reg) or d.m.program.registers.get(o.name) != "b128":
        raise PtxError("expected a .b128 register", d.line)
    pair: Array = d.m.row(o.name).view(np.uint64).reshape(-1, 2)
    return o.name, pair


def sources(d: Decoder, o: Operand) -> list[Source]:
    """Readers of the low and the high half of a .b128 register."""
    name, pair = _rows(d, o)
    halves: list[Source] = [pair[:, n].__getitem__ for n in range(2)]
    if name in d.m.flow.tracked and d.m.options.checks:
        halves = [d.checked(name, get) for get in halves]
    return halves


def puts(d: Decoder, o: Operand) -> list[Put]:
    """Writers of the two halves; `_` takes anything."""
    if isinstance(o, Reg) and o.name == "_":
        return [lambda sel, value: None] * 2
    name, pair = _rows(d, o)
    return [d.tracking(name, pair[:, n].__setitem__) for n in range(2)]


def whole(d: Decoder, o: Operand) -> Callable[[object], Array]:
    """A reader of both halves: (lanes, 2) uint64."""
    low, high = sources(d, o)
    return lambda sel: np.stack(np.broadcast_arrays(low(sel), high(sel)), axis=-1)
