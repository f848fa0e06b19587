"""Syntax errors that teach: from what the parser met and what it would have taken, to a TcError.

Known slips come first, as a list of small rules (each looks at the token, the line and what was expected);
anything else gets "unexpected ..., expected ...".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from lark import Token
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from tcomp.dsl.ast import Span
from tcomp.dsl.errors import TcError
from tcomp.dsl.hints import did_you_mean
from tcomp.dsl.layout import LayoutError

ITEMS = ("import", "op", "backward", "fn", "monoid", "schedule", "update", "model", "optimizer")
DIRECTIVES = ("order", "fuse", "stage", "use", "cast", "combine", "tune", "where", "kernel", "inline", "for", "on")
_OPERATORS = frozenset(("PLUS", "MINUS", "STAR", "SLASH", "DSLASH", "PERCENT", "POW", "COMPARE", "AND", "OR"))
_STARTS = frozenset(("NAME", "INT", "REAL", "SIZE", "DOTTED", "LPAR", "MINUS", "NOT"))
_WORDS = {
    "NAME": "a name",
    "DOTTED": "a dotted name",
    "INT": "a whole number",
    "REAL": "a number",
    "SIZE": "a size",
    "CONFIG_NAME": "a name",
    "_NEWLINE": "the end of the line",
    "_INDENT": "an indented block",
    "_DEDENT": "the end of the block",
    "$END": "the end of the text",
    "_ARROW": "'->'",
    "EQUAL": "'='",
    "PLUS_EQUAL": "'+='",
    "COLON": "':'",
    "COMMA": "','",
    "SEMICOLON": "';'",
    "LPAR": "'('",
    "RPAR": "')'",
    "LSQB": "'['",
    "RSQB": "']'",
    "MINUS": "'-'",
    "SLASH": "'/'",
}
_CHARACTERS = {
    ".": "a number has digits on both sides of its point: `2.0`; a name has no point at its ends",
    "^": "a power is written `x ** 2`",
    "&": "write `and`",
    "|": "write `or`",
    "!": "write `not`",
    "?": "write `select(condition, a, b)`",
    "\\": "a line goes on inside brackets without a mark",
    '"': "the language has no strings",
    "'": "the language has no strings",
    "{": "blocks are made by indentation",
    "}": "blocks are made by indentation",
    "@": "a contraction is written out: `Y[m, n] = sum k: X[m, k] * W[k, n]`",
}


@dataclass(frozen=True)
class _Slip:
    """Where the parser stopped: the token, the words before it on its line, what it would have taken."""

    token: Token
    kind: str
    before: str
    expected: frozenset[str]

    @property
    def first_word(self) -> str:
        words = re.findall(r"[A-Za-z_]\w*", self.before or str(self.token))
        return words[0] if words else ""

    @property
    def last_word(self) -> str:
        m = re.search(r"([A-Za-z_]\w*)\s*$", self.before)
        return m[1] if m else ""


_Explanation = tuple[str, str] | None


def _chained_comparison(s: _Slip) -> _Explanation:
    if s.kind == "COMPARE" and s.expected:
        return "comparisons do not chain", "write `a < b and b < c`"
    return None


def _nested_reduction(s: _Slip) -> _Explanation:
    reducer = s.last_word
    if s.kind == "NAME" and reducer in ("sum", "max", "min") and re.search(r"\S\s*" + reducer + r"\s*$", s.before):
        hint = f"give it a line of its own, `t[...] = {reducer} {s.token}: ...`, and use t[...] here"
        return f"a reduction cannot stand inside an expression: '{reducer}' must begin the right-hand side", hint
    return None


def _single_equals(s: _Slip) -> _Explanation:
    if s.kind == "EQUAL" and ("COMPARE" in s.expected or "AND" in s.expected):
        return "'=' where a comparison is expected", "equality is written `==`"
    return None


def _other_assignment(s: _Slip) -> _Explanation:
    if s.kind in ("MINUS", "STAR", "SLASH") and "EQUAL" in s.expected and "PLUS_EQUAL" in s.expected:
        return f"unexpected '{s.token}' on the left of an equation", "an equation is `target = ...` or `target += ...`"
    return None


def _missing_type(s: _Slip) -> _Explanation:
    if s.kind == "LSQB" and "COLON" in s.expected and re.match(r"(op|backward)\b", s.before):
        hint = f"write the element type before the shape: {s.last_word}: f32[...]"
        return f"operand '{s.last_word}' has no element type", hint
    return None


def _missing_shape(s: _Slip) -> _Explanation:
    if s.kind in ("COMMA", "RPAR", "COLON", "EQUAL") and set(s.expected) == {"LSQB"}:
        return "a type needs its shape", f"write {s.last_word}[...], or {s.last_word}[] for a scalar"
    return None


def _missing_block(s: _Slip) -> _Explanation:
    if "_INDENT" in s.expected:
        return "an indented block is expected after ':'", "indent the lines of the block by two spaces"
    return None


def _missing_colon(s: _Slip) -> _Explanation:
    if "COLON" in s.expected and (found := re.search(r"=\s*[A-Za-z_]\w*\s+([A-Za-z_]\w*)", s.before)):
        if found[1] == "if":
            return "there is no 'if' here", "write `select(condition, a, b)`"
        return "a reduction needs ':' before its value", "write `sum k: value`, or `sum k where condition: value`"
    if s.kind == "_NEWLINE" and "COLON" in s.expected:
        header = s.first_word in (*ITEMS, "config", "forward", "for", "on", "kernel", "group")
        if header:
            return "this line needs a ':' at its end", f"`{s.first_word} ...:` opens a block"
    return None


def _python_words(s: _Slip) -> _Explanation:
    words = {
        "if": "write `select(condition, a, b)`, or guard a reduction: `sum k where k <= q: ...`",
        "else": "write `select(condition, a, b)`",
        "for": "loops are not written: indices on the left run in parallel, reduced ones in `sum k: ...`",
        "def": "a scalar function is `fn name(x) = ...`, a tensor operation `op name(...) -> ...:`",
        "return": "write the result as an equation: `Y[i] = ...`",
        "lambda": "declare `fn name(x) = ...`",
    }
    if s.kind in ("NAME", "FOR") and s.token in words:
        return f"there is no '{s.token}' here", words[str(s.token)]
    return None


def _item(s: _Slip) -> _Explanation:
    if "OP" in s.expected and "MODEL" in s.expected:
        hint = did_you_mean(str(s.token), ITEMS, "item")
        if s.kind == "_INDENT":
            return "an indented line that belongs to no block", "begin items at the left margin"
        if not hint.startswith("did"):
            hint = f"a file is made of {', '.join(ITEMS[:-1])} and {ITEMS[-1]}"
        return f"'{s.token}' begins no item", hint
    return None


def _directive(s: _Slip) -> _Explanation:
    if s.kind in ("IN", "AT", "FOR", "TO", "OVER", "BY", "FROM", "EQUAL", "NAME") and s.before:
        hint = did_you_mean(s.first_word, DIRECTIVES, "directive")
        if s.first_word not in (*ITEMS, *DIRECTIVES) and "_NEWLINE" in s.expected and hint.startswith("did"):
            return f"unknown directive '{s.first_word}'", hint
    return None


def _statement(s: _Slip) -> _Explanation:
    """A model's statement, of which a view or an operand stands where it cannot."""
    found = re.match(r"(\w+) *= *(\w+)(\(.*\))?$", s.before.strip())
    if found is None or not {"LPAR", "_NEWLINE"} & s.expected:
        return None
    name, value, call = found.groups()
    alias = {"LPAR", "AS", "_NEWLINE"}
    if s.kind == "AS" and call:
        return "a call has no view", f"view its result: {name} as [...] = {value}{call}"
    if s.kind == "LSQB" and not call and set(s.expected) == alias:
        return "a slice has no name of its own", f"pass it to calls as it is: op({value}[...])"
    if s.kind in _OPERATORS and not call and set(s.expected) in ({"LPAR"}, alias):
        hint = f"write an op, and call it: {name} = op({value}, ...)"
        return f"'{s.token}' in a model: its statements call ops, and arithmetic stands in these", hint
    if s.kind == "_NEWLINE" and not call and set(s.expected) == {"LPAR"}:
        return (
            f"'{value}' is not called",
            f"write {value} where '{name}' is read, or copy it by an op: {name} = op({value})",
        )
    return None


