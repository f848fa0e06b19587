"""Loads of register tiles that stand before a product by wgmma, issued behind it.

    X.registers = X.shared                       part = sum r: D.shared * W.shared  # by wgmma
    part = sum r: D.shared * W.shared     -->    X.registers = X.shared
    acc += part * X.registers                    acc += part * X.registers

A warpgroup only starts such a product; what it loads meanwhile is there when the result is. Before the product, loads
would hold it up: a warp's instructions are issued in order, and its queue of memory instructions is short.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tcomp.ir.register_loads import loads_registers
from tcomp.ir.rewrite import Body, map_bodies
from tcomp.ir.tile import Buffer, Compute, Statement
from tcomp.ir.walk import accesses_of


def late_loads(tiles: Mapping[str, Buffer], phases: Sequence[Body]) -> list[Body]:
    """The phases with such loads behind the product that follows them, where it neither reads nor adds to what they
    load."""
    return [map_bodies(phase, lambda body, _: _late(body, tiles)) for phase in phases]


def _late(body: Body, tiles: Mapping[str, Buffer]) -> list[Statement]:
    out: list[Statement] = []
    waiting: list[Statement] = []
    for s in body:
        if loads_registers(s, tiles):
            waiting.append(s)
            continue
        loaded = {x.target.tensor for x in waiting if isinstance(x, Compute)}
        product = isinstance(s, Compute) and s.instruction.startswith("wgmma")
        if product and isinstance(s, Compute) and loaded.isdisjoint(a.tensor for a in accesses_of(s)):
            out += [s, *waiting]
        else:
            out += [*waiting, s]
        waiting.clear()
    return [*out, *waiting]
