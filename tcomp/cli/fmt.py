"""`tcomp fmt`: `.tc` files in the one format."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tcomp.errors import UserError


def fmt(
    files: Annotated[list[Path], typer.Argument(help="Files or folders; - is standard input.")],
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit 1 when a file would.")] = False,
) -> None:
    """Rewrite files in tcomp's format. Comments stay where they are; formatting twice changes nothing more.

    Examples:

    - `tcomp fmt models/`

    - `tcomp fmt --check mine.tc`

    - `tcomp fmt - < mine.tc`
    """
    from tcomp.dsl.format import format_text
    from tcomp.runtime.cache import write_atomic
    from tcomp.runtime.documents import read_small

    changed = []
    for path in _expand(files):
        try:
            text = sys.stdin.read() if str(path) == "-" else read_small(path).replace("\r\n", "\n")
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(
                f"{path}: cannot read it: {getattr(e, 'strerror', None) or e}",
                "name files of UTF-8 text that you may read, folders, or - for standard input",
            ) from e
        formatted = format_text(text, str(path))
        if str(path) == "-" and not check:
            sys.stdout.write(formatted)
        elif formatted != text:
            changed.append(path)
            if not check:
                try:
                    # a link stays one: the file that it leads to is written
                    write_atomic(path.resolve(), lambda out, data=formatted.encode(): out.write(data))  # type: ignore[misc]
                except OSError as e:
                    raise UserError(
                        f"{path}: cannot write it: {e.strerror or e}",
                        "make room and permission there, or only look: --check",
                    ) from e
    for path in changed:
        print(f"{'would change' if check else 'formatted'} {path}")
    if check and changed:
        raise typer.Exit(1)


def _expand(files: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in files:
        if path.is_dir():
            inside = sorted(path.rglob("*.tc"))
            if not inside:
                raise UserError(f"{path}: no .tc files in this folder", "name another folder, or a file")
            found += inside
        else:
            found.append(path)
    return found
