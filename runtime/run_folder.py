"""A run folder: run.json (what was asked for), metrics.jsonl (a line per step), checkpoints/.

One process at a time may write to it; the lock goes with the process, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from tcomp.errors import UserError
from tcomp.runtime.cache import unwritable, write_atomic
from tcomp.runtime.documents import parse_json, read_small

CONFIG, METRICS, LOCK = "run.json", "metrics.jsonl", ".lock"
_DAMAGED = "put back a copy of the file, or name another run"
PASSED = "hf"
"""The folder of files that came with imported weights and are passed on: config.json, the tokenizer."""


class RunFolder:
    """An open run folder, locked until `close`. One that was created goes again with all that was written to it, unless
    the run has begun."""

    def __init__(self, path: Path, create: bool) -> None:
        self.path = path
        if not create and not (path / CONFIG).is_file():
            raise UserError(
                f"{path}: not a run folder: it has no {CONFIG}",
                "name a folder that `tcomp train` made, such as runs/gpt2-tiny",
            )
        if create:
            refuse_used(path)
        self._begun = not create
        self._made = [p for p in (path, *path.parents) if not p.exists()]
        self._held: dict[str, bytes | None] = {}
        """what was in the folder before: names, and the content of a dead run's settings"""
        try:
            path.mkdir(parents=True, exist_ok=True)
            if create:
                self._held = {p.name: p.read_bytes() if p.name == CONFIG else None for p in path.iterdir()}
            self._lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as e:
            self._remove_folders()
            raise _unusable(path, e.strerror or str(e)) from e
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(self._lock)
            raise UserError(
                f"{path}: another process is training in this run folder",
                "wait for it, stop it, or name another folder by --run",
            ) from e

    def begin(self) -> None:
        """There is a first result: from now on the folder stays."""
        self._begun = True

    def close(self) -> None:
        if not self._begun:
            self._restore()
        os.close(self._lock)

    def write_config(self, config: dict[str, Any]) -> None:
        text = json.dumps(config, indent=2, default=str) + "\n"
        try:
            write_atomic(self.path / CONFIG, lambda out: out.write(text.encode()))
        except OSError as e:
            raise UserError(
                f"{self.path / CONFIG}: cannot write it: {e.strerror or e}",
                "make room and permission there, or name another folder by --run",
            ) from e

    def pass_on(self, other: Path) -> None:
        """Copy what another run was imported with (its tokenizer, config.json), for generation and export."""
        if (other / PASSED).is_dir():
            shutil.copytree(other / PASSED, self.path / PASSED, dirs_exist_ok=True)

    def keep_tokenizer(self, data: list[Path]) -> None:
        """Keep the tokenizer that data was prepared with, for generation."""
        for folder in data:
            if (folder / "tokenizer.json").is_file() and (folder / "manifest.json").is_file():
                (self.path / PASSED).mkdir(exist_ok=True)
                shutil.copyfile(folder / "tokenizer.json", self.path / PASSED / "tokenizer.json")

    def _restore(self) -> None:
        """Leave the folder as it was: the run has not begun."""
        with suppress(OSError):
            for p in self.path.iterdir():
                if p.name not in self._held:
                    shutil.rmtree(p) if p.is_dir() else p.unlink()
            if (config := self._held.get(CONFIG)) is not None:
                (self.path / CONFIG).write_bytes(config)
        self._remove_folders()

    def _remove_folders(self) -> None:
        """Remove the folders that were made for this run."""
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()


def refuse_used(path: Path) -> None:
    """UserError when a new run cannot have this folder: it holds another run, or nothing can be written there."""
    if (path / "checkpoints").is_dir() and any((path / "checkpoints").glob("step-*")):
        raise UserError(
            f"{path}: the run folder already holds a run",
            f"continue it with `tcomp train --resume {path}`, or give another --run name",
        )
    if reason := os.strerror(errno.ENOTDIR) if path.exists() and not path.is_dir() else unwritable(path / CONFIG):
        raise _unusable(path, reason)


def _unusable(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: cannot use it as run folder: {reason}", "name another by --run (imports: --out)")


def read_config(path: Path) -> dict[str, Any]:
    """The run.json of a run folder; UserError when it is not one."""
    try:
        found = parse_json(read_small(path / CONFIG))
    except OSError as e:
        raise UserError(
            f"{path}: not a run folder: {CONFIG}: {e.strerror or e}",
            "name a folder that `tcomp train` made, such as runs/gpt2-tiny",
        ) from e
    except ValueError as e:
        raise UserError(f"{path / CONFIG}: damaged: {e}", _DAMAGED) from e
    if not isinstance(found, dict):
        raise UserError(f"{path / CONFIG}: damaged: not a table", _DAMAGED)
    return found


class Metrics:
    """Appends one JSON line per step. Lines after `steps_done`, of a killed run, are dropped first; a line that a
    resumed run finds again (the last validation) is not repeated."""

    def __init__(self, run: Path, steps_done: int) -> None:
        path = run / METRICS
        kept: list[str] = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    if parse_json(line)["step"] <= steps_done:
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError):
                    break
        try:
            write_atomic(path, lambda out: out.write("".join(kept).encode()))
            self._out = open(path, "a", encoding="utf-8")  # noqa: SIM115
            self._last = kept[-1] if kept else ""
        except OSError as e:
            raise UserError(
                f"{path}: cannot write it: {e.strerror or e}",
                "make room and permission there, or name another folder by --run",
            ) from e

    def write(self, **values: float) -> None:
        line = json.dumps(values) + "\n"
        if line == self._last:
            return
        self._last = line
        try:
            self._out.write(line)
            self._out.flush()
        except OSError:
            pass  # a full disk must not end the training; checkpoints say so themselves

    def close(self) -> None:
        with suppress(OSError):  # what the last write left in the buffer may find no room either
            self._out.close()


class FollowedRun(RunFolder):
    """The run folder of a run in which another process has the files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self) -> None:
        pass

    def close(self) -> None:
        pass


class FollowedMetrics(Metrics):
    """Takes figures that another process writes."""

    def __init__(self) -> None:
        pass

    def write(self, **values: float) -> None:
        pass

    def close(self) -> None:
        pass
