"""Results written through shared memory: a tile that threads fill, and that the copy engine carries to the tensor.

    stage Y in shared at n by tma        Y[m, n] = acc[m, n]   -->   Y.out[m, n] = acc[m, n];  unpack Y.out to Y[m, n]

The write is in the background and in whole lines; what lies outside of the tensor is dropped. f32 results that are
added to what is there are added by the copy engine: an element has one block, which adds to it once, so runs repeat
bitwise. The engine would round narrower sums twice; those read the old value. Of a sum that blocks divide it is the
parts that leave so; they are joined along rows, or added in turns (`joining/turn_sums.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tcomp.dsl.ast import Access, Binary, DType, Name, Num, Stage
from tcomp.dsl.errors import TcError
from tcomp.ir.rewrite import map_leaves
from tcomp.ir.tile import Axis, Buffer, Compute, RowMajor, Scope, Statement, Swizzled, Turns, Unpack
from tcomp.schedule.fold import sub
from tcomp.schedule.joining.tile_words import tile_words
from tcomp.schedule.joining.turn_sums import TurnSum
from tcomp.schedule.tree.legality import cannot_combine
from tcomp.schedule.tree.nest import JOINED, PARTIAL

Phase = tuple[Statement, ...]


class Unpacking:
    """Rewrites the phases of one kernel, whose `tiles` gain those that results leave through. `tensors` are in device
    memory. Blocks add to sums in `turns`; to one computed beside another each of a block's `warps` adds its own."""

    def __init__(
        self, tiles: dict[str, Buffer], tensors: Mapping[str, Buffer], turns: Iterable[TurnSum], warps: int
    ) -> None:
        self.tiles, self.tensors, self.warps = tiles, tensors, warps
        self.turns = {t.name: t for t in turns}
        self.whole: dict[str, Stage] = {}
        """tensors that leave so, by their `stage` lines"""
        self.some: list[tuple[str, int, Num, Stage]] = []
        """parts of tensors: those whose subscript at a place has a value"""

    def phases(
        self,
        phases: Iterable[Phase],
        stages: Iterable[Stage],
        written: frozenset[str],
        parts: Mapping[str, tuple[str, int, Num]],
    ) -> list[Phase]:
        """The phases with results (or parts of one, dQKV.1: `normal.parts_of`) that `stage` lines name written through
        tiles. TcError where nothing is said so of a sum that blocks add to in turns, unless it is beside another."""
        by_tma = [(n, s) for s in stages if s.by == "tma" and s.space == "shared" for n in s.tensors]

        def summed(name: str) -> str:
            return next((n for n in (name + PARTIAL, name + JOINED) if n in written and n in self.tensors), name)

        self.whole = {summed(n): s for n, s in by_tma if n in written}
        self.some = [(*parts[n], s) for n, s in by_tma if n in parts and n not in self.whole]
        for t in self.turns.values():
            if t.name not in self.whole and not t.beside:
                d, output = t.directive, t.name.removesuffix(JOINED)
                why = "only the copy engine adds a tile as one, and so in turns"
                raise cannot_combine(output, d, why, f"add: stage {output} in shared at {t.index} by tma")
        if not self.whole and not self.some:
            return list(phases)
        return [map_leaves(phase, self._rewritten) for phase in phases]

    def _rewritten(self, s: Statement) -> Phase:
        if not isinstance(s, Compute):
            return (s,)
        turn = self.turns.get(s.target.tensor)
        if turn is not None and turn.beside:
            walked = tuple(a for a in s.axes if a.name not in s.reduced)
            return (replace(s, turns=self._turns(s, turn, walked, self.warps)),)
        stage = self._stage_of(s.target)
        return (s,) if stage is None else self._through(s, stage, turn)

    def _stage_of(self, a: Access) -> Stage | None:
        own = (s for tensor, at, value, s in self.some if tensor == a.tensor and a.subscripts[at] == value)
        return self.whole.get(a.tensor) or next(own, None)

    def _through(self, s: Compute, stage: Stage, turn: TurnSum | None) -> Phase:
        """The statement into a tile, and the copy of that to memory."""
        name = s.target.tensor
        axes = {a.name: a for a in s.axes if a.name not in s.reduced}
        walked = tuple(axes[x.id] for x in s.target.subscripts if isinstance(x, Name) and x.id in axes)
        plain = not s.atomic and s.distinct and s.guard is None and len(walked) == len(axes)
        if not plain or (s.accumulate and s.reducer != "sum"):
            raise TcError(
                f"{name} cannot be written through shared memory: it is scattered, guarded or a sum over tiles",
                stage.span,
                "stage a result that is written once, at plain indices",
            )
        if s.only is not None:
            raise TcError(
                f"{name.removesuffix(PARTIAL)} cannot be written through shared memory: it is summed in the blocks of "
                "another sum, not in all of them",
                stage.span,
                "leave the line out: threads write it themselves",
            )
        if turn is not None and (not isinstance(s.value, Access) or s.value.tensor not in self.tiles):
            d = turn.directive
            raise cannot_combine(
                name.removesuffix(JOINED),
                d,
                f"a block comes to a tile once for each turn of its loop over '{d.over}'",
                f"let the tiles of '{d.over}' be the innermost loop (order), so that a sum is complete when it leaves",
            )
        dtype = self.tensors[name].dtype
        shape = tuple(a.block for a in walked)
        row = shape[-1] * dtype.bytes if shape else 0
        tile = f"{name}.out{len(self.tiles)}"
        self.tiles[tile] = Buffer(tile, dtype, shape, Scope.SHARED, Swizzled.of_row(row) or RowMajor())
        inside = Access(tile, tuple(sub(Name(a.name), a.start) for a in walked))
        whole = tuple(replace(a, spread=None, unroll=1, lanes=1) for a in walked)
        adds = s.accumulate and dtype is DType.F32
        value = Binary("+", s.target, s.value) if s.accumulate and not adds else s.value
        filled = replace(s, target=inside, value=value, accumulate=False)
        turns = None if turn is None else self._turns(s, turn, walked)
        return filled, Unpack(tile, whole, s.target, stage.span, adds or turn is not None, turns)

    def _turns(self, s: Compute, t: TurnSum, walked: tuple[Axis, ...], each: int = 1) -> Turns:
        """Those of the tile that is handed over, at a word of its own, or at `each` so many."""
        words = tile_words(t.words, s.target.subscripts, self.tensors[s.target.tensor].shape, walked, each)
        self.tiles[t.words] = words.buffer
        return t.turns(words.place, not s.accumulate)
