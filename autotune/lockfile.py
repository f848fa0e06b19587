"""The lockfile `<model>.<machine>.lock`: what tuning chose for each op instance, as TOML that people diff and commit.

Entries and keys are sorted, one value a line. An entry holds for an instance as long as the hashes of the op's text
and of its schedule are the ones it was tuned with; else it is stale, and its values are not used. Where a proposed
schedule has won over the model's own, the entry carries its text, with a hash that an edit of it would not match.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from tcomp.autotune.guard import guarded
from tcomp.errors import UserError
from tcomp.runtime.cache import unwritable, write_atomic
from tcomp.runtime.documents import parse_toml, read_small

FORMAT = 1
BASES = ("measured", "predicted")
T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One instance's choice. Times are seconds of all its kernels together; `basis` says whether they were measured or
    predicted. `margin` is the half width of the 95 % confidence interval of best / default, 0 where predicted.
    `schedule` is the hash of the model's own schedule, `text` the one in its place ("": none), `text_hash` its hash."""

    op: str
    schedule: str
    values: Mapping[str, int | float]
    basis: str
    default_seconds: float
    seconds: float
    margin: float = 0.0
    tools: str = ""
    when: str = ""
    text: str = ""
    text_hash: str = ""

    @property
    def gain(self) -> float:
        """How much faster than the schedule's own values: 0.1 takes 10 % less time."""
        return 1.0 - self.seconds / self.default_seconds if self.default_seconds > 0 else 0.0


@dataclass(frozen=True)
class Lock:
    """`steps` are the shapes (`124M B=4 T=64`) whose instances were tuned."""

    model: str
    machine: str
    steps: tuple[str, ...] = ()
    entries: Mapping[str, Entry] = field(default_factory=dict)


def entry_key(instance_key: str, threads: int) -> str:
    """An entry's name: the instance, and a CPU's threads."""
    return f"{instance_key} threads={threads}" if threads > 1 else instance_key


def find_lock(model_file: Path, machine: str, given: str | None) -> Path | None:
    """The lockfile to use: the one given ("none": no lock), else `<model>.<machine>.lock` in the working folder or
    beside the model's file, else None."""
    if given == "none":
        return None
    if given:
        return Path(given)
    name = f"{model_file.stem}.{machine}.lock"
    for folder in (Path.cwd(), model_file.parent):
        if (folder / name).is_file():
            return folder / name
    return None


def lock_text(lock: Lock) -> str:
    """The file's text: the same lock always gives the same text."""
    lines = [
        "# What `tcomp tune` chose. `tcomp build` and `tcomp train` use it; commit it. Times in microseconds.",
        f"format = {FORMAT}",
        f"model = {_quoted(lock.model)}",
        f"machine = {_quoted(lock.machine)}",
        "steps = [" + ", ".join(_quoted(s) for s in sorted(set(lock.steps))) + "]",
    ]
    for key in sorted(lock.entries):
        e = lock.entries[key]
        lines += [
            "",
            f"[op.{_quoted(key)}]",
            f"basis = {_quoted(e.basis)}",
            f"default_us = {_microseconds(e.default_seconds)}",
            f"us = {_microseconds(e.seconds)}",
            f"margin = {e.margin:.4f}",
            f"op = {_quoted(e.op)}",
            f"schedule = {_quoted(e.schedule)}",
            f"tools = {_quoted(e.tools)}",
            f"when = {_quoted(e.when)}",
            "values = { " + ", ".join(f"{_quoted(k)} = {v}" for k, v in sorted(e.values.items())) + " }"
            if e.values
            else "values = {}",
        ]
        if e.text:
            lines += [f"text_hash = {_quoted(e.text_hash)}", "text = ["]
            lines += [f"  {_quoted(line)}," for line in e.text.splitlines()]
            lines += ["]"]
    return "\n".join(lines) + "\n"


_REMEDY = "name a file that `tcomp tune` wrote; if it is one that was damaged, remove it and tune again"


def read_lock(path: Path) -> Lock:
    """The lock in a file. UserError when it cannot be read, is no lockfile, or is of another format."""
    try:
        return _lock(parse_toml(read_small(path)))
    except ValueError as e:
        raise UserError(f"{path}: not a lockfile that this tcomp reads: {e}", _REMEDY) from e
    except OSError as e:
        raise UserError(
            f"{path}: cannot read the lockfile: {e.strerror or e}", "name another by --lock, or none: --lock none"
        ) from e


