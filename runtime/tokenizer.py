"""Text to tokens and back: a run's tokenizer.json through the `tokenizers` library, else the text's bytes."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any, Protocol

from tcomp.errors import UserError
from tcomp.runtime.documents import is_unicode, parse_json, read_small
from tcomp.runtime.run_folder import PASSED

FILE = "tokenizer.json"


class Stream(Protocol):
    """Tokens to text as they come."""

    def feed(self, token: int) -> str: ...

    def end(self) -> str: ...


class Tokenizer(Protocol):
    """`ends` are tokens after which a text is over."""

    @property
    def size(self) -> int:
        """Largest token plus one."""
        ...

    @property
    def ends(self) -> frozenset[int]: ...

    def encode(self, text: str) -> list[int]: ...

    def stream(self) -> Stream: ...


class ByteTokenizer:
    """A token per byte of UTF-8."""

    size = 256
    ends: frozenset[int] = frozenset()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def stream(self) -> Stream:
        return ByteDecoder()


class ByteDecoder:
    """Byte tokens to text as they come; bytes that are not UTF-8 show as the replacement character."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if token < 256 else f"<{token}>"

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


class JsonTokenizer:
    """A tokenizer.json. UserError when it is none, or the library that reads it is not there."""

    def __init__(self, path: Path, ends: frozenset[int] = frozenset()) -> None:
        try:
            import tokenizers
        except ImportError as e:
            raise UserError(
                f"{path}: reading it takes the `tokenizers` library", "install it: pip install 'tcomp[data]'"
            ) from e
        if not path.is_file():
            raise UserError(f"{path}: no such file", "give a tokenizer.json")
        try:
            self._inner: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as e:  # the library raises plain Exception
            raise UserError(f"{path}: not a tokenizer: {e}", "give a tokenizer.json of the tokenizers library") from e
        self.path, self.ends = path, ends

    @property
    def size(self) -> int:
        return max(self._inner.get_vocab().values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        return [list(e.ids) for e in self._inner.encode_batch_fast(texts, add_special_tokens=False)]

    def number(self, token: str) -> int | None:
        """The number of a token by its text, such as <|endoftext|>."""
        found = self._inner.token_to_id(token) if is_unicode(token) else None
        return None if found is None else int(found)

    def decode(self, tokens: list[int]) -> str:
        return str(self._inner.decode(tokens, skip_special_tokens=True))

    def stream(self) -> Stream:
        return _JsonStream(self)


class _JsonStream:
    """Decodes what came since the last whole piece of text: a character may take several tokens."""

    def __init__(self, tokenizer: JsonTokenizer) -> None:
        self._tokenizer, self._tokens, self._start, self._shown = tokenizer, [0][:0], 0, ""

    def feed(self, token: int) -> str:
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens[self._start :])
        if text.endswith("\ufffd"):
            return ""
        new = text[len(self._shown) :]
        if len(self._tokens) - self._start > 64:
            self._start, self._shown = len(self._tokens) - 1, self._tokenizer.decode(self._tokens[-1:])
        else:
            self._shown = text
        return new

    def end(self) -> str:
        return self._tokenizer.decode(self._tokens[self._start :])[len(self._shown) :]


def tokenizer_of(run: Path) -> Tokenizer:
    """The tokenizer that came with a run's weights or data; without one, bytes."""
    path = run / PASSED / FILE
    if not path.is_file():
        return ByteTokenizer()
    return JsonTokenizer(path, _ends(run / PASSED))


def _ends(folder: Path) -> frozenset[int]:
    """eos_token_id of generation_config.json or config.json: a number or several."""
    for name in ("generation_config.json", "config.json"):
        try:
            found = parse_json(read_small(folder / name)).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            continue
        numbers = found if isinstance(found, list) else [found]
        if all(isinstance(n, int) for n in numbers):
            return frozenset(numbers)
    return frozenset()
