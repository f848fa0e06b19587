"""`Pack`s by tma: the copy engine fills a tile from a tensor map, and reports its bytes to an mbarrier.

One thread issues a copy for each panel of a swizzled tile. Elements outside of the tensor become zero, and their bytes
are counted all the same. PTX ISA, section 9.7.9.27.1.2 (cp.async.bulk.tensor).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llvmlite import ir

from tcomp.codegen.llvm.bounds import integer_value
from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.types import I8, IrValue
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.launch import OperandMap
from tcomp.codegen.nvptx.threads.domain import GpuScope
from tcomp.dsl.ast import Name, names_in, substitute
from tcomp.ir.blocks import Cluster
from tcomp.ir.multicast import shared_packs
from tcomp.ir.tensor_map import result_map, tile_map
from tcomp.ir.tile import Buffer, Pack, Shifted, Statement, Swizzled, Unpack
from tcomp.ir.walk import statements_in


@dataclass(frozen=True)
class Share:
    """The part of a tile that this block, number `rank` of `blocks`, fetches for all of its cluster."""

    rank: IrValue
    blocks: int


def map_of(pack: Pack, buffers: Mapping[str, Buffer], parts: int = 1) -> OperandMap:
    """The tensor map that a Pack copies by, in one of so many parts."""
    try:
        found = tile_map(pack, buffers[pack.buffer], buffers[pack.source.tensor], parts)
    except ValueError as e:
        raise Unsupported(f"'{pack.source.tensor}' cannot be staged by tma: {e}", pack.span) from None
    return OperandMap(pack.source.tensor, found)


def map_of_result(unpack: Unpack, buffers: Mapping[str, Buffer]) -> OperandMap:
    """The tensor map that an Unpack writes by."""
    name = unpack.target.tensor
    try:
        found = result_map(unpack, buffers[unpack.buffer], buffers[name])
    except ValueError as e:
        raise Unsupported(f"'{name}' cannot be written by tma: {e}", unpack.span) from None
    return OperandMap(name, found)


def maps_of(
    phase: Sequence[Statement], buffers: Mapping[str, Buffer], cluster: Cluster | None
) -> tuple[OperandMap, ...]:
    """The tensor maps of a phase, each once."""
    shared = shared_packs(phase, cluster, buffers)
    blocks = cluster.blocks if cluster is not None else 1
    found: list[OperandMap] = []
    for s in statements_in(phase):
        if isinstance(s, Unpack):
            found.append(map_of_result(s, buffers))
        elif isinstance(s, Pack) and s.by == "tma":
            found.append(map_of(s, buffers, blocks if id(s) in shared else 1))
    return tuple(dict.fromkeys(found))


def copied_bytes(pack: Pack, buffers: Mapping[str, Buffer]) -> int:
    """Bytes that the copies of one Pack report."""
    tile = buffers[pack.buffer]
    return (math.prod(tile.shape) + _room(tile)) * tile.dtype.bytes


def begins_at(em: GpuEmitter, scope: GpuScope, pack: Pack, tile: IrValue) -> IrValue:
    """Where what a Pack brings begins in its `tile`."""
    buffer = scope.buffers[pack.buffer]
    if not _room(buffer):
        return tile
    em.here()
    shift = _low_bits(em, _first_element(em, scope, pack), _room(buffer))
    return em.here().gep(tile, [em.i64(em.mul(shift, buffer.dtype.bytes))], source_etype=I8)


def _room(tile: Buffer) -> int:
    return tile.layout.room if isinstance(tile.layout, Shifted) else 0


def _low_bits(em: GpuEmitter, x: Int, size: int) -> Int:
    """x modulo a power of two."""
    return x % size if isinstance(x, int) else em.here().and_(x, em.i64(size - 1))


def _first_element(em: GpuEmitter, scope: GpuScope, pack: Pack) -> Int:
    """Which element of its row-major tensor a Pack's first one is."""
    starts = {a.name: a.start for a in pack.axes}
    at = [integer_value(em, substitute(s, starts), scope) for s in pack.source.subscripts]
    number: Int = 0
    for v, extent in zip(at, scope.buffers[pack.source.tensor].shape, strict=True):
        number = em.add(em.mul(number, extent), v)
    return number


