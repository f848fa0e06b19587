"""`tcomp doctor`: what this machine offers, and whether tcomp can work on it."""

from __future__ import annotations

import platform


def doctor() -> None:
    """Print versions, CPU features, caches and folders, for a bug report or a look before a long run."""
    from importlib.metadata import PackageNotFoundError, version

    import tcomp
    from tcomp.cli.common import memory_here
    from tcomp.machine.cpu import detect
    from tcomp.model.report import bytes_text
    from tcomp.runtime.cache import cache_folder

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "missing"

    machine = detect()
    cache = cache_folder()
    files = [p for p in cache.rglob("*") if p.is_file()]
    free = memory_here()
    rows = {
        "tcomp": tcomp.__version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "libraries": ", ".join(f"{n} {installed(n)}" for n in ("llvmlite", "numpy", "lark", "safetensors", "typer")),
        "cpu level": f"{machine.name}, {machine.lanes_f32} f32 lanes, {machine.vector_registers} registers",
        "cpu features": " ".join(machine.features) or "none used",
        "cpu caches": f"L1 {bytes_text(machine.l1_bytes)}, L2 {bytes_text(machine.l2_bytes)}, "
        f"L3 {bytes_text(machine.l3_bytes)}",
        "cores": str(machine.cores),
        "free memory": bytes_text(free) if free else "unknown",
        "cache folder": f"{cache} ({len(files)} files, {bytes_text(sum(p.stat().st_size for p in files))})",
    }
    for name, value in rows.items():
        print(f"{name:14}{value}")
