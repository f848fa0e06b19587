"""From a path to a checked module: parse the file, follow its imports, check everything together."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tcomp.dsl.ast import Import, Model, Module, Optimizer, Schedule, Source
from tcomp.dsl.check import check
from tcomp.dsl.errors import TcError
from tcomp.dsl.files import first_of, import_places, library as library, read, shown
from tcomp.dsl.hints import did_you_mean
from tcomp.dsl.parse import parse


def load(path: str | os.PathLike[str], precision: str | None = None) -> Module:
    """The checked module of a .tc file. TcError for bad text, UserError when the file cannot be read.

    With a precision ("": that of the file's model) only what that one needs is read and checked, which is faster.
    Files that have not changed since they were last loaded give the same Module again.
    """
    path = Path(path)
    root = _parsed(read(path), shown(path))
    if precision == "":
        precision = _own_precision(root, path.resolve())
    return _checked(_follow(root, path.resolve(), precision), precision)


def load_text(text: str, name: str = "<text>") -> Module:
    """The checked module of a text; its imports are looked up in the current folder and in the library. Texts that were
    loaded before, and import what they did then, give the same Module again."""
    return _checked(_follow(_parsed_text(text, name), Path.cwd() / "<text>"), None, _modules_of_texts)


def _own_precision(root: Source, path: Path) -> str:
    """The precision of the file's model, which may be one that it gives another optimizer."""
    sources: Sequence[Source] = (root,)
    if not any(isinstance(item, Model) for item in root.items) and any(isinstance(o, Optimizer) for o in root.items):
        sources = _follow(root, path)
    return next((m.precision for source in sources for m in source.items if isinstance(m, Model)), "f32")


_parsed = lru_cache(maxsize=128)(parse)
_KEPT = 8
_parsed_text = lru_cache(maxsize=_KEPT)(parse)
_Modules = OrderedDict[object, Module]  # by the names and texts of their files, the last used at the end
_modules: _Modules = OrderedDict()
_modules_of_texts: _Modules = OrderedDict()  # (of which there may be many, that nobody asks for again)


def _checked(sources: tuple[Source, ...], precision: str | None, kept: _Modules = _modules) -> Module:
    key = (tuple((s.file, s.text) for s in sources), precision)
    module = kept.pop(key, None) or check(sources, precision)
    kept[key] = module
    while len(kept) > _KEPT:
        kept.popitem(last=False)
    return module


def schedule_for(module: Module, op_name: str, target_chain: Sequence[str]) -> Schedule | None:
    """The op's schedule for the first of the targets that has one (most specific first), or None."""
    for target in target_chain:
        schedule = module.schedules.get((op_name, target))
        if schedule is not None:
            return schedule
    return None


def _follow(root: Source, root_path: Path, precision: str | None = None) -> tuple[Source, ...]:
    """Depth first, every file once (two files may import each other); with a precision, without the imports that are
    under another."""
    seen: set[Path] = {root_path}
    out: list[Source] = []

    def visit(source: Source, path: Path) -> None:
        for item in source.items:
            if isinstance(item, Import) and (precision is None or item.precision in ("", precision)):
                found = _find(item, source, path.parent, root_path.parent)
                if found not in seen:
                    seen.add(found)
                    visit(_parsed(read(found), shown(found)), found)
        out.append(source)

    visit(root, root_path)
    return tuple(out)


def _find(item: Import, source: Source, *folders: Path) -> Path:
    relative, places = import_places(item.path, *folders)
    found = first_of(relative, places)
    if found is not None:
        return found
    known = [
        ".".join(f.relative_to(folder).with_suffix("").parts)
        for folder in places
        for f in (*folder.glob("*.tc"), *folder.glob("*/*.tc"))
    ]
    raise TcError(
        f"there is no file {relative.as_posix()} to import",
        item.span,
        did_you_mean(item.path, sorted(set(known)), "file"),
        tuple(f"looked in {shown(folder)}" for folder in places),
        text=source.text,
    )
