"""tcgen05.mma and tcgen05.commit (PTX ISA 9.7.16.10.9 and .12): one thread multiplies M x N x 32 bytes.

A product is computed when it is issued and put into tensor memory at once, where it counts as in flight, as do the
bytes of shared memory that it reads, until a tcgen05.commit of the same thread after it has arrived at its mbarrier,
which happens as late as it may (mbarrier.py). Products of one thread on one accumulator are in order.

Arithmetic: exact products summed in f32, in an order that PTX leaves open; f16 accumulators are rounded each time.
Layouts of D and A in tensor memory: M = 128 has row r in lane r; M = 64 has rows 16 w .. 16 w + 15 in lanes 32 w on.
Of a pair of blocks (.cta_group::2, M = 256) the first has rows 0 to 127 of A and D and columns 0 to N / 2 - 1 of B, the
second the others, at the same places of its own memories; either may issue the product.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from tcomp.runtime.vgpu import formats, proxy
from tcomp.runtime.vgpu.bulk_operands import multicast
from tcomp.runtime.vgpu.decoder import Decoder, Run, Source, instruction
from tcomp.runtime.vgpu.lanes import Array, Sel, distinct, ids, indices, one_each, some
from tcomp.runtime.vgpu.matrix_numbers import BITS, canonical, values
from tcomp.runtime.vgpu.mbarrier import Flight, Mbarriers
from tcomp.runtime.vgpu.op_mbarrier import live, located, object_access
from tcomp.runtime.vgpu.op_tcgen05 import group_of
from tcomp.runtime.vgpu.proxy import InFlight
from tcomp.runtime.vgpu.ptx import Addr, Imm, Instr, Operand, Vec
from tcomp.runtime.vgpu.tcgen05_descriptor import Malformed, NotModelled, Product, layout_of, product_of
from tcomp.runtime.vgpu.tensor_memory import CELL, LANES, Operation, Region, TensorMemory
from tcomp.runtime.vgpu.wgmma_descriptor import CHUNK, chunk_addresses, start_of
from tcomp.runtime.vgpu.wgmma_operands import tiles_at

KINDS = ("f16", "tf32", "f8f6f4")
_HIGH = ~np.uint64(0x3FFF)


def per_lane(source: Source, sel: Sel) -> Array:
    return one_each(source(sel), len(ids(sel)))


@instruction("tcgen05.mma")
def multiply(d: Decoder, i: Instr) -> Run:
    m, t, blocks = d.m, TensorMemory.of(d.m), group_of(d, i)
    kind = next((p[6:] for p in i.parts if p.startswith("kind::")), "")
    allowed = {
        f"kind::{kind}",
        f"cta_group::{blocks}",
        *(f"collector::a::{x}" for x in ("fill", "use", "lastuse", "discard")),
    }
    if kind not in KINDS or set(i.parts[2:]) - allowed:
        raise d.unknown(i, f"dense products of .kind::{', .kind::'.join(KINDS)} are executed")
    operands = list(i.operands)
    if any(isinstance(o, Vec) for o in operands[4:]):
        raise d.unknown(i, "disable-output-lane is not executed")
    to, left, right, what, enable = operands[:5]
    scale = operands[5] if len(operands) > 5 else Imm(0)
    assert isinstance(scale, Imm)
    if len(operands) > 5 and (kind == "f8f6f4" or not 0 <= int(scale.value) <= 15):
        raise d.unknown(i, "scale-input-d is a number from 0 to 15, of kinds f16 and tf32")
    shrink = np.float32(2.0 ** -int(scale.value))
    where, bits, keep = tensor_address(d, i, to), d.source(what, "u32"), d.source(enable, "pred")
    a_place = tensor_address(d, i, left) if isinstance(left, Addr) else None
    a_bits = None if a_place else d.source(left, "u64")
    b_bits = d.source(right, "u64")
    state = Products.of(t)

    def run(sel: Sel) -> None:
        lanes, given = ids(sel), per_lane(bits, sel)
        for one in distinct(given).tolist():
            at = indices(given == one)
            try:
                product = product_of(kind, one, blocks)
                act(sel, lanes[at], at, product)
            except Malformed as e:
                m.finding("malformed tcgen05 descriptor", i, lanes[at], str(e))
            except NotModelled as e:
                raise d.unknown(i, f"{e} are not modelled") from e

    def act(sel: Sel, lanes: Array, at: Array, p: Product) -> None:
        d_at = per_lane(where, sel)[at].tolist()
        add = per_lane(keep, sel)[at].tolist()
        flights: list[list[InFlight]] = [[] for _ in lanes]
        from_tensor = per_lane(a_place, sel)[at].tolist() if a_place else []
        if a_bits is not None:
            a = shared_operand(m_operand(p, True), per_lane(a_bits, sel)[at], lanes, flights)
        b = shared_operand(m_operand(p, False), per_lane(b_bits, sel)[at], lanes, flights)
        for n, lane in enumerate(lanes.tolist()):
            shape = (d_at[n], p.m, p.n)
            regions = [accumulator(i, t, lane, slot, d_at[n], p.m // blocks, p.n) for slot in slots_of(lane)]
            if None in regions:
                continue
            op = t.begin(i, "mma", lane, shape)
            state.hold(op, flights[n])
            for each, region in enumerate(regions):
                assert region is not None
                own = p.m // blocks
                if a_place:
                    source = accumulator(i, t, lane, region.slot, from_tensor[n], own, 8)
                    if source is None:
                        continue
                    if source.cells != region.cells:
                        m.finding("malformed tcgen05 descriptor", i, np.array([lane]), f"A lies from lane "
                                  f"{from_tensor[n] >> 16} on and D from {d_at[n] >> 16}: "
                                  "it must be one lane")  # fmt: skip
                    t.read(op, source)
                    raw = np.ascontiguousarray(rows(t.data[source.slot], source)).view(np.uint8)
                    left_values = values(raw, p.a)
                else:
                    left_values = a[n][each * own : (each + 1) * own]
                total = left_values @ b[n].T
                if p.negative:
                    total = -total
                into = t.data[region.slot]
                if add[n]:
                    t.check_defined(op, region)
                    total = total + read_d(rows(into, region), p.d) * shrink
                t.write(op, region)
                put_rows(into, region, write_d(total.astype(np.float32), p.d))

    def slots_of(lane: int) -> list[int]:
        """The blocks of a lane's product, in the order of their rows."""
        own = int(m.slot[lane])
        if blocks == 1:
            return [own]
        if not m.running()[own ^ 1]:
            m.finding("shared memory of an exited block", i, np.array([lane]), "the other block of the pair has ended")
        return sorted((own, own ^ 1))

    def m_operand(p: Product, is_a: bool) -> tuple[str, int, str, bool]:
        return ("A", p.m, p.a, p.transposed_a) if is_a else ("B", p.n, p.b, p.transposed_b)

    def shared_operand(
        of: tuple[str, int, str, bool], descriptors: Array, lanes: Array, flights: list[list[InFlight]]
    ) -> Array:
        """(lanes, rows, K) values of A or B in shared memory; what is read there joins `flights`."""
        name, extent, element, transposed = of
        extent //= blocks
        size = BITS[element] // 8
        addresses = np.empty((len(lanes), *((32 // size, extent * size // CHUNK) if transposed else (extent, 2))), int)
        high = descriptors & _HIGH
        for one in distinct(high):
            at = high == one
            try:
                layout = layout_of(int(one))
            except Malformed as e:
                raise Malformed(f"{name} descriptor: {e}") from e
            addresses[at] = chunk_addresses(start_of(descriptors[at]), layout, extent, transposed, size)
        found = [in_block(k, name, addresses, lanes, flights) for k in range(blocks)]
        parts = [values(raw, element) for raw in found]
        return np.concatenate([x.swapaxes(1, 2) if transposed else x for x in parts], axis=1)

    def in_block(number: int, name: str, addresses: Array, lanes: Array, flights: list[list[InFlight]]) -> Array:
        """The bytes at addresses in the shared memory of each lane's block, or of that one of its pair."""
        of = lanes if blocks == 1 else (lanes // m.stride & ~1 | number) * m.stride
        raw, start, outside = tiles_at(m, addresses, of)
        if some(outside):
            bad = outside.any(axis=(1, 2))
            m.finding("out of bounds shared", i, lanes[bad], f"the {name} descriptor leaves the {m.shared_size} bytes "
                      "of shared memory", int(addresses[outside][0]))  # fmt: skip
        elif m.options.checks:
            by = np.repeat(lanes, start[0].size)
            flight = proxy.async_read(m, i, by, start.reshape(-1), CHUNK)
            words, who = (x.reshape(len(lanes), -1) for x in (flight.words, flight.lanes))
            for n, each in enumerate(flights):
                each.append(InFlight(i, words[n], who[n], False))
        return raw

    return run


def tensor_address(d: Decoder, i: Instr, o: Operand) -> Source:
    if not isinstance(o, Addr) or o.base is None:
        raise d.unknown(i, "expected an address of tensor memory in a register")
    base, offset = d.source(o.base, "u32"), o.offset
    return lambda sel: np.asarray(base(sel)).astype(np.int64) + offset


# --- accumulators
def accumulator(i: Instr, t: TensorMemory, lane: int, slot: int, address: int, m: int, columns: int) -> Region | None:
    """The cells of M rows and so many columns at an address in a block; None, and a finding, where they cannot be
    there."""
    row, column = address >> 16, address & 0xFFFF
    if row not in ((0,) if m == LANES else (0, CELL)):
        t.m.finding("malformed tcgen05 descriptor", i, np.array([lane]), f"a matrix of {m} rows at lane {row}: it must "
                    f"begin at lane 0{' or 16' * (m != LANES)}", address)  # fmt: skip
        return None
    cells = slice(0, 8) if m == LANES else slice(row // CELL, 8, 2)
    r = Region(slot, cells, slice(column, column + columns))
    return r if t.allocated(i, lane, r) else None


def rows(data: Array, r: Region) -> Array:
    """(M, columns) cells."""
    by_cell = data.reshape(LANES // CELL, CELL, -1)[r.cells, :, r.columns]
    return by_cell.reshape(-1, by_cell.shape[-1])


def put_rows(data: Array, r: Region, new: Array) -> None:
    data.reshape(LANES // CELL, CELL, -1)[r.cells, :, r.columns] = new.reshape(-1, CELL, new.shape[-1])


def read_d(raw: Array, kind: str) -> Array:
    if kind == "f32":
        return np.ascontiguousarray(raw).view(np.float32)
    return formats.from16(raw.astype(np.uint16), "f16")


def write_d(total: Array, kind: str) -> Array:
    if kind == "f32":
        return canonical(total).view(np.uint32)
    return formats.to16(total, "f16").astype(np.uint32)


# --- completion
class Products:
    """What products in flight read in shared memory."""

    def __init__(self, t: TensorMemory) -> None:
        self.t = t
        self.reads: dict[Operation, list[InFlight]] = {}

    @staticmethod
    def of(t: TensorMemory) -> Products:
        if t.products is None:
            t.products = Products(t)
        assert isinstance(t.products, Products)
        return t.products

    def hold(self, op: Operation, flights: list[InFlight]) -> None:
        self.reads[op] = flights

    def finish(self, lane: int, ended: list[Operation]) -> None:
        """These products of `lane` are complete, and so is what they read."""
        for op in ended:
            for flight in self.reads.pop(op, ()):
                proxy.finish_read(self.t.m, flight)
        self.t.finish_products(lane, ended)


@instruction("tcgen05.commit")
def commit(d: Decoder, i: Instr) -> Run:
    """Arrives at an mbarrier, or at that place in each block of the cluster that a mask names, once the products that
    this thread has issued are complete."""
    group_of(d, i)
    if "mbarrier::arrive::one" not in i.parts:
        raise d.unknown(i, "expected .mbarrier::arrive::one")
    m, b, t = d.m, Mbarriers.of(d.m), TensorMemory.of(d.m)
    access, products = object_access(d, i, i.operands[0]), Products.of(t)
    everywhere = d.source(i.operands[1], "u16") if "multicast::cluster" in i.parts else None

    def run(sel: Sel) -> None:
        lanes = ids(sel)
        if everywhere is None:
            at, objects = live(b, access, sel)
            for lane, n in zip(lanes[at].tolist(), objects.tolist(), strict=True):
                report(lane, n, t.take(lane), True)
            return
        at, starts = located(access, sel)
        masks, alive = per_lane(everywhere, sel)[at].tolist(), m.running()
        for lane, start, mask in zip(lanes[at].tolist(), starts.tolist(), masks, strict=True):
            ended = t.take(lane)
            for base in multicast(m, i, lane, mask, alive, "mbarrier misuse"):
                place = base + start % m.shared_stride
                access.reaches(place, lane)
                _, found = b.find(i, np.array([lane]), np.array([place]))
                for n in found.tolist():
                    report(lane, n, ended, base == int(m.slot[lane]) * m.shared_stride)

    def report(lane: int, n: int, ended: list[Operation], own: bool) -> None:
        """Only in this block can an arrival be left alone when the products are known to be over: another block must
        still be there."""
        over = partial(all_done, ended) if own else lambda: False
        b.report_later(n, Flight(i, np.array([lane]), 0, 1, partial(products.finish, lane, ended), over))

    return run


def all_done(operations: list[Operation]) -> bool:
    return all(op.done >= 0 for op in operations)
