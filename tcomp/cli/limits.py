"""What a user gives by flag or in a run file: read, and held to the ranges in which it makes sense.

Each refusal is one UserError that names the value, and in its help the flag and what may be given.
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tcomp.errors import UserError
from tcomp.model.request import LARGEST_DIM

if TYPE_CHECKING:
    from tcomp.dsl.dims import Number
    from tcomp.model.request import RecomputePolicy

_LARGEST_FLOAT = 3.4e38


def cores() -> int:
    """The CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Range:
    """The smallest and the largest number that an option makes sense with."""

    low: float
    high: float

    def check(self, name: str, value: float) -> None:
        """UserError for a value outside."""
        if self.low <= value <= self.high:
            return
        if math.isnan(value):
            wrong = "must be a number"
        elif value < self.low:
            wrong = f"must be at least {self.low}" if self.low else "must not be negative"
        else:
            wrong = f"must be at most {self.high}"
        flag = "--" + name.replace("_", "-")
        raise UserError(f"{name} = {_short(value)}: {wrong}", f"give {flag} a number from {self.low} to {self.high}")


def _short(value: float) -> str:
    text = str(value)
    return text if len(text) <= 30 else f"{text[:20]}... ({len(text)} digits)"


def check_dims(dims: Mapping[str, Number]) -> None:
    for name, value in dims.items():
        if not 0 <= value <= LARGEST_DIM:
            wrong = "must not be negative" if value < 0 else f"must be at most {LARGEST_DIM}"
            wrong = "must be a finite number" if value != value or abs(value) == math.inf else wrong
            raise UserError(
                f"dims.{name} = {_short(value)}: {wrong}",
                f"give a number from 0 to {LARGEST_DIM}, such as --dim {name}=2",
            )


def check_hyper(hyper: Mapping[str, float], defaults: Mapping[str, float] | None = None) -> None:
    """UserError for a value that no float32 holds, and, given the model's defaults, for an unknown name or a
    negative value where the default is none."""
    for name, value in hyper.items():
        flag = "--lr" if name == "peak_lr" else f"--hyper {name}=NUMBER"
        if not abs(value) <= _LARGEST_FLOAT:
            raise UserError(f"hyper.{name} = {value}: must be a finite number", f"give another by {flag}")
        if defaults is None:
            continue
        if name not in defaults:
            raise UserError(f"unknown hyperparameter {name!r}", f"this model has: {', '.join(sorted(defaults))}")
        if value < 0 <= defaults[name]:
            raise UserError(f"hyper.{name} = {value}: must not be negative", f"give 0 or more by {flag}")


def check_effective(given: Iterable[str], idle: Collection[str], known: Iterable[str]) -> None:
    """UserError for a hyperparameter that no update depends on (`Step.idle_hyper`). `known` are all that there are."""
    for name in given:
        if name in idle:
            own = sorted(n for n in known if "." in n)
            rates = [n for n in own if n.endswith(".lr")]
            raise UserError(
                f"hyper.{name}: no parameter's update depends on it, since every group has a value of its own instead",
                f"give the groups' own: {', '.join(f'--hyper {n}=NUMBER' for n in rates or own)}",
            )


def check_prompt(prompt: str, vocabulary: int | None = None) -> None:
    """UserError for a prompt that is empty, not Unicode, or outside the vocabulary of byte tokens."""
    if not prompt:
        raise UserError("the prompt is empty", "give at least one character with --prompt")
    try:
        tokens = prompt.encode()
    except UnicodeEncodeError as e:
        raise UserError("the prompt is not UTF-8 text", "give other characters with --prompt") from e
    if vocabulary is not None and max(tokens) >= vocabulary:
        raise UserError(
            f"the prompt has bytes outside the model's vocabulary of {vocabulary}",
            "give other characters with --prompt",
        )


def parse_values(given: Sequence[str], flag: str) -> dict[str, float]:
    """`["peak_lr=1e-3", ...]` as numbers by name."""
    values = {}
    for text in given:
        name, equals, number = text.partition("=")
        try:
            if not equals or not name.strip():
                raise ValueError
            values[name.strip()] = float(number)
        except ValueError as e:
            example = "--dim L=2" if flag == "--dim" else f"{flag} peak_lr=1e-3"
            raise UserError(f"{flag} {text}: not NAME=NUMBER", f"write for example {example}") from e
    return values


def parse_dims(given: Sequence[str]) -> dict[str, Number]:
    """The values of `--dim`, numbers of at least 0, whole ones as integers."""
    values = parse_values(given, "--dim")
    for name, value in values.items():
        if not math.isfinite(value):
            raise UserError(f"--dim {name}={value}: must be a finite number", f"write for example --dim {name}=2")
    dims: dict[str, Number] = {name: int(value) if value == int(value) else value for name, value in values.items()}
    check_dims(dims)
    return dims


def check_named(flag: str, names: Sequence[str]) -> None:
    """UserError for an empty name: as a path it would be the working folder."""
    if any(not name.strip() for name in names):
        raise UserError(f"{flag}: the name is empty", "name a file or folder, or leave the flag out")


def check_threads(threads: int, instead: str) -> None:
    """UserError for a number of cores where what is asked for is a GPU's."""
    if threads:
        raise UserError(
            f"--threads {threads}: says how many cores share a CPU's step, and {instead} makes a GPU's",
            "leave out one of the two",
        )


