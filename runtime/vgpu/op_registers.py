"""setmaxnreg (PTX ISA 9.7.19.5): warpgroups hand registers to each other through their block's pool.

The pool is what decreases have freed; every warp starts with the launch's registers per thread. Where those are
not known (no .maxntid, .reqntid, .maxnreg, and none given at launch) the hint has no effect, as ptxas has it.
griddepcontrol orders nothing here, where kernels run one after another.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tcomp.runtime.vgpu.decoder import Decoder, Run, instruction
from tcomp.runtime.vgpu.errors import PtxError
from tcomp.runtime.vgpu.lanes import Array, Sel, distinct, ids, some
from tcomp.runtime.vgpu.machine import Machine, WaveState
from tcomp.runtime.vgpu.ptx import Imm, Instr

KIND = "setmaxnreg misuse"
FILE, MOST = 65536, 255  # registers of an SM, and of a thread


def at_launch(m: Machine) -> int | None:
    """Registers per thread that a block starts with, in steps of 8; None where the kernel leaves it open."""
    if m.launch_registers is not None:
        return -(-m.launch_registers // 8) * 8
    given = m.program.entry.directives
    if "maxnreg" in given:
        return -(-given["maxnreg"][0] // 8) * 8
    sizes = given.get("reqntid") or given.get("maxntid")
    if not sizes:
        return None
    threads = int(np.prod(sizes)) * max(1, *given.get("minnctapersm", (1,)))
    return min(FILE // (-(-threads // 128) * 128), MOST) // 8 * 8


class Registers(WaveState):
    """Registers per thread of each warp of the wave, and the free ones of each block (in threads' registers x 32)."""

    def __init__(self, m: Machine) -> None:
        self.m = m
        self.launch = at_launch(m)
        self.start()
        m.parts.append(self)

    def start(self) -> None:
        self.held: Array = np.full(self.m.lanes // 32, self.launch or 0, np.int64)
        self.pool: Array = np.zeros(self.m.slots, np.int64)

    def change(self, i: Instr, warps: Array, slot: int, count: int, grow: bool) -> bool:
        """A whole warpgroup changes to `count`; False where it must wait for the pool."""
        if self.launch is None:
            return True
        held = self.held[warps]
        wrong = held > count if grow else held < count
        if some(wrong):
            word = "more than it asks for" if grow else "fewer than it would keep"
            self.m.finding(KIND, i, warps[wrong] << 5,
                           f"the warp has {int(held[wrong][0])} registers a thread, {word} ({count})")  # fmt: skip
        need = int((count - held).sum())
        if need > self.pool[slot]:
            return False
        self.pool[slot] -= need
        self.held[warps] = count
        self.m.progress += 1
        return True


@instruction("setmaxnreg")
def set_registers(d: Decoder, i: Instr) -> Run:
    m = d.m
    count = i.operands[0]
    if not isinstance(count, Imm):
        raise d.unknown(i, "the register count must be a constant")
    n, grow = int(count.value), "inc" in i.parts
    if not 24 <= n <= 256 or n % 8:
        raise PtxError(f"`{i.opcode} {n}`: the count must be a multiple of 8 from 24 to 256", i.line)
    registers = Registers.of(m)
    per_block = -(-m.warps // 4)

    def run(sel: Sel) -> Any:
        lanes = ids(sel)
        group = m.slot[lanes] * per_block + m.warp[lanes] // 4
        go = []
        for g in distinct(group).tolist():
            members = lanes[group == g]
            slot = g // per_block
            warps = slot * m.warps + g % per_block * 4 + np.arange(min(4, m.warps - g % per_block * 4))
            if len(members) < m.alive.reshape(-1, 32)[warps].sum():
                continue  # the rest of the warpgroup has yet to come
            if registers.change(i, warps, slot, n, grow):
                go.append(members)
        if len(go) and sum(len(x) for x in go) == len(lanes):
            return None
        return np.sort(np.concatenate(go)) if go else np.zeros(0, np.int64)

    def describe(lane: int) -> str:
        slot = int(m.slot[lane])
        return (f"waits in `{i.opcode} {n}` for the rest of its warpgroup, or for registers: its block's pool has "
                f"{int(registers.pool[slot])} for each lane of a warp")  # fmt: skip

    m.explain[i.line, i.opcode] = describe
    return run


@instruction("griddepcontrol")
def grid_dependency(d: Decoder, i: Instr) -> Run:
    if i.parts[1] not in ("wait", "launch_dependents"):
        raise d.unknown(i)
    return lambda sel: None
