"""Text to syntax tree: runs the LALR parser of grammar.lark and builds `dsl.ast` nodes as rules are reduced.

`parse` gives a Source; bad text raises TcError with a caret and a remedy. The parser is built once per
process, from tables that come with the package (`shipped_tables.py`); for another lark they are made.
Names that stand for scalar operands (`lr`) become accesses here, since only a whole op tells them from
indices and dimensions.
"""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock

import lark
from lark import Lark
from lark.exceptions import UnexpectedInput

from tcomp.dsl.ast import Expr, Source
from tcomp.dsl.build import Builder
from tcomp.dsl.layout import Layout, LayoutError
from tcomp.dsl.shipped_tables import from_tables, shipped
from tcomp.dsl.syntax import explain_layout, explain_syntax, explain_tab

_LOCK = Lock()  # the builder holds the text being parsed
GRAMMAR: Path = Path(__file__).with_name("grammar.lark")
_tables: Path | None = None


def keep_tables(folder: Path) -> None:
    """Keep the parser's tables in this folder from now on, where they have to be made: that takes most of a start's
    parsing time.

    The folder must be as trustworthy as the program itself, since lark reads tables by `pickle`.
    """
    global _tables
    _tables = folder


@cache
def _parser(builder: Builder) -> Lark:
    grammar = GRAMMAR.read_text(encoding="utf-8")
    found = shipped(grammar)
    if found is not None:
        return from_tables(*found, postlex=Layout(), transformer=builder)
    if _tables is None:
        return _made(grammar, builder)
    parts = (grammar, lark.__version__, sys.version_info[:2])
    kept = _tables / f"grammar-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"
    if kept.is_file():
        return _made(grammar, builder, _TablesFile(kept))  # lark makes the tables anew where these are damaged
    # A whole file comes into place at once, however many runs start at the same time.
    own = kept.with_name(f".{kept.name}.{os.getpid()}")
    made = _made(grammar, builder, _TablesFile(own))
    with suppress(OSError):
        os.replace(own, kept)
    return made


def made_parser(grammar: str) -> Lark:
    """A parser whose tables are made here and now."""
    return _made(grammar, _builder())


class _TablesFile(str):
    """The path of a file of tables. Lark keeps a hash of its options' texts in the file: as a text it is the same for
    every path, so that the file may be renamed, and lie in a folder whose name is not UTF-8."""

    __slots__ = ()

    def __str__(self) -> str:
        return "tables"


def _made(grammar: str, builder: Builder, tables: str | bool = False) -> Lark:
    return Lark(
        grammar,
        parser="lalr",
        lexer="contextual",
        postlex=Layout(),
        transformer=builder,
        start=["file", "expression"],
        maybe_placeholders=True,
        cache=tables,
    )


@cache
def _builder() -> Builder:
    return Builder()


def _run(text: str, file: str, start: str) -> object:
    if "\t" in text and (tab := explain_tab(text, file)) is not None:
        raise tab
    with _LOCK:
        return _run_locked(text, file, start)


def _run_locked(text: str, file: str, start: str) -> object:
    builder = _builder()
    builder.begin(file, text)
    try:
        return _parser(builder).parse(text, start=start)
    except UnexpectedInput as error:
        raise explain_syntax(error, text, file) from None
    except LayoutError as error:
        raise explain_layout(error, text, file) from None


def parse(text: str, file: str = "<text>") -> Source:
    """The items of a .tc file. Raises TcError on text that is not in the language."""
    items = _run(text, file, "file")
    assert isinstance(items, tuple)
    return Source(file, text, items)


def parse_expression(text: str) -> Expr:
    """A single expression, such as `(V + 127) // 128 * 128`. Names stay names."""
    e = _run(text, "<expression>", "expression")
    return e  # type: ignore[return-value]
