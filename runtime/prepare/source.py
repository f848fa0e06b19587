"""What `tcomp data prepare` reads: text, JSON lines and parquet files, cut into parts of a few megabytes.

A part is a piece of one file that a process tokenises on its own: a byte range that ends at a line, or row groups. The
cut depends on the files alone, so the outcome is the same whatever the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tcomp.errors import UserError
from tcomp.runtime.documents import is_unicode, parse_json
from tcomp.runtime.text_source import text_files

PART_BYTES = 1 << 24
_LARGEST_LINE = 1 << 28


@dataclass(frozen=True)
class Part:
    """Bytes (of text and JSON lines) or row groups (of parquet) from `start` to `stop` of a file; `ends`: its last."""

    path: str
    kind: str
    start: int
    stop: int
    ends: bool
    size: int
    """bytes, for progress"""


def parts_of(paths: list[Path]) -> list[Part]:
    """All parts of the files, folders walked, in a fixed order. UserError where there is nothing to read."""
    found: list[Part] = []
    for path in text_files(paths):
        kind = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}.get(path.suffix.lower(), "text")
        found += _parquet_parts(path) if kind == "parquet" else _line_parts(path, kind, PART_BYTES)
    if not found:
        raise UserError("there is nothing to prepare: the files are empty", "give text, .jsonl or .parquet files")
    return found


def _line_parts(path: Path, kind: str, part_bytes: int) -> list[Part]:
    """Cuts behind the first line end after every `part_bytes`."""
    try:
        size = path.stat().st_size
        cuts = [0]
        with open(path, "rb") as f:
            while cuts[-1] + part_bytes < size:
                f.seek(cuts[-1] + part_bytes)
                f.readline(_LARGEST_LINE)
                cuts.append(min(f.tell(), size))
    except OSError as e:
        raise UserError(
            f"{path}: cannot read it: {e.strerror or e}", "name a file that exists and that you may read"
        ) from e
    if cuts[-1] < size:
        cuts.append(size)
    return [Part(str(path), kind, a, b, b == size, b - a) for a, b in pairwise(cuts)]


def _parquet_parts(path: Path) -> list[Part]:
    meta = _parquet(path).metadata
    return [
        Part(str(path), "parquet", i, i + 1, i + 1 == meta.num_row_groups, int(meta.row_group(i).total_byte_size))
        for i in range(meta.num_row_groups)
    ]


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as e:
        raise UserError(f"{path}: reading parquet takes pyarrow", "install it: pip install 'tcomp[data]'") from e
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: not a parquet file: {e}", "copy or download the file again") from e


def documents(part: Part, key: str) -> Iterator[tuple[str, bool]]:
    """The part's texts, each with whether a document ends there. UserError naming file and line for bad input."""
    if part.kind == "parquet":
        file = _parquet(Path(part.path))
        if key not in file.schema_arrow.names:
            raise UserError(
                f"{part.path}: it has no column {key!r}", f"its columns: {', '.join(file.schema_arrow.names)}"
            )
        for batch in file.iter_batches(row_groups=range(part.start, part.stop), columns=[key]):
            for value in batch.column(0).to_pylist():
                if not isinstance(value, str | None):
                    raise UserError(f"{part.path}: column {key!r} holds no text", "name the text's column by --key")
                if value:
                    yield value, True
        return
    with open(part.path, "rb") as f:
        f.seek(part.start)
        raw = f.read(part.stop - part.start)
    if part.kind == "text":
        yield _decoded(raw, part.path, part.start), part.ends
        return
    at = part.start
    for line in raw.splitlines(keepends=True):
        if line.strip():
            text = _field(line, key, part.path, at)
            if text:
                yield text, True
        at += len(line)


def _decoded(raw: bytes, path: str, at: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text: byte {at + e.start}", "convert the file, or leave it out") from e


def _field(line: bytes, key: str, path: str, at: int) -> str:
    try:
        value = parse_json(_decoded(line, path, at))
        text = value[key]
    except ValueError as e:
        raise UserError(f"{path}: byte {at}: not a line of JSON: {e}", "one JSON table a line") from e
    except (KeyError, TypeError) as e:
        raise UserError(f"{path}: byte {at}: the line has no {key!r}", "name the text's key by --key") from e
    if not isinstance(text, str):
        raise UserError(f"{path}: byte {at}: {key!r} is no text", "name the text's key by --key")
    if not is_unicode(text):
        raise UserError(f"{path}: byte {at}: {key!r} has half of a surrogate pair", "make it whole, or leave it out")
    return text
