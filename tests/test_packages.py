"""What is installed is all there is: pyproject.toml lists every package, and the data files that they read."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = {folder: name for name, folder in SETTINGS["package-dir"].items()}


def folders() -> dict[str, Path]:
    """Each package's folder, by the package's name."""
    found = {}
    for top, name in FOLDERS.items():
        for file in (ROOT / top).rglob("__init__.py"):
            inner = file.parent.relative_to(ROOT / top).parts
            found[".".join([name, *inner])] = file.parent
    return found


def test_every_package_is_listed() -> None:
    assert sorted(SETTINGS["packages"]) == sorted(folders())


def test_every_data_file_is_listed() -> None:
    for name, folder in folders().items():
        for file in folder.rglob("*.*"):
            nearest = next(p for p in file.parents if (p / "__init__.py").exists())
            if nearest != folder or file.suffix in (".py", ".pyc", ".so") or file.is_dir():
                continue
            patterns = SETTINGS["package-data"].get(name, [])
            assert any(fnmatch(str(file.relative_to(folder)), p) for p in patterns), (name, file.name)
