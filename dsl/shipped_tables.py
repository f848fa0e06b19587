"""The parser's tables as they come with the package (parser_tables.json), so that no start has to make them.

    make tables        writes the file anew, after grammar.lark has changed or for another version of lark

The file names the grammar and the lark that it was made with, and is used with these only. It is JSON, in which lark's
numbered tables have their numbers as texts; its first line has a checksum of all the others, since what was damaged may
still be JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lark
from lark import Lark
from lark.grammar import Rule
from lark.lexer import TerminalDef

from_tables: Callable[..., Lark] = Lark._load_from_dict
"""A parser from tables and what they refer to, and options that are objects, as lark's stand-alone parsers use it."""
FILE = Path(__file__).with_name("parser_tables.json")


def made_for(grammar: str) -> dict[str, str]:
    """What tables depend on: a grammar's text, by its hash, and lark's version."""
    return {"grammar": hashlib.sha256(grammar.encode()).hexdigest(), "lark": lark.__version__}


def shipped(grammar: str, file: Path = FILE) -> tuple[dict[str, Any], dict[int, Any]] | None:
    """Tables and what they refer to by numbers, for `from_tables`; None where the file has them for another
    grammar or another lark, or is not as it was written."""
    try:
        text = file.read_text(encoding="utf-8")
        found = json.loads(text, object_hook=_numbered)
        if found["made for"] != made_for(grammar) or found["checksum"] != _checksum(text.partition("\n")[2]):
            return None
        return found["tables"], found["memo"]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write(parser: Lark, grammar: str, file: Path = FILE) -> None:
    """Write the tables of a parser that was made from a grammar."""
    tables, memo = parser.memo_serialize([TerminalDef, Rule])
    tables["options"] = {k: v for k, v in tables["options"].items() if k not in ("postlex", "transformer")}  # objects
    content = {"made for": made_for(grammar), "tables": tables, "memo": memo}
    rest = json.dumps(content, separators=(",", ":"), sort_keys=True).removeprefix("{") + "\n"
    file.write_text(f'{{"checksum":"{_checksum(rest)}",\n{rest}', encoding="utf-8")


def _checksum(rest: str) -> str:
    return hashlib.sha256(rest.encode()).hexdigest()


def _numbered(table: dict[str, Any]) -> dict[Any, Any]:
    """A table whose keys are all numbers, by numbers."""
    return {int(key): value for key, value in table.items()} if all(map(str.isdecimal, table)) else table


if __name__ == "__main__":
    from tcomp.dsl.parse import GRAMMAR, made_parser

    text = GRAMMAR.read_text(encoding="utf-8")
    write(made_parser(text), text)
