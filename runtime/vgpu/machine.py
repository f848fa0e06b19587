"""The state of one kernel on the virtual GPU: register file, lanes, shared and local memory of a wave of blocks.

A wave is as many blocks as fill about `wave_threads` lanes; its blocks run together, each instruction over
all their lanes at once. Decoded instructions are closures bound to this state and are reused from wave to
wave and launch to launch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tcomp.runtime.vgpu.flow import Flow, width
from tcomp.runtime.vgpu.lanes import Array, Sel
from tcomp.runtime.vgpu.memory import GlobalMemory, Segment
from tcomp.runtime.vgpu.program import Program
from tcomp.runtime.vgpu.ptx import Instr, PtxModule
from tcomp.runtime.vgpu.report import Finding, Report, Traffic

Dim = tuple[int, int, int]
_DTYPES = {1: bool, 16: np.uint16, 32: np.uint32, 64: np.uint64}


@dataclass(frozen=True)
class Options:
    """`checks`: races, initialisation, barriers (bounds and alignment are always on). `profile`: sectors and
    bank conflicts. `wave_threads`: lanes that run together; blocks that wait for each other must fit in it."""

    checks: bool = True
    profile: bool = True
    wave_threads: int = 16384
    max_steps: int = 50_000_000


class Machine:
    def __init__(
        self, module: PtxModule, program: Program, flow: Flow, memory: GlobalMemory, block: Dim, shared: int,
        slots: int, options: Options, sm: int, addresses: dict[str, int],
    ) -> None:  # fmt: skip
        self.module, self.program, self.flow, self.memory = module, program, flow, memory
        self.module_addresses = addresses
        self.options, self.sm, self.block, self.slots = options, sm, block, slots
        self.threads = block[0] * block[1] * block[2]
        self.warps = (self.threads + 31) // 32
        self.stride = self.warps * 32
        self.lanes = n = slots * self.stride
        self.ids: Array = np.arange(n)
        within = self.ids % self.stride
        self.valid: Array = within < self.threads
        self.slot: Array = self.ids // self.stride
        self.warp: Array = within // 32
        self.lane_in_warp: Array = (self.ids % 32).astype(np.uint32)
        self.tid = tuple(
            (within // d % s).astype(np.uint32)
            for d, s in ((1, block[0]), (block[0], block[1]), (block[0] * block[1], 1 << 30))
        )
        self.ctaid: list[Array] = [np.zeros(n, np.uint32) for _ in range(3)]
        self.block_of_lane: Array = np.zeros(n, np.int32)
        self.warp_of_lane: Array = (self.ids // 32).astype(np.int32)
        self.lane_actor: Array = self.ids.astype(np.int32)
        self.grid: Dim = (1, 1, 1)
        self.files = {w: np.zeros((r, n), _DTYPES[w]) for w, r in flow.rows.items() if w in _DTYPES}
        self.defined: dict[str, Array] = {r: np.zeros(n, bool) for r in flow.tracked}
        self.alive: Array = np.zeros(n, bool)
        self.shared_size = shared
        self.shared_stride = (shared + 127) // 128 * 128
        self.local_stride = (program.local_bytes + 15) // 16 * 16
        self.args_stride = (program.args_bytes + 15) // 16 * 16
        self.shared = Segment("shared", max(16, self.shared_stride * slots))
        self.local = Segment("local", max(16, self.local_stride * n))
        self.args = Segment("args", max(16, self.args_stride * n))
        self.param = Segment("param", max(16, program.param_bytes), initialised=True)
        self.shared_base: Array = self.slot * self.shared_stride
        self.local_base: Array = self.ids * self.local_stride
        self.args_base: Array = self.ids * self.args_stride
        self.now = 1
        self.launch_start = 0
        self.clock: Array = np.zeros((slots, self.warps, self.warps), np.int32)
        self.shared_floor = 0
        self.fences: dict[int, list[int]] = {}
        self.strong: dict[int, int] = {}
        self.report = Report("", (1, 1, 1), block)
        self._merged: dict[tuple[str, int, str], Finding] = {}
        self.stopped = False
        self.copies: list[Any] = []
        self.committed: Array = np.zeros(n, np.int64)
        self.carry: Array = np.zeros(n, bool)

    def row(self, name: str) -> Array:
        found: Array = self.files[width(self.program.registers[name])][self.flow.row[name]]
        return found

    def start_wave(self, first: int, blocks: int) -> Sel:
        """Places blocks `first .. first + blocks` of the grid in the slots; gives the lanes that start."""
        number = first + self.slot
        gx, gy, _ = self.grid
        self.ctaid[0][:] = number % gx
        self.ctaid[1][:] = number // gx % gy
        self.ctaid[2][:] = number // (gx * gy)
        self.block_of_lane[:] = number
        self.alive[:] = self.valid & (self.slot < blocks)
        for s in (self.shared, self.local, self.args):
            s.init[:] = 0
        if self.shared.race is not None:
            self.shared.race.clear()
        for row in self.defined.values():
            row[:] = False
        self.clock[:] = self.now
        self.shared_floor = self.now
        self.copies.clear()
        self.committed[:] = 0
        self.shared.pending = None
        self.now += 1
        if self.threads == self.stride:
            return slice(0, blocks * self.stride)
        return np.flatnonzero(self.alive)

    def traffic(self, space: str) -> Traffic:
        return self.report.traffic.setdefault(space, Traffic())

    def finding(
        self, kind: str, instr: Instr, lanes: Array, message: str, address: int | None = None, stop: bool = False
    ) -> None:
        """Notes a fault of `lanes` (the first one is named) at `instr`, merged with earlier ones of the line."""
        key = (kind, instr.line, instr.opcode)
        old = self._merged.get(key)
        if old is not None:
            old.count += len(lanes)
        else:
            lane = int(lanes[0]) if len(lanes) else 0
            new = Finding(
                kind, message, instr.line, self.module.source_line(instr.line),
                (int(self.ctaid[0][lane]), int(self.ctaid[1][lane]), int(self.ctaid[2][lane])),
                (int(self.tid[0][lane]), int(self.tid[1][lane]), int(self.tid[2][lane])),
                lane % 32, address, max(1, len(lanes)),
            )  # fmt: skip
            self._merged[key] = new
            self.report.findings.append(new)
        if stop:
            self.stopped = True

    def begin(self, report: Report) -> None:
        self.report = report
        self._merged = {}
        self.launch_start = self.now
        self.fences, self.strong = {}, {}
        self.stopped = False

    # --- who is ordered before whom
    def shared_order(self, lanes: Array) -> Any:
        def ordered(who: Array, when: Array, at: Array, reads: bool) -> Array:
            mine = lanes[at]
            slot, w = self.slot[mine], self.warp[mine]
            other = who % self.warps if reads else self.warp[np.maximum(who, 0)]
            seen = self.clock[slot, w, np.maximum(other, 0)]
            if reads:
                same_warp = (who == self.warp_of_lane[mine])  # fmt: skip
                least = self.clock[slot, w].min(axis=1)
                result: Array = np.where(who < 0, when <= least, (when <= seen) | same_warp)
                return result
            result = when <= seen
            return result

        return ordered

    def global_order(self, lanes: Array) -> Any:
        def ordered(who: Array, when: Array, at: Array, reads: bool) -> Array:
            out = np.zeros(len(at), bool)
            mine = self.block_of_lane[lanes[at]]
            for n in range(len(at)):
                fences = self.fences.get(int(who[n]), ())
                after = next((f for f in fences if f >= when[n]), None)
                out[n] = after is not None and self.strong.get(int(mine[n]), -1) >= after
            if reads:  # several readers: trust any fence after the last of them
                for n in np.flatnonzero(who < 0).tolist():
                    out[n] = any(f and f[-1] >= when[n] for f in self.fences.values())
            return out

        return ordered