PICTURES = (".png", ".svg", ".pdf")


def check_picture(file: Path | None) -> None:
    """UserError for the name of a picture that says no form in which one is drawn."""
    if file is not None and file.suffix.lower() not in PICTURES:
        raise UserError(
            f"{file}: the name says no form in which pictures are drawn",
            f"let it end in {', '.join(PICTURES[:-1])} or {PICTURES[-1]}",
        )


def check_writable(*files: Path | None) -> None:
    """UserError for a file that cannot be written, or is named twice: before minutes of work, not after."""
    from tcomp.runtime.cache import unwritable

    named = [file for file in files if file is not None]
    places = [os.path.realpath(file) for file in named]
    for at, file in enumerate(named):
        if places[at] in places[:at]:
            raise UserError(f"{file}: two outputs have this name", "give each a file of its own")
        place = Path(places[at])  # where a link leads
        if place.is_symlink():
            reason = os.strerror(errno.ELOOP)
            raise UserError(f"{file}: cannot write there: {reason}", "name another place, or remove the link")
        if file.is_dir() or not file.absolute().parent.is_dir() or not place.parent.is_dir():
            raise UserError(f"{file}: cannot write there", "name a file in a folder that exists")
        if reason := unwritable(file) or unwritable(place):
            raise UserError(f"{file}: cannot write there: {reason}", "name another place, or make room there")


DEVICES = ("cpu", "cuda", "virtual")
DEFAULT_GPU = "h100"


def split_device(name: str) -> tuple[str, str]:
    """`cuda:1` or `cuda:H100` as (cuda, 1); UserError for what is no device."""
    kind, colon, which = name.partition(":")
    if kind not in DEVICES or (colon and (kind != "cuda" or not which.strip())):
        raise UserError(
            f"--device {name}: there is no such device",
            "give cpu, cuda (cuda:1 or cuda:NAME for another GPU than the first), or virtual",
        )
    return kind, which.strip()


def check_device(device: str, gpu: str) -> None:
    """UserError for a device that is none, or a `--gpu` that is unknown or has no use."""
    kind, _ = split_device(device)
    if not gpu:
        return
    if kind != "virtual":
        raise UserError(f"--gpu {gpu} is for --device virtual", f"--device {kind} takes the machine as it is")
    from tcomp.machine.gpu import machine_named

    machine_named(gpu)


def check_exchange(exchange: str) -> None:
    """UserError for a way that there is none of."""
    if exchange not in ("", "nccl", "gloo"):
        raise UserError(f"--exchange {exchange}: there is no such way", "give nccl, or gloo (through host memory)")


def check_precision(name: str) -> None:
    """UserError for the name of no precision recipe; empty is the model's own."""
    from tcomp.dsl.recipes import RECIPES

    if name and name not in RECIPES:
        known = "; ".join(f"{r.name}: {r.summary}" for r in RECIPES.values())
        raise UserError(f"there is no precision {name!r}", known)


_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
}


STORAGE = {"f32": "F32", "bf16": "BF16", "f16": "F16"}


def storage_kind(dtype: str) -> str | None:
    """The name in safetensors files of a `--dtype`; None when none is given."""
    if dtype and dtype not in STORAGE:
        raise UserError(f"--dtype {dtype}: no type that weights are stored in", f"give {', '.join(STORAGE)}")
    return STORAGE[dtype] if dtype else None


def parse_memory(text: str) -> tuple[int | None, RecomputePolicy]:
    """What `--memory` says: the limit, and where activations are computed again."""
    if not text:
        return None, "cheap"
    limit = parse_bytes(text, "--memory")
    return limit, "never" if limit is None else "to fit"


def parse_bytes(text: str, flag: str) -> int | None:
    """`16GB`, `512MiB`, `1000000`; None for "unlimited"."""
    if text.strip() == "unlimited":
        return None
    digits = text.strip().rstrip("BKMGTIbkmgti ")
    unit = text.strip()[len(digits) :].strip().upper()
    help_text = f"write for example {flag} 16GB, or {flag} unlimited"
    try:
        amount = float(digits) * _UNITS[unit]
        if not math.isfinite(amount):
            raise ValueError
    except (ValueError, KeyError) as e:
        raise UserError(f"{flag} {text}: not an amount of memory", help_text) from e
    if amount < 1:
        raise UserError(f"{flag} {text}: must be more than nothing", help_text)
    return int(amount)


def parse_duration(text: str) -> float:
    """Seconds of `90s`, `20m`, `1h30m`, `45`."""
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    parts = [float(p) if p else 0.0 for p in found.groups()] if found and text.strip() else []
    seconds = sum(p * unit for p, unit in zip(parts, (3600.0, 60.0, 1.0), strict=False))
    if seconds <= 0:
        raise UserError(f"--budget {text}: not a duration", "write for example --budget 20m, 90s or 1h30m")
    return seconds


def parse_share(text: str) -> float:
    try:
        value = float(text.strip().removesuffix("%")) / 100
        if not 0 < value < 1:
            raise ValueError
    except ValueError as e:
        raise UserError(f"--until-within {text}: not a percentage", "write for example --until-within 2%") from e
    return value
