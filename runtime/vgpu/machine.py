"""The state of one kernel on the virtual GPU: register file, lanes, shared and local memory of a wave of blocks.

A wave is as many blocks as fill about `wave_threads` lanes; its blocks run together, each instruction over
all their lanes at once. Decoded instructions are closures bound to this state and are reused from wave to
wave and launch to launch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from tcomp.runtime.vgpu.flow import Flow, width
from tcomp.runtime.vgpu.lanes import Array, Sel, distinct, indices
from tcomp.runtime.vgpu.memory import GlobalMemory, Segment
from tcomp.runtime.vgpu.order import Order
from tcomp.runtime.vgpu.program import Program
from tcomp.runtime.vgpu.ptx import Instr, PtxModule
from tcomp.runtime.vgpu.races import Sets
from tcomp.runtime.vgpu.report import Finding, Report, Traffic
from tcomp.runtime.vgpu.starts import starts

Dim = tuple[int, int, int]
_DTYPES = {1: bool, 16: np.uint16, 32: np.uint32, 64: np.uint64, 128: np.complex128}


@dataclass(frozen=True)
class Options:
    """`checks`: races, initialisation, barriers (bounds and alignment are always on). `profile`: sectors and
    bank conflicts, of which more than `conflicts` extra passes for a warp's access, on average over the warps that
    come to it together, are a finding. `wave_threads`: lanes that run together; blocks that wait for each other must
    fit in it. `order`: a seed that shuffles the order in which the blocks of a wave start and take turns (starts.py);
    0: as numbered."""

    checks: bool = True
    profile: bool = True
    conflicts: float = math.inf
    wave_threads: int = 16384
    order: int = 0
    max_steps: int = 50_000_000


class WaveState:
    """State of a feature that a wave begins afresh and may end with findings. One that is made adds itself to the
    machine's `parts`."""

    def __init__(self, m: Machine) -> None:
        raise NotImplementedError

    @classmethod
    def of(cls, m: Machine) -> Self:
        """The machine's own, made when it is first asked for."""
        return next((p for p in m.parts if isinstance(p, cls)), None) or cls(m)

    def start(self) -> None:
        """A new wave of blocks."""

    def settle(self) -> None:
        """Nothing can run: complete what may no longer be put off."""

    def time_out(self) -> bool:
        """Nothing can run and nothing has changed: does it let some waiting lane go on?"""
        return False

    def finish(self) -> None:
        """Every lane has left, or the wave was stopped."""