def issue(
    em: GpuEmitter,
    scope: GpuScope,
    pack: Pack,
    address: IrValue,
    to: IrValue,
    barrier: IrValue,
    share: Share | None = None,
    paired: bool = False,
) -> None:
    """Start a Pack's copies: `address` of its map, `to` the tile, `barrier` the mbarrier that is told, also where it is
    the other block's of a `paired` one. A `share` goes to the same place in all blocks of the cluster, and tells their
    mbarriers."""
    tile = scope.buffers[pack.buffer]
    starts = {a.name: a.start for a in pack.axes}
    em.here()
    values = [integer_value(em, substitute(s, starts), scope) for s in pack.source.subscripts]
    if share is not None:
        d = next(i for i, s in enumerate(pack.source.subscripts) if s == Name(pack.axes[0].name))
        values[d] = em.add(values[d], em.mul(share.rank, tile.shape[0] // share.blocks))
        row = tile.layout.width if isinstance(tile.layout, Swizzled) else tile.shape[-1] * tile.dtype.bytes
        part = math.prod(tile.shape[:-1]) // share.blocks * row
        to = em.here().gep(to, [em.i64(em.mul(share.rank, part))], source_etype=I8)
    if room := _room(tile):
        first = _first_element(em, scope, pack)
        values = [em.add(first, em.mul(_low_bits(em, first, room), -1))]
    at = [em.i64(v) for v in reversed(values)]
    n = len(at)
    places = ", ".join(f"${i + 2}" for i in range(n))
    text = (
        f"cp.async.bulk.tensor.{n}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        f"[$0], [$1, {{{places}}}], [${n + 2}];"
    )
    if paired:
        text = text.replace("::bytes", "::bytes.cta_group::2")
    kinds = "rl" + "r" * n + "r"
    more: list[IrValue] = []
    if share is not None:
        text = text.replace("::bytes", "::bytes.multicast::cluster")[:-1] + f", ${n + 3};"
        kinds += "h"
        more.append(ir.Constant(ir.IntType(16), (1 << share.blocks) - 1))
    for shift, offset in panels(tile):
        b = em.here()
        first = em.i64(em.add(at[0], shift))
        place = to if offset == 0 else b.gep(to, [em.i64(offset)], source_etype=I8)
        em.effect(text, kinds, [place, address, first, *at[1:], barrier, *more])


def deliver(
    em: GpuEmitter, scope: GpuScope, node: Unpack, address: IrValue, stores: bool = False, group: Int = 0
) -> None:
    """Start the copies of a tile to its tensor, as one group of this thread's. Its writers have fenced their stores.
    `stores`: what would be added is the first. Where several groups of warps deliver, `group` is the one whose rows
    go."""
    tile = scope.buffers[node.buffer]
    starts = {a.name: a.start for a in node.axes}
    em.here()
    at = [em.i64(integer_value(em, substitute(s, starts), scope)) for s in reversed(node.target.subscripts)]
    n = len(at)
    root = scope.roots[node.buffer]
    if node.groups > 1:
        rows = tile.shape[0] // node.groups
        first = em.mul(group, rows)
        row = next(i for i, e in enumerate(node.target.subscripts) if node.axes[0].name in names_in(e))
        at[-1 - row] = em.i64(em.add(at[-1 - row], first))
        width = tile.layout.width if isinstance(tile.layout, Swizzled) else tile.shape[-1] * tile.dtype.bytes
        root = em.here().gep(root, [em.i64(em.mul(first, width))], source_etype=I8)
    places = ", ".join(f"${i + 1}" for i in range(n))
    what, how = ("reduce.async", "add.tile") if node.add and not stores else ("async", "tile")
    text = f"cp.{what}.bulk.tensor.{n}d.global.shared::cta.{how}.bulk_group [$0, {{{places}}}], [${n + 1}];"
    for shift, offset in panels(tile):
        b = em.here()
        column = em.i64(em.add(at[0], shift))
        place = root if offset == 0 else b.gep(root, [em.i64(offset)], source_etype=I8)
        em.effect(text, "l" + "r" * n + "r", [address, column, *at[1:], place])
    em.effect("cp.async.bulk.commit_group;")


def await_deliveries(em: GpuEmitter, whole: bool = False, but: int = 0) -> None:
    """Until this thread's copies, `but` so many of the newest groups, have read their tiles; `whole`: until they are
    where they go."""
    em.here()
    read = "" if whole else ".read"
    em.effect(f"cp.async.bulk.wait_group{read} {but};")


def panels(tile: Buffer) -> list[tuple[int, int]]:
    """The first column of every panel, and its byte offset."""
    if not isinstance(tile.layout, Swizzled):
        return [(0, 0)]
    columns = tile.layout.width // tile.dtype.bytes
    panel = tile.layout.panel_rows(tile.shape) * tile.layout.width
    return [(c, c // columns * panel) for c in range(0, tile.shape[-1], columns)]
