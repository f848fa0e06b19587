"""The operands of wgmma.mma_async as matrices: tiles of shared memory behind a descriptor, and A in registers."""

from __future__ import annotations

from typing import Any

import numpy as np

from tcomp.runtime.vgpu import proxy
from tcomp.runtime.vgpu.decoder import Decoder
from tcomp.runtime.vgpu.lanes import Array, Sel, distinct, one_each, some
from tcomp.runtime.vgpu.machine import Machine
from tcomp.runtime.vgpu.matrix_numbers import values
from tcomp.runtime.vgpu.ptx import Instr, Operand
from tcomp.runtime.vgpu.wgmma_descriptor import CHUNK, chunk_addresses, layout_of, start_of, unused_bits
from tcomp.runtime.vgpu.wgmma_state import Held, warpgroups

_HIGH = ~np.uint64(0x3FFF)


class SharedOperand:
    """A (64 x K) or B (N x K) in shared memory; `extent` is 64 or N."""

    def __init__(self, d: Decoder, i: Instr, o: Operand, extent: int, kind: str, transposed: bool) -> None:
        self.m, self.i, self.extent, self.kind, self.transposed = d.m, i, extent, kind, transposed
        self.source = d.source(o, "u64")
        self.state = warpgroups(d.m)
        self.name = f"the {'A' if o is i.operands[1] else 'B'} descriptor"

    def load(self, sel: Sel, groups: Array) -> tuple[Array, list[Held]]:
        """((warpgroups, extent, K) f32 values, what the hardware now reads). Faulty descriptors give zeros."""
        m = self.m
        n = len(groups)
        given = one_each(self.source(sel), 128 * n)
        descriptors = uniform(m, self.i, given, sel, self.name)
        addresses = np.empty((n, *self._shape()), np.int64)
        high = descriptors & _HIGH
        for bits in distinct(high):
            at = high == bits
            layout = layout_of(int(bits))
            addresses[at] = chunk_addresses(start_of(descriptors[at]), layout, self.extent, self.transposed)
            if unused_bits(int(bits)):
                self._report("malformed wgmma descriptor", groups[at],
                             f"{self.name} has bits set that must be zero: {unused_bits(int(bits)):#x}")  # fmt: skip
        first = self.state.first_lane[groups]
        tile, start, outside = tiles_at(m, addresses, first)
        if some(outside):
            self._report("out of bounds shared", groups[outside.any(axis=(1, 2))],
                         f"{self.name} leaves the {m.shared_size} bytes of shared memory",
                         int(addresses[outside][0]))  # fmt: skip
        found = values(tile, self.kind)
        if self.transposed:
            found = found.swapaxes(1, 2)
        return found, self._hold(groups, start, first, outside) if m.options.checks else []

    def _shape(self) -> tuple[int, int]:
        return (16, self.extent // 8) if self.transposed else (self.extent, 2)

    def _hold(self, groups: Array, start: Array, first: Array, outside: Array) -> list[Held]:
        """Tells the async proxy; warpgroups of one block go apart, because they may read the same bytes.

        Chunks are ascribed to the four warps in turn, so that each warp's order with the writers is looked at."""
        out = []
        within = groups % self.state.per_block
        count = start[0].size
        warp = np.arange(count) % 4 * 32
        for k in distinct(within):
            at = (within == k) & ~outside.any(axis=(1, 2))
            if not some(at):
                continue
            lanes = (first[at][:, None] + warp).reshape(-1)
            flight = proxy.async_read(self.m, self.i, lanes, start[at].reshape(-1), CHUNK)
            out.append(Held(groups[at], self.state.committed[first[at]], flight))
        return out

    def _report(self, kind: str, groups: Array, text: str, address: int | None = None) -> None:
        self.m.finding(kind, self.i, self.state.first_lane[groups], text, address)


def tiles_at(m: Machine, addresses: Array, lanes: Array) -> tuple[Array, Array, Array]:
    """The bytes (operands, rows, bytes) of 16-byte chunks at addresses (operands, rows, chunks) in the shared memory of
    the blocks of `lanes`, the chunks' places in `m.shared`, and which are outside; those give zeros."""
    outside = addresses + CHUNK > m.shared_size
    start = np.where(outside, 0, addresses) + m.shared_base[lanes][:, None, None]
    tile = m.shared.data[: len(m.shared.data) // CHUNK * CHUNK].view(np.complex128)[start >> 4]
    tile[outside] = 0
    m.traffic("shared").bytes_read += tile.nbytes
    return tile.view(np.uint8), start, outside


def uniform(m: Machine, i: Instr, value: Array, sel: Sel, what: str) -> Array:
    """One value for each warpgroup; a finding where its threads do not agree."""
    by_group = value.reshape(-1, 128)
    differs = by_group != by_group[:, :1]
    if some(differs):
        m.finding("wgmma operands differ", i, m.ids[sel][differs.reshape(-1)],
                  f"the threads of the warpgroup give different values of {what}")  # fmt: skip
    found: Array = by_group[:, 0]
    return found


def a_from_registers(raw: Array, kind: str) -> Any:
    """(4 registers, lanes) uint32 -> (warpgroups, 64, K) f32. Registers are (K half, 8-row half), lanes (w, g, t);
    each register holds neighbouring columns, t after t."""
    r = np.ascontiguousarray(raw).reshape(2, 2, -1, 4, 8, 4)
    by_row = np.ascontiguousarray(r.transpose(2, 3, 1, 4, 0, 5))  # warpgroup, w, half, g, K half, t
    return values(by_row.view(np.uint8).reshape(-1, 64, 32), kind)
