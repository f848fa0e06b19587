"""The files that `.tc` text is read from, and how imports are found.

`import ops.linear` is the file ops/linear.tc beside the importing file, else beside the file that was
loaded first, else in the library that comes with tcomp.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import tcomp.models
from tcomp.errors import UserError

_IMPORT = re.compile(r"^[ \t]*import[ \t]+([\w.]+)", re.MULTILINE)


def library() -> Path:
    """The folder of the .tc files that come with tcomp."""
    return Path(next(iter(tcomp.models.__path__)))


def source_texts(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts that loading a file reads, and perhaps more, by their shown names: what a cache of anything made from
    them is keyed by. Nothing is parsed: every line that looks like an import counts, and one that leads nowhere does
    not. UserError when a file cannot be read."""
    root = Path(path)
    texts: dict[str, str] = {}
    waiting = [root]
    while waiting:
        file = waiting.pop()
        if (name := shown(file)) in texts:
            continue
        texts[name] = read(file)
        for imported in _IMPORT.findall(texts[name]):
            found = first_of(*import_places(imported, file.resolve().parent, root.resolve().parent))
            if found is not None:
                waiting.append(found)
    return texts


def import_places(imported: str, *folders: Path) -> tuple[Path, list[Path]]:
    """`a.b` as a relative path, and where to look for it: in the folders given, then in the library."""
    return Path(*imported.split(".")).with_suffix(".tc"), [*dict.fromkeys(folders), library().resolve()]


def first_of(relative: Path, folders: Sequence[Path]) -> Path | None:
    """The path in the first of the folders that has it."""
    return next(((f / relative).resolve() for f in folders if (f / relative).is_file()), None)


def read(path: Path) -> str:
    """The file's text; UserError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"there is no file {shown(path)}", "give the path of a .tc file") from None
    except IsADirectoryError:
        raise UserError(f"{shown(path)} is a folder", "give the path of a .tc file in it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)} is not UTF-8 text ({error})", "a .tc file is plain text") from None
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read: {error.strerror}", "check its permissions") from None


def shown(path: Path) -> str:
    """The path as messages show it: relative where it lies below the current folder."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix() or "."
    except ValueError:
        return str(path)