def _indent(s: _Slip) -> _Explanation:
    if s.kind == "_INDENT":
        return "this line is indented deeper than its block", "only a line that ends in ':' opens a block"
    return None


def _keyword(s: _Slip) -> _Explanation:
    words = [k.lower() for k in s.expected - set(_WORDS) - _OPERATORS if k.isalpha()]
    expression = all(k in s.expected for k in _STARTS)
    if s.kind in ("NAME", "EQUAL", "COLON") and words and not expression:
        word = str(s.token) if s.kind == "NAME" else s.first_word
        hint = did_you_mean(word, words, "word")
        if hint.startswith("did"):
            return f"unexpected '{s.token}'", hint
    return None


_RULES: tuple[Callable[[_Slip], _Explanation], ...] = (
    _chained_comparison,
    _nested_reduction,
    _single_equals,
    _other_assignment,
    _missing_type,
    _missing_shape,
    _missing_block,
    _missing_colon,
    _python_words,
    _item,
    _indent,
    _directive,
    _statement,
    _keyword,
)


def explain_syntax(error: UnexpectedInput, text: str, file: str) -> TcError:
    """The diagnostic for text that the grammar does not take."""
    if isinstance(error, UnexpectedCharacters):
        ch = text[error.pos_in_stream or 0]
        span = Span(file, error.line, error.column, error.line, error.column + 1)
        return TcError(
            f"unexpected character {ch!r}",
            span,
            _CHARACTERS.get(ch, "remove it: the language does not use it"),
            text=text,
        )
    assert isinstance(error, UnexpectedToken)
    token = error.token
    line, column = _position(token, text)
    unclosed = _unclosed(text, line, column)
    if unclosed is not None and (unclosed[0] < line or token.type in ("_NEWLINE", "_DEDENT", "$END")):
        span = Span(file, unclosed[0], unclosed[1], unclosed[0], unclosed[1] + 1)
        bracket = text.splitlines()[unclosed[0] - 1][unclosed[1] - 1]
        closing = {"(": ")", "[": "]"}[bracket]
        return TcError(f"'{bracket}' is never closed", span, f"add '{closing}'", text=text)
    lines = text.splitlines()
    source = lines[line - 1] if line <= len(lines) else ""
    visible = token.type not in ("_NEWLINE", "_INDENT", "_DEDENT", "$END")
    width = len(str(token).split("\n")[-1]) if visible else 1
    span = Span(file, line, column, line, column + max(1, width))
    before = source[: column - 1].split("#")[0].strip()
    slip = _Slip(token, token.type, before, frozenset(_accepted(error)))
    for rule in _RULES:
        found = rule(slip)
        if found is not None:
            return TcError(found[0], span, found[1], text=text)
    met = f"unexpected '{str(token).strip()}'" if visible else "the line ends too early"
    expected = _expected(slip.expected)
    return TcError(
        met, span, f"expected {expected}" if expected else "check the line against docs/language.md", text=text
    )


