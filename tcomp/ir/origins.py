"""Which lines of a schedule decide what the assembler makes of a kernel: where its findings are told."""

from __future__ import annotations

from dataclasses import dataclass

from tcomp.dsl.ast import NO_SPAN, Span


@dataclass(frozen=True, slots=True)
class TileSize:
    """A number that makes a block's tile as large as it is: `name` is a parameter (`BM`), or a loop and its level
    (`m -> warp(64)`); `span` is the `tune` line, or the loop's."""

    name: str
    value: int
    span: Span

    def __str__(self) -> str:
        number = "" if "->" in self.name else f" = {self.value}"
        return f"{self.name}{number} (line {self.span.line})"


@dataclass(frozen=True, slots=True)
class Origins:
    """The `use` line of the first matrix instruction, the `producer` line, and the tile's sizes, the largest first.
    NO_SPAN and nothing where a schedule has no such line."""

    instruction: Span = NO_SPAN
    producer: Span = NO_SPAN
    sizes: tuple[TileSize, ...] = ()
