"""Built steps kept between starts, by content: a second start of a step parses, derives, lowers and plans nothing.

An entry's name is a hash of everything that the step depends on: the texts, what was asked for, the machine, and the
compiler's own sources. Entries are pickles behind the cache's checksum. They are read from the user's own cache folder
only, which holds native code that is run, and only classes of tcomp are made from them; what is damaged is built anew.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tcomp
import tcomp.autotune
import tcomp.dsl
from tcomp.codegen.cache import ContentCache
from tcomp.dsl.files import source_texts
from tcomp.errors import UserError
from tcomp.ir.content import content_text
from tcomp.model.step import Step
from tcomp.runtime.cache import cache_folder
from tcomp.runtime.documents import read_small

if TYPE_CHECKING:
    from tcomp.dsl.ast import Module
    from tcomp.model.request import StepRequest
    from tcomp.runtime.device import Device


@dataclass(frozen=True)
class StepKey:
    """`name` is a hash of all that a step depends on; `files` are the texts among that, by their shown names."""

    name: str
    files: frozenset[str]


@dataclass(frozen=True)
class KeptStep:
    """A step, its model's name in the text, and how many op instances had values from a lockfile."""

    step: Step
    model: str
    tuned: int


def step_key(file: Path, lock: Path | None, request: StepRequest, device: Device) -> StepKey | None:
    """The key of the step that `file` gives with a lockfile for a device's machine and threads; None where a file
    cannot be read."""
    try:
        texts = source_texts(file)
        chosen = (str(lock), read_small(lock)) if lock is not None else None
    except (UserError, OSError, ValueError):
        return None
    asked = replace(request, model="", lock="")  # by their content, whatever they are called
    text = content_text((texts, chosen, asked, device.machine, device.threads, compiler_digest(), sys.version))
    return StepKey(hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32], frozenset(texts))


def load_step(key: StepKey) -> KeptStep | None:
    """The step kept under a key; None where there is none, or a damaged one."""
    folder = _folder()
    body = folder.load(key.name) if folder is not None else None
    if body is None:
        return None
    try:
        found = _Unpickler(io.BytesIO(body)).load()
    except Exception:  # whatever a pickle of another making does: it counts as missing
        return None
    return found if isinstance(found, KeptStep) else None


def keep_step(key: StepKey, module: Module, kept: KeptStep) -> None:
    """Keep the step of a module, where the cache folder can be written and the key knows all that was read."""
    folder = _folder()
    if folder is not None and key.files.issuperset(module.sources):
        folder.store(key.name, pickle.dumps(kept, protocol=5))


class _Unpickler(pickle.Unpickler):
    """Makes objects of tcomp's classes only."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] != "tcomp" or "." in name:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a step")
        found = super().find_class(module, name)
        if not isinstance(found, type) or found.__module__ != module:  # another library's, imported there
            raise pickle.UnpicklingError(f"{module}.{name} is no class of tcomp")
        return found


def _folder() -> ContentCache | None:
    with suppress(UserError):  # a command that must keep something says that it cannot
        return ContentCache(cache_folder("steps"), kind="step-1", suffix=".step", what="built steps")
    return None


@cache
def compiler_digest() -> str:
    """A hash of the sources that make a step: the language, the compiler, the choice of tuned values."""
    digest = hashlib.sha256()
    for path, name in source_paths().items():
        with open(path, "rb", buffering=0) as f:  # a start waits for this: no more than it takes
            digest.update(f"{name}\0".encode() + f.read() + b"\0")
    return digest.hexdigest()


def source_paths() -> dict[str, str]:
    """The files of those sources, each with its name in its package, in a fixed order."""
    folders = [folder for package in (tcomp.dsl, tcomp, tcomp.autotune) for folder in package.__path__]
    return {path: path.removeprefix(folder) for folder in folders for path in sorted(_sources(folder))}


def _sources(folder: str) -> Iterator[str]:
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _sources(entry.path)
        elif entry.name.endswith((".py", ".lark")):
            yield entry.path