def explain_layout(error: LayoutError, text: str, file: str) -> TcError:
    """The diagnostic for an indentation that returns to no open block."""
    line = error.newline.end_line or 1
    span = Span(file, line, 1, line, error.column + 1)
    columns = " or ".join(str(c) for c in error.open_columns)
    hint = f"indent it by {columns} spaces, like the other lines of its block"
    return TcError("this indentation matches no open block", span, hint, text=text)


def explain_tab(text: str, file: str) -> TcError | None:
    """The diagnostic for a tab among a line's leading spaces, if there is one."""
    for n, line in enumerate(text.splitlines(), 1):
        indent = line[: len(line) - len(line.lstrip())]
        if "\t" in indent and line.strip():
            column = indent.index("\t") + 1
            span = Span(file, n, column, n, column + 1)
            return TcError("a tab in the indentation", span, "indent with spaces, two a block", text=text)
    return None


def _position(token: Token, text: str) -> tuple[int, int]:
    """Line and column to point at: for a change of indentation the line after it; for a line's end, its end."""
    if token.type in ("_INDENT", "_DEDENT") and token.end_line:
        lines = text.splitlines()
        line = min(token.end_line, len(lines))
        return line, len(lines[line - 1]) - len(lines[line - 1].lstrip()) + 1
    if token.type == "$END":
        lines = text.splitlines() or [""]
        return len(lines), len(lines[-1]) + 1
    if token.type == "_ARROW" and "\n" in token:
        return token.end_line or 1, (token.end_column or 3) - 2
    return token.line or 1, token.column or 1


def _unclosed(text: str, line: int, column: int) -> tuple[int, int] | None:
    """The innermost bracket still open before a position."""
    stack: list[tuple[int, int]] = []
    for n, source in enumerate(text.splitlines()[:line], 1):
        code = source.split("#")[0]
        if n == line:
            code = code[: column - 1]
        for c, ch in enumerate(code, 1):
            if ch in "([":
                stack.append((n, c))
            elif ch in ")]" and stack:
                stack.pop()
    return stack[-1] if stack else None


def _expected(expected: Collection[str]) -> str:
    """`a, b or c` in words, or nothing when there is too much to name."""
    rest = set(expected)
    words: list[str] = []
    if rest >= _STARTS - {"NOT"}:
        words.append("an expression")
        rest -= _STARTS
    if len(rest & _OPERATORS) > 3:
        words.append("an operator")
        rest -= _OPERATORS
    rest -= {"_DEDENT"} if "_NEWLINE" in rest else set()
    words += sorted({_WORDS.get(k, f"'{k.lower().removeprefix('__')}'") for k in rest})
    if not words or len(words) > 7:
        return ""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def _accepted(error: UnexpectedToken) -> set[str]:
    """The terminals that the parser could have gone on with."""
    parser = error.interactive_parser
    return set(parser.accepts()) if parser is not None else set(error.expected)  # type: ignore[no-untyped-call]
