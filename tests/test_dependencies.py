"""The layers of docs/design.md depend on each other one way: dsl, the compiler's, runtime, autotune, tcomp.cli."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tcomp.cli.kept_steps import source_paths
from tcomp.codegen.cache import source_files
from tcomp.codegen.cpu import compiled
from tcomp.runtime.cuda import kernels

ROOT = Path(__file__).resolve().parent.parent
MEANING = ("monoid", "numeric", "oracle", "points")
COMPILER = {"dsl", "meaning", "machine", "grad", "ir", "instructions", "schedule", "codegen", "model"}
MAY_IMPORT = {
    "dsl": set[str](),
    "meaning": {"dsl"},
    "machine": {"dsl"},
    "grad": {"dsl", "meaning"},
    "ir": {"dsl"},
    "instructions": {"dsl", "machine", "ir"},
    "schedule": {"dsl", "meaning", "machine", "grad", "ir", "instructions"},
    "codegen": {"dsl", "machine", "ir", "instructions"},
    "model": {"dsl", "meaning", "machine", "grad", "ir", "schedule"},
    "runtime": COMPILER,
    "autotune": COMPILER | {"runtime"},
    "cli": COMPILER | {"runtime", "autotune"},
}
"""The layers of docs/design.md, and what each may import beside itself."""
SHARED = {"tcomp.errors", "tcomp.amounts", "tcomp.interrupts", "tcomp.models"}
"""Importable from everywhere: they import nothing themselves."""


def layer(module: str) -> str:
    """The layer of a module by its full name: tcomp.dsl.ast is in dsl, tcomp.ir.tile in ir, tcomp.oracle in meaning."""
    part = module.split(".")[1] if "." in module else "cli"
    return {"__main__": "cli", **dict.fromkeys(MEANING, "meaning")}.get(part, part)


@cache
def modules() -> dict[str, Path]:
    """All modules of the package by their full names."""
    found = {}
    for folder, prefix in [
        ("dsl", "tcomp.dsl"),
        ("tcomp", "tcomp"),
        ("autotune", "tcomp.autotune"),
        ("runtime", "tcomp.runtime"),
    ]:
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([prefix, *parts]).removesuffix(".__init__")] = path
    return found


@cache
def import_statements(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """A file's, wherever in it."""
    return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in import_statements(path):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif node.module:
            names |= {node.module} | {name for a in node.names if (name := f"{node.module}.{a.name}") in modules()}
    return {n for n in names if n.startswith("tcomp.")} - SHARED


def test_imports_point_one_way() -> None:
    shared = [m for m in modules() if m == "tcomp" or m in SHARED]
    assert len(shared) == 4 and not any(imports(modules()[m]) for m in shared)
    wrong = [
        f"{module} ({layer(module)}) imports {name}"
        for module, path in sorted(modules().items())
        if module not in shared
        for name in sorted(imports(path))
        if layer(name) not in MAY_IMPORT[layer(module)] | {layer(module)}
    ]
    assert not wrong, "\n".join(wrong)


def test_targets_share_code_in_one_place() -> None:
    """Code for GPUs takes nothing from that for CPUs, and their common part nothing from either."""
    across = {
        (module, name)
        for module, path in modules().items()
        for name in imports(path)
        for a, b in [("llvm", "cpu"), ("llvm", "nvptx"), ("nvptx", "cpu"), ("cpu", "nvptx")]
        if module.startswith(f"tcomp.codegen.{a}") and name.startswith(f"tcomp.codegen.{b}")
    }
    assert not across


@pytest.mark.parametrize(
    ("generator", "sources"),
    [("cpu.compile", compiled.SOURCES), ("nvptx.compile", kernels.SOURCES)],
    ids=["cpu", "gpu"],
)
def test_kept_code_is_known_by_all_that_makes_it(generator: str, sources: tuple[str, ...]) -> None:
    """Keys read every file that the generator's imports lead to, but for those that only word errors."""
    known = {path.resolve() for path in source_files(*sources).values()}
    used: set[str] = set()
    new = {f"tcomp.codegen.{generator}"}
    while new:
        used |= new
        new = {name for module in new for name in imports(modules()[module])} - used
    assert len(used) > 40
    assert {m for m in used if modules()[m] not in known} <= {"tcomp.dsl", "tcomp.dsl.errors", "tcomp.dsl.hints"}


def test_kept_steps_are_known_by_all_that_makes_them() -> None:
    read = set(source_paths())
    assert not [m for m, path in modules().items() if layer(m) != "runtime" and str(path) not in read]


def test_no_module_imports_by_a_bare_folder_name() -> None:
    """`import dsl` would work here and nowhere else: only tcomp.dsl is installed."""
    for name, path in modules().items():
        for node in import_statements(path):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} has a relative import"
                assert (node.module or "").split(".")[0] not in ("dsl", "runtime", "autotune", "models"), name


def test_the_compiler_and_the_runtime_start_without_torch(tmp_path: Path) -> None:
    """And without what only some commands need: start-up time is paid on every run."""
    for_some = ("png", "bench.torch_base", "bench.torch_gpt2", "bench.torch_llama")
    names = [m for m in modules() if layer(m) in COMPILER | {"runtime"} and not any(n in m for n in for_some)]
    program = "import importlib, sys\n"
    program += f"for name in {sorted(names)!r}: importlib.import_module(name)\n"
    program += "print(sorted({'torch', 'matplotlib', 'optuna'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == "[]"
