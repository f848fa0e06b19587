"""`tcomp fmt`: one spacing and indentation for .tc text, with every comment and line break kept.

Works on tokens line by line, so comments stay where they are: two spaces a block, four more in a continued
line, at most one blank line, columns of consecutive `config` lines and trailing comments aligned.
Formatting twice changes nothing more, and never changes what the text says (checked by parsing both).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tcomp.dsl.parse import parse
from tcomp.dsl.printer import print_expression, print_item, print_op

__all__ = ["format_text", "print_expression", "print_item", "print_op"]

_TOKEN = re.compile(
    r"[0-9]+\.[0-9]+(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+(?![A-Za-z_])|[0-9][A-Za-z0-9_]*"
    r"|[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*"
    r"|->|\*\*|//|<=|>=|==|!=|\+=|\.\.|\S"
)
_WORD = re.compile(r"[A-Za-z0-9_]")
_KEYWORDS = frozenset(("and", "or", "not", "where", "by", "in", "as", "below", "require", "to", "of", "on"))
_TUNE_KEYWORDS = frozenset(("from", "step"))
_OPERATORS = frozenset(("+", "-", "*", "/", "//", "%", "**", "<", "<=", ">", ">=", "==", "!=", "=", "+=", "->", ".."))


@dataclass
class _Line:
    """A physical line: its column before formatting, its code, its comment, and what it belongs to."""

    column: int
    code: str
    comment: str
    continues: bool = False
    level: int = 0

    @property
    def blank(self) -> bool:
        return not self.code and not self.comment

    @property
    def text(self) -> str:
        indent = "  " * self.level + ("    " if self.continues and self.code[:1] not in (")", "]") else "")
        return indent + self.code


def format_text(text: str, file: str = "<text>") -> str:
    """The text in the one format. TcError when it does not parse."""
    before = parse(text, file)
    lines = [_split(raw) for raw in text.splitlines()]
    _indent(lines)
    lines = _collapse_blanks(lines)
    _align_configs(lines)
    formatted = _join(lines)
    if parse(formatted, file) != before:
        raise AssertionError(f"formatting would change the meaning of {file}; please report this text")
    return formatted


def _split(raw: str) -> _Line:
    code, mark, comment = raw.partition("#")
    column = len(raw) - len(raw.lstrip())
    comment = comment.rstrip()
    if mark:
        if comment and comment[0] not in " #!":
            comment = " " + comment
        comment = "#" + comment
    return _Line(column, _spaced(_TOKEN.findall(code)), comment)


def _spaced(tokens: list[str]) -> str:
    """One line's tokens with the spacing of the format."""
    keywords = _KEYWORDS | _TUNE_KEYWORDS if tokens[:1] == ["tune"] else _KEYWORDS
    out = ""
    unary = False  # the token before is a minus that is a sign
    for n, token in enumerate(tokens):
        if n:
            before = tokens[n - 1]
            if _gap(before, token, unary, keywords):
                out += " "
        out += token
        unary = token == "-" and (
            n == 0 or n == 1 or tokens[n - 1] in _OPERATORS or tokens[n - 1] in "([,:;" or tokens[n - 1] in keywords
        )
    return out


def _gap(before: str, token: str, unary: bool, keywords: frozenset[str]) -> bool:
    if unary or before in ("(", "[", "..") or token in (")", "]", ",", ":", ";", ".."):
        return False
    if token == "(":
        word = _WORD.match(before) is not None
        return not (before in (")", "]") or (word and before not in keywords))
    if token == "[":
        return before == ")" or before == "as" or not (_WORD.match(before) or before == "]")
    return True


def _indent(lines: list[_Line]) -> None:
    """Set the level of every line, from the columns of the logical lines' starts."""
    columns = [0]
    depth = 0
    previous: list[int] = [0]  # columns of the open blocks at the last code line
    waiting: list[_Line] = []  # comments and blank lines since then
    comma = False  # the last code line goes on behind its comma
    for line in lines:
        if not line.code:
            if (depth or comma) and line.comment:
                line.continues, line.level = True, len(columns) - 1
                line.code, line.comment = line.comment, ""
            else:
                waiting.append(line)
            continue
        if depth or comma or line.code.startswith("->"):
            line.continues, line.level = True, len(columns) - 1
        else:
            if line.column > columns[-1]:
                columns.append(line.column)
            while line.column < columns[-1]:
                columns.pop()
            line.level = len(columns) - 1
            _place_comments(waiting, previous, line.column, line.level)
            previous = list(columns)
        if line.continues:
            _place_comments(waiting, previous, columns[-1], len(columns) - 1)
        waiting = []
        tokens = _TOKEN.findall(line.code)
        depth += sum(t in "([" for t in tokens) - sum(t in ")]" for t in tokens)
        comma = tokens[-1] == ","
    _place_comments(waiting, previous, 0, 0)


def _place_comments(waiting: list[_Line], open_columns: list[int], next_column: int, next_level: int) -> None:
    """Comments go with the line that follows, unless they stand deeper: then with the block that ends."""
    for line in waiting:
        line.level = next_level
        if line.column > next_column and open_columns[-1] > next_column:
            line.level = max(n for n, c in enumerate(open_columns) if c <= line.column)


def _collapse_blanks(lines: list[_Line]) -> list[_Line]:
    out: list[_Line] = []
    for line in lines:
        if line.blank and (not out or out[-1].blank):
            continue
        out.append(line)
    while out and out[-1].blank:
        out.pop()
    return out


_CONFIG = re.compile(r"config (\S+): (.*)")


def _align_configs(lines: list[_Line]) -> None:
    """`config` lines that follow each other with the same names become a table."""
    start = 0
    while start < len(lines):
        run: list[tuple[_Line, str, list[str]]] = []
        names: list[str] = []
        for line in lines[start:]:
            m = _CONFIG.fullmatch(line.code)
            cells = _cells(m[2]) if m else []
            these = [c.split(" ")[0] for c in cells]
            if m is None or (run and these != names):
                break
            names = these
            run.append((line, m[1] + ":", cells))
        if len(run) > 1:
            title = max(len(name) for _, name, _ in run)
            widths = [max(len(cells[n]) for _, _, cells in run) for n in range(len(names))]
            for line, name, cells in run:
                padded = [c.ljust(w) for c, w in zip(cells, widths, strict=True)]
                line.code = f"config {name.ljust(title)} {' '.join(padded)}".rstrip()
        start += max(1, len(run))


def _cells(assignments: str) -> list[str]:
    """The assignments of a config line, each with its comma (commas in brackets do not separate)."""
    cells, depth, current = [], 0, ""
    for ch in assignments:
        depth += (ch in "([") - (ch in ")]")
        current += ch
        if ch == "," and depth == 0:
            cells.append(current.strip())
            current = ""
    return [*cells, current.strip()]


def _join(lines: list[_Line]) -> str:
    """The lines as text; trailing comments of consecutive lines in one column."""
    out: list[str] = []
    n = 0
    while n < len(lines):
        line = lines[n]
        if not (line.code and line.comment):
            out.append((line.text if line.code else "  " * line.level + line.comment).rstrip())
            n += 1
            continue
        run = [line]
        while n + len(run) < len(lines) and lines[n + len(run)].code and lines[n + len(run)].comment:
            run.append(lines[n + len(run)])
        width = max(len(r.text) for r in run)
        out += [f"{r.text.ljust(width)}  {r.comment}" for r in run]
        n += len(run)
    return "".join(line + "\n" for line in out)
