"""Parts to token files, in several processes; each part's file is written once, so a stopped run goes on where it was.

A row or line is for validation when a hash of its place says so: the choice needs no state and never changes. Plain
text is not torn apart so (shards.py takes its end).
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tcomp.errors import UserError
from tcomp.runtime.batches import mix
from tcomp.runtime.prepare.source import Part, documents
from tcomp.runtime.token_file import Tokens, open_token_file, write_tokens
from tcomp.runtime.tokenizer import JsonTokenizer

KINDS = ("train", "val")
_TOGETHER = 256
_MOST_CHARACTERS = 1 << 22


@dataclass(frozen=True)
class Job:
    """What a process needs. `end` is the token behind each document, -1 for none."""

    tokenizer: str
    folder: str
    key: str
    end: int
    fraction: float
    wide: bool


def part_file(folder: Path, number: int, kind: str) -> Path:
    return folder / f"{number:06d}.{kind}.bin"


def is_done(folder: Path, number: int) -> bool:
    """Whether both of a part's files are there, whole; an empty one is a marker without tokens."""
    for kind in KINDS:
        path = part_file(folder, number, kind)
        if not path.exists():
            return False
        if path.stat().st_size:
            try:
                open_token_file(path)
            except UserError:
                return False
    return True


def tokenise(number: int, part: Part, job: Job) -> int:
    """Write one part's files; the number of its tokens."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = JsonTokenizer(Path(job.tokenizer))
    streams: dict[str, list[Tokens]] = {kind: [] for kind in KINDS}
    dtype = np.uint32 if job.wide else np.uint16
    at = 0
    for texts in _batches(part, job.key):
        for ids, (_, over) in zip(tokenizer.encode_many([t for t, _ in texts]), texts, strict=True):
            held_out = part.kind != "text" and mix(number, at, 7) < job.fraction * 2.0**64
            at += 1
            ending = [job.end] if over and job.end >= 0 else []
            streams[KINDS[held_out]].append(np.array([*ids, *ending], dtype))
    count = 0
    for kind, arrays in streams.items():
        path = part_file(Path(job.folder), number, kind)
        tokens = sum(a.size for a in arrays)
        count += tokens
        if tokens:
            write_tokens(path, arrays, job.wide)
        else:
            path.write_bytes(b"")
    return count


def _batches(part: Part, key: str) -> Iterator[list[tuple[str, bool]]]:
    """A part's texts in groups that are encoded together."""
    group: list[tuple[str, bool]] = []
    size = 0
    for text, over in documents(part, key):
        group.append((text, over))
        size += len(text)
        if len(group) >= _TOGETHER or size > _MOST_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def tokenise_all(parts: list[Part], job: Job, workers: int, advance: Callable[[int], None]) -> None:
    """All parts that are not done yet; `advance` gets the bytes of each as it is. UserError: a process was killed."""
    left = []
    for number, part in enumerate(parts):
        if is_done(Path(job.folder), number):
            advance(part.size)
        else:
            left.append((number, part))
    if workers == 1 or len(left) < 2:
        for number, part in left:
            tokenise(number, part, job)
            advance(part.size)
        return
    pool = ProcessPoolExecutor(min(workers, len(left)), multiprocessing.get_context("spawn"))
    try:
        running = {pool.submit(tokenise, number, part, job): part for number, part in left}
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                advance(running.pop(future).size)
    except BrokenProcessPool:
        raise UserError(
            "a process that tokenised was killed from outside, perhaps for want of memory",
            "run the command again: what is done is kept; --workers 1 needs the least memory",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