def read_lock_for(path: Path, machine: str, model: str = "") -> Lock:
    """The lock in a file, UserError also where it is for another machine or (where one is named) another model."""
    lock = read_lock(path)
    if lock.machine != machine:
        raise UserError(
            f"{path}: tuned for {lock.machine}, and this is {machine}",
            "tune for this machine into another file (--lock), or build without a lockfile: --lock none",
        )
    if model and lock.model != model:
        raise UserError(f"{path}: the lockfile of model {lock.model}, not of {model}", "name another by --lock")
    return lock


def _lock(data: dict[str, Any]) -> Lock:
    version = data.get("format")
    if version != FORMAT or type(version) is not int:
        raise ValueError("it has no `format`" if version is None else f"its format is {version!r}, not {FORMAT}")
    entries = {key: _entry(key, e) for key, e in _of(data, "op", dict, "", {}).items()}
    steps = _of(data, "steps", list)
    if not all(isinstance(s, str) for s in steps):
        raise ValueError("`steps` is not a list of texts")
    return Lock(_of(data, "model", str), _of(data, "machine", str), tuple(steps), entries)


def _entry(key: str, e: Any) -> Entry:
    where = f" of {key!r}"
    if not isinstance(e, dict):
        raise ValueError(f"the entry {key!r} is not a table")
    basis = _of(e, "basis", str, where)
    if basis not in BASES:
        raise ValueError(f"`basis`{where} is {basis!r}, not one of {', '.join(BASES)}")
    values = _of(e, "values", dict, where)
    if not all(_is_number(v) for v in values.values()):
        raise ValueError(f"a value{where} is not a number")
    text = _of(e, "text", list, where, [])
    if not all(isinstance(line, str) for line in text):
        raise ValueError(f"`text`{where} is not a list of lines")
    default, best, margin = (_at_least_0(e, name, where) for name in ("default_us", "us", "margin"))
    return Entry(
        _of(e, "op", str, where), _of(e, "schedule", str, where), dict(values), basis, default * 1e-6, best * 1e-6,
        margin, _of(e, "tools", str, where), _of(e, "when", str, where),
        "".join(f"{line}\n" for line in text), _of(e, "text_hash", str, where, ""),
    )  # fmt: skip


_KINDS: dict[type, str] = {str: "a text", list: "a list", dict: "a table"}


def _of(table: Mapping[str, Any], name: str, kind: type[T], where: str = "", default: T | None = None) -> T:
    """What the table has under a name; ValueError where that is missing or of another kind."""
    found = table.get(name, default)
    if not isinstance(found, kind):
        wrong = "is missing" if found is None else f"is not {_KINDS[kind]}"
        raise ValueError(f"`{name}`{where} {wrong}")
    return found


def _at_least_0(table: Mapping[str, Any], name: str, where: str) -> float:
    found = table.get(name)
    if not _is_number(found) or found < 0:
        raise ValueError(f"`{name}`{where} is {'missing' if found is None else 'not a number from 0 on'}")
    return float(found)


def _is_number(value: Any) -> TypeGuard[int | float]:
    """A whole number of 64 bits, as TOML has it, or a finite one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return -(1 << 63) <= value < 1 << 63
    return isinstance(value, float) and isfinite(value)


def update_lock(path: Path, change: Callable[[Lock], Lock], empty: Lock) -> Lock:
    """Read, change and replace the file; several processes may do so at the same time. The file is whole at any
    moment, and is not written when nothing changes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with guarded(path):
        old = read_lock(path) if path.exists() else empty
        new = change(old)
        if new != old or not path.exists():
            write_atomic(path, lambda out: out.write(lock_text(new).encode()))
        return new


def check_writable(path: Path) -> None:
    """UserError when a lockfile could not be written there: known before a search, not after it."""
    reason = "it is a folder" if path.is_dir() else unwritable(path.resolve())
    if not reason:
        return
    raise UserError(f"{path}: no lockfile can be written there: {reason}", "name another by --lock")


def with_entry(lock: Lock, key: str, entry: Entry, step: str) -> Lock:
    """The lock with one entry set and one step named."""
    return replace(lock, entries={**lock.entries, key: entry}, steps=tuple(sorted({*lock.steps, step})))


def tool_versions() -> str:
    """What made the code that was timed: `tcomp 0.1.0, llvmlite 0.50.0, LLVM 22.1.0`."""
    import llvmlite
    import llvmlite.binding as llvm

    from tcomp import __version__

    return f"tcomp {__version__}, llvmlite {llvmlite.__version__}, LLVM {'.'.join(map(str, llvm.llvm_version_info))}"


def _quoted(text: str) -> str:
    """A TOML basic string."""
    return json.dumps(text, ensure_ascii=False)


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.2f}"
