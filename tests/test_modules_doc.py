"""docs/modules.md names every module of the package once, with the first paragraph of its docstring.

TCOMP_UPDATE_GOLDENS=1 writes it anew: a new module is put at the end of its folder's section, to be moved to its place.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "modules.md"
LINE = re.compile(r"- `(\w+)\.py`: ")
NAMED = re.compile(r"`([\w./]+\.(?:py|lark))`")


def line_of(file: Path) -> str:
    """How the page tells of a module."""
    about = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n\n")[0]
    assert about, f"{file.relative_to(ROOT)} does not say what it is about"
    return f"- `{file.name}`: {' '.join(about.split())}"


def rewritten(section: str) -> str:
    """A folder's section (its name comes first) as it should be, in the order that it has."""
    folder = ROOT / section.split("\n", 1)[0]
    missing = {f.stem: line_of(f) for f in folder.glob("*.py") if f.name != "__init__.py"}
    lines = []
    for line in section.rstrip().split("\n"):
        named = LINE.match(line)
        if named is None:
            lines.append(line)
        elif named[1] in missing:
            lines.append(missing.pop(named[1]))
    return "\n".join([*lines, *(missing[n] for n in sorted(missing))])


def test_files_that_modules_name_are_where_they_say() -> None:
    """In the module's own folder, or named with the folder that they are in."""
    files = [
        f"/{p.relative_to(ROOT)}" for top in ("dsl", "tcomp", "autotune", "runtime") for p in (ROOT / top).rglob("*.*")
    ]
    for file in (ROOT / f[1:] for f in files if f.endswith(".py")):
        for name in NAMED.findall(file.read_text()):
            there = [f for f in files if "/" in name and f.endswith(f"/{name}")]
            assert (file.parent / name).exists() or (ROOT / name).exists() or there, (file, name)


def test_every_module_is_named_as_it_names_itself() -> None:
    head, *sections = PAGE.read_text().split("\n## ")
    folders = {f.parent for top in ("dsl", "tcomp", "autotune", "runtime") for f in (ROOT / top).rglob("__init__.py")}
    assert {s.split("\n", 1)[0] for s in sections} == {str(f.relative_to(ROOT)) for f in folders}
    wanted = "\n\n## ".join([head.rstrip(), *map(rewritten, sections)]) + "\n"
    if os.environ.get("TCOMP_UPDATE_GOLDENS"):
        PAGE.write_text(wanted)
    assert PAGE.read_text() == wanted, "docs/modules.md is behind: TCOMP_UPDATE_GOLDENS=1 writes it anew; read it"