class Machine:
    def __init__(
        self, module: PtxModule, program: Program, flow: Flow, memory: GlobalMemory, block: Dim, shared: int,
        slots: int, options: Options, sm: int, addresses: dict[str, int], cluster: Dim | None = None,
        registers: int | None = None,
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
        self.files: dict[int, Array] = {w: np.zeros((r, n), _DTYPES[w]) for w, r in flow.rows.items() if w in _DTYPES}
        self._rows: dict[str, Array] = {}
        self.defined: dict[str, Array] = {r: np.zeros(n, bool) for r in flow.tracked}
        self.alive: Array = np.zeros(n, bool)
        self.shared_size = shared
        self.shared_stride = (shared + 127) // 128 * 128
        self.local_stride = (program.local_bytes + 15) // 16 * 16
        self.local_limit = program.local_bytes  # grows with the stack of run-time calls
        self.frame: Array = np.zeros(n, np.int64)  # where each lane's frame begins in its local memory
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
        self.cluster, self.explicit_cluster = cluster or (1, 1, 1), cluster is not None
        self.ranks = self.cluster[0] * self.cluster[1] * self.cluster[2]  # blocks in a cluster
        self.rank: Array = self.slot % self.ranks
        self.team: Array = self.slot // self.ranks  # the cluster of each lane, its place among the cluster's warps
        self.place: Array = self.rank * self.warps + self.warp
        wide = any(i.opcode.startswith("wgmma") for i in program.code)
        self.bulk_sums = any(i.opcode.startswith("cp.reduce") and "global" in i.parts for i in program.code)
        """does the copy engine add to global memory?"""
        lanes_apart = any(i.opcode.startswith("mbarrier") for i in program.code)
        self.order = Order(
            slots // self.ranks, self.ranks, self.warps, -(-self.warps // 4) if wide else 0,
            self.alive if lanes_apart else None,
        )  # fmt: skip
        self.reader_sets = self.shared.reader_sets = Sets(self.order.columns())
        self.launch_registers = registers  # per thread, None where the kernel leaves it open
        self.shared_floor = 0
        self.proxy_fences: dict[int, int] = {}  # each block's last fence.proxy.async for global memory
        self.parts: list[WaveState] = []  # state of asynchronous features, made when a kernel uses them
        self.on_exit: list[Callable[[Instr, Array], None]] = []
        self.explain: dict[tuple[int, str], Callable[[int], str]] = {}  # what a lane waits for in an instruction
        self.progress = 0  # counts changes that may let a waiting lane go on
        self.fences: dict[int, list[int]] = {}
        self.strong: dict[int, int] = {}
        self.report = Report("", (1, 1, 1), block)
        self._merged: dict[tuple[str, int, str], Finding] = {}
        self.stopped = False
        self.copies: list[Any] = []
        self.copy_serial = 0
        self.committed: Array = np.zeros(n, np.int64)
        self.carry: Array = np.zeros(n, bool)
        self.warpgroups: Any = None  # wgmma_state.Warpgroups once the kernel is decoded

    def retire(self) -> None:
        """Nothing runs here any more: undo the links to what knows this machine, whose memory would else stay until
        Python next looks for circles."""
        self.parts.clear()
        self.on_exit.clear()
        self.explain.clear()
        self.warpgroups = None

    def row(self, name: str) -> Array:
        found = self._rows.get(name)
        if found is None:
            found = self._rows[name] = self.files[width(self.program.registers[name])][self.flow.row[name]]
        return found

    def start_wave(self, first: int, blocks: int) -> list[tuple[int, Sel]]:
        """Places blocks `first .. first + blocks` of the grid in the slots; gives each cohort's start and lanes."""
        gx, gy, _ = self.grid
        cx, cy, cz = self.cluster
        slot, rank = self.slot[:: self.stride], self.rank[:: self.stride]  # of each block: its first lane's
        number = (first + slot) // self.ranks
        placed, cohorts = starts(self.options.order, first // self.ranks, blocks // self.ranks)
        number[:blocks] = first // self.ranks + np.repeat(placed, self.ranks)
        wide, high = gx // cx, gy // cy
        x = number % wide * cx + rank % cx
        y = number // wide % high * cy + rank // cx % cy
        z = number // (wide * high) * cz + rank // (cx * cy)
        for row, of_block in zip((*self.ctaid, self.block_of_lane), (x, y, z, x + gx * (y + gy * z)), strict=True):
            row.reshape(-1, self.stride)[:] = of_block[:, None]
        self.alive[:] = self.valid & (self.slot < blocks)
        for s in (self.shared, self.local, self.args):
            s.init[:] = 0
        if self.shared.race is not None:
            self.shared.race.clear()
        for row in self.defined.values():
            row[:] = False
        self.order.start(self.now)
        self.shared_floor = self.now
        self.copies.clear()
        self.committed[:] = 0
        if self.shared.watch is not None:
            self.shared.watch.clear()
        for part in self.parts:
            part.start()
        if self.warpgroups is not None:
            self.warpgroups.start()
        self.now += 1
        size = self.ranks * self.stride
        ends = [*(place for place, _ in cohorts[1:]), blocks // self.ranks]
        found: list[tuple[int, Sel]] = []
        for (place, start), end in zip(cohorts, ends, strict=True):
            of = slice(place * size, end * size)
            found.append((start, of if self.threads == self.stride else indices(self.alive[of]) + of.start))
        return found

    def running(self) -> Array:
        """Which slots have a block with a thread left."""
        found: Array = np.asarray(self.alive.reshape(self.slots, self.stride).any(axis=1))
        return found

    def settle(self) -> None:
        for part in self.parts:
            part.settle()

    def finish_wave(self) -> None:
        """Every lane has left, or the wave was stopped."""
        for part in self.parts:
            part.finish()

    def traffic(self, space: str) -> Traffic:
        found = self.report.traffic.get(space)
        if found is None:
            found = self.report.traffic[space] = Traffic()
        return found

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
        self.now = max(self.now, self.memory.clock)
        self.launch_start = self.now
        self.fences, self.strong = {}, {}
        self.proxy_fences = {}
        self.stopped = False

    # --- who is ordered before whom
    def shared_order(self, lanes: Array, any_lane: bool = False) -> Any:
        """`any_lane`: whoever knows of one lane of a warp knows what all its lanes wrote."""

        def ordered(who: Array, when: Array, at: Array, reads: bool) -> Array:
            mine = lanes[at]
            column = (self.order.columns() if reads else self.order.column)[np.maximum(who, 0)]
            seen = self.order.seen(mine, column)
            for k in range(32) if any_lane and not reads else ():
                seen = np.maximum(seen, self.order.seen(mine, self.order.column[who & ~31 | k]))
            if reads:
                own = (who == self.warp_of_lane[mine]) | (who == self.order.lane_reader(mine))
                result: Array = (when <= seen) | own
                many = who < 0
                for code in distinct(who[many]).tolist():
                    of = who == code
                    places, times = self.reader_sets.readers(code)
                    known = np.stack([self.order.seen(mine[of], np.full(len(mine[of]), p)) for p in places.tolist()])
                    own = (places == self.place[mine[of]][:, None]) | (places == self.order.column[mine[of]][:, None])
                    result[of] = ((times[:, None] <= known) | own.T).all(axis=0)  # its own are in order
                return result
            result = when <= seen
            return result

        return ordered

    def global_order(self, lanes: Array) -> Any:
        def ordered(who: Array, when: Array, at: Array, reads: bool) -> Array:
            out = np.zeros(len(at), bool)
            mine = self.block_of_lane[lanes[at]]
            for block in distinct(who).tolist():
                fences = np.array(self.fences.get(block, ()), np.int64)  # in the order of time
                of = indices(who == block)
                after = np.searchsorted(fences, when[of])
                of, after = of[after < len(fences)], after[after < len(fences)]
                strong = np.array([self.strong.get(b, -1) for b in mine[of].tolist()], np.int64)
                out[of] = strong >= fences[after]
            if reads:  # several readers: trust any fence after the last of them
                for n in indices(who < 0).tolist():
                    out[n] = any(f and f[-1] >= when[n] for f in self.fences.values())
            return out

        return ordered
