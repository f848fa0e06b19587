"""Every refusal that a user can meet says what to do about it: a UserError has a hint, a TcError one too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = {"UserError": 1, "TcError": 2, "CudaError": 2}
"""Kind of error -> position of its hint."""
BARE = {
    "tcomp/oracle.py", "tcomp/points.py",  # what the checks of a text keep from happening
    "runtime/cuda/executor.py",  # caught where it is raised
}  # fmt: skip
DRIVER = ROOT / "runtime/vgpu/shim"
"""Errors there are a driver's numbers."""


def without_hint(path: Path) -> Iterator[int]:
    """The lines of errors that are made without a remedy."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(ast.Name(kind), arguments, keywords) if kind in PLACES:
                if len(arguments) <= PLACES[kind] and all(k.arg != "hint" for k in keywords):
                    yield node.lineno


def test_every_error_has_a_remedy() -> None:
    found = []
    for folder in ("dsl", "tcomp", "autotune", "runtime"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name not in BARE and DRIVER not in path.parents and "Error(" in path.read_text():
                found += [f"{name}:{line}" for line in without_hint(path)]
    assert not found
