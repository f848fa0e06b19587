"""Token files in llm.c's formats, memory-mapped: 256 int32 of header, then one uint16 or uint32 per token.

Header: magic and version (20240520 and 1 for uint16, 20240801 and 7 for uint32), token count; the rest is 0. Files that
tcomp itself writes use four of the spare header words: the largest token plus one, and 96 bits of a hash of the tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tcomp.errors import UserError
from tcomp.runtime.cache import cache_folder, write_atomic
from tcomp.runtime.documents import check_regular, parse_json, read_small

MAGIC, VERSION, HEADER_WORDS = 20240520, 1, 256
MAGIC_WIDE, VERSION_WIDE = 20240801, 7
_WIDTHS = {MAGIC: (VERSION, 2), MAGIC_WIDE: (VERSION_WIDE, 4)}
"""Magic -> version, bytes of a token."""
HEADER_BYTES = 4 * HEADER_WORDS
_CHUNK = 1 << 22

Tokens = NDArray[Any]


@dataclass(frozen=True)
class TokenFile:
    """An open token file: `tokens` is a read-only memory map. `fingerprint` names the content."""

    path: Path
    tokens: Tokens
    fingerprint: str
    bound: int | None
    """largest token plus one, where the header says so"""


def open_token_file(path: Path) -> TokenFile:
    """Map a token file; UserError when it is not a whole, well-formed one."""
    try:
        check_regular(path)
        size = path.stat().st_size
        with open(path, "rb") as f:
            head = f.read(HEADER_BYTES)
    except OSError as e:
        raise UserError(
            f"{path}: cannot read it: {e.strerror or e}", "name a file that exists and that you may read"
        ) from e
    if len(head) < HEADER_BYTES:
        raise UserError(
            f"{path}: not a token file: {size} bytes, shorter than the {HEADER_BYTES}-byte header",
            "a .bin file must be in llm.c's format; give text files as they are",
        )
    header = np.frombuffer(head, dtype="<i4")
    magic, version, count = (int(v) for v in header[:3])
    if magic not in _WIDTHS:
        raise UserError(
            f"{path}: not a token file: it starts with {magic}, not {MAGIC}",
            "a .bin file must be in llm.c's format (dev/data/*.py there write it)",
        )
    known, width = _WIDTHS[magic]
    if version != known:
        raise UserError(
            f"{path}: token file version {version}, but only version {known} (uint{8 * width}) is known",
            "make it again by tcomp data prepare, or by llm.c's dev/data scripts",
        )
    if size != HEADER_BYTES + width * count:
        state = "truncated" if size < HEADER_BYTES + width * count else "too long"
        raise UserError(
            f"{path}: {state}: the header promises {count} tokens ({HEADER_BYTES + width * count} bytes), "
            f"the file has {size} bytes",
            "copy or make the file again",
        )
    if count == 0:
        raise UserError(f"{path}: it holds no tokens", "make it again from text that is not empty")
    tokens = np.memmap(path, dtype=f"<u{width}", mode="r", offset=HEADER_BYTES, shape=(count,))
    bound = int(header[3]) or None
    fingerprint = header[4:7].tobytes().hex() if bound else f"{path.name}:{count}"
    return TokenFile(path, tokens, fingerprint, bound)


def write_tokens(path: Path, chunks: Iterable[Tokens], wide: bool = False) -> None:
    """Write tokens as a token file, atomically, in uint16 or (`wide`) uint32; header words 3 to 6 hold their bound and
    hash."""
    dtype = "<u4" if wide else "<u2"

    def fill(out: IO[bytes]) -> None:
        digest, count, bound = hashlib.blake2b(digest_size=12), 0, 1
        out.write(bytes(HEADER_BYTES))
        for chunk in chunks:
            data = np.ascontiguousarray(chunk, dtype=dtype)
            if data.size:
                bound = max(bound, int(data.max()) + 1)
            out.write(data.tobytes())
            digest.update(data.tobytes())
            count += data.size
        header = np.zeros(HEADER_WORDS, dtype="<i4")
        header[:4] = *((MAGIC_WIDE, VERSION_WIDE) if wide else (MAGIC, VERSION)), count, bound
        header[4:7] = np.frombuffer(digest.digest(), dtype="<i4")
        out.seek(0)
        out.write(header.tobytes())

    write_atomic(path, fill)


def check_vocabulary(file: TokenFile, vocabulary: int, text: str = "") -> None:
    """UserError naming file and position when a token is not below `vocabulary`, or where the file is damaged. Of a
    text's bytes, which are in a file of our own, `text` is the name.

    Files are read through once, whatever their headers promise: a token beyond the vocabulary would be read from
    memory that is no embedding. What was found is kept in the cache folder, so the next start does not read them again.
    """
    if file.bound is None and file.tokens.dtype.itemsize == 2 and vocabulary > 0xFFFF:
        return
    bound, sound = _looked_through(file)
    if not sound:
        raise UserError(
            f"{file.path}: damaged: its tokens are not those that its header's checksum is of",
            "copy or make the file again",
        )
    if bound <= vocabulary:
        return
    for start in range(0, len(file.tokens), _CHUNK):
        bad = np.flatnonzero(file.tokens[start : start + _CHUNK] >= vocabulary)
        if bad.size:
            position = start + int(bad[0])
            raise UserError(
                f"{text or file.path}: token {int(file.tokens[position])} at position {position} is outside the "
                f"model's vocabulary of {vocabulary}",
                "text is read byte by byte: take a model of 256 words (`tcomp train --dim V=256` where V counts them), "
                "or data tokenised for this one"
                if text
                else "choose a config of more words, or data tokenised for this model",
            )


def _looked_through(file: TokenFile) -> tuple[int, bool]:
    """The largest token plus one, and whether the tokens are those of the header, where it says so."""
    stat = file.path.stat()
    identity = f"{file.path.resolve()} {stat.st_size} {stat.st_mtime_ns} {file.fingerprint} {file.bound}"
    note = None
    with suppress(UserError):  # where nothing can be kept, the next start looks again
        note = cache_folder("data") / f"{hashlib.blake2b(os.fsencode(identity), digest_size=16).hexdigest()}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = parse_json(read_small(note)) if note is not None else {}
        if found["file"] == identity and type(found["bound"]) is int:
            return found["bound"], found["sound"] is True
    bound, digest = 1, hashlib.blake2b(digest_size=12)
    for start in range(0, len(file.tokens), _CHUNK):
        chunk = file.tokens[start : start + _CHUNK]
        bound = max(bound, int(chunk.max()) + 1)
        if file.bound is not None:
            digest.update(chunk.tobytes())
    sound = file.bound is None or (bound, digest.hexdigest()) == (file.bound, file.fingerprint)
    if note is not None:
        text = json.dumps({"file": identity, "bound": bound, "sound": sound})
        with suppress(OSError):
            write_atomic(note, lambda out: out.write(text.encode()))
    return bound, sound
