"""`tcomp bench`: a model's training step beside the same model in PyTorch, in one run."""

from __future__ import annotations

import compileall
import json
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

import tcomp
import tcomp.autotune
import tcomp.dsl
import tcomp.runtime
from tcomp.cli import common, limits
from tcomp.cli.display import spinner
from tcomp.errors import UserError

ENTRY = "tcomp.cli.bench_program"


def bench(
    file: Annotated[str, typer.Argument(metavar="MODEL", help="A .tc file, or one of tcomp's own models.")] = "gpt2",
    against: Annotated[
        str, typer.Option(help="Of PyTorch: eager, compile, eager-heap, compile-heap; or none.")
    ] = "eager,compile",
    config: Annotated[str | None, typer.Option(help="The model's configuration.")] = None,
    batch: Annotated[int, typer.Option("--batch", "-B", help="Sequences per step.")] = 4,
    length: Annotated[int, typer.Option("--length", "-T", help="Tokens per sequence.")] = 64,
    dim: Annotated[list[str] | None, typer.Option(help="A configuration value: --dim L=2.")] = None,
    dtype: Annotated[str, typer.Option(help="f32, or bf16 (in PyTorch: autocast).")] = "f32",
    device: Annotated[str, typer.Option(help=common.DEVICE_HELP)] = "cpu",
    gpu: Annotated[str, typer.Option(help=common.GPU_HELP)] = "",
    threads: Annotated[int, typer.Option(help="Cores for every program; 0: all.")] = 0,
    memory: Annotated[str | None, typer.Option(help=f"For tcomp. {common.MEMORY_HELP}")] = None,
    lock: Annotated[str, typer.Option(help=common.LOCK_HELP)] = "",
    rounds: Annotated[int, typer.Option(help="Turns of each program.")] = 6,
    steps: Annotated[int, typer.Option(help="Steps a turn; 0: as many as make 1280 tokens.")] = 0,
    tolerance: Annotated[float | None, typer.Option(help="Of the losses, relative [default: 1e-4; bf16 1e-2].")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write everything measured into this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report with plots, one HTML file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the plots into this file.")] = None,
) -> None:
    """Measure a training step beside PyTorch's, eager and through torch.compile.

    All programs get the same starting weights and batches and do the whole step: forward, backward, clip, AdamW, loss
    read back. Each is a process of its own, started with empty caches and again with full ones. Their losses must
    agree, or nothing is compared. Then they take turns, the others stopped meanwhile. Leave the machine alone while
    this runs: the report says how much of it others took.

    The memory given is the process's own greatest, without compiler processes that it may have started.

    Examples:

    - `tcomp bench gpt2 --config 124M -B 4 -T 64 --html report.html`

    - `tcomp bench gpt2 --config 124M --against compile --dtype bf16 --json figures.json`

    - `tcomp bench gpt2 --config 124M -B 16 -T 1024 --device cuda`
    """
    from tcomp.runtime.bench import report
    from tcomp.runtime.bench.build import workload_of, write_folder
    from tcomp.runtime.bench.counterparts import check_counterpart
    from tcomp.runtime.bench.measure import TOLERANCE, compare
    from tcomp.runtime.train import check_inputs

    others = _programs(against)
    numbers = limits.parse_dims(dim or [])
    limits.check_numbers(batch=batch, length=length, threads=threads, rounds=rounds, steps=steps or 1)
    limits.check_device(device, gpu)
    if tolerance is not None:
        limits.check_numbers(tolerance=tolerance)
    limits.check_writable(as_json, html, png)
    found = common.find_file(file)
    module = common.load_module(file)
    model = common.only_model(module, file)
    if others:
        check_counterpart(model.name)
    if dtype not in TOLERANCE:
        raise UserError(f"--dtype {dtype}: not one that both compute in", f"give {' or '.join(TOLERANCE)}")
    kind = limits.split_device(device)[0]
    with _status("building"):
        built = common.build_step(
            file, config, batch, length, dims=numbers, precision=dtype, threads=threads, module=module,
            device=common.device_for(device, gpu=gpu, threads=threads), memory=memory, lock=lock,
        )  # fmt: skip
    step = built.step
    check_inputs(step)
    workload = workload_of(
        step,
        found,
        numbers,
        device,
        (gpu or limits.DEFAULT_GPU) if kind == "virtual" else "",
        built.threads if kind == "cpu" else limits.cores(),
        memory or "",
        str(built.lock.resolve()) if built.lock else "none",
    )
    signal.signal(signal.SIGTERM, _ended)
    write_byte_code()
    with tempfile.TemporaryDirectory(prefix="tcomp-bench-", ignore_cleanup_errors=True) as place:
        with _status("writing weights and batches"):
            write_folder(workload, step, Path(place))
        programs = ["tcomp", *others]
        comparison = compare(
            workload, Path(place), programs, ENTRY, rounds, steps, _note, lambda: _ceilings(built), tolerance
        )
    print(report.markdown(comparison), end="")
    command = shlex.join(["tcomp", *sys.argv[1:]])
    if as_json is not None:
        figures = {"command": command, **_machine(), **report.as_json(comparison)}
        common.write_text(as_json, json.dumps(figures, indent=1) + "\n")
    if html is not None:
        from tcomp.runtime.bench.report_html import page

        common.write_text(html, page(comparison, command))
    if png is not None:
        from tcomp.runtime.bench.report_png import draw

        try:
            draw(comparison, png)
        except (OSError, ValueError) as e:
            raise UserError(f"{png}: cannot draw there: {e}") from e


def _ended(number: int, _: object) -> None:
    """Told to end: the programs are closed and the weights' folder is removed on the way out."""
    sys.exit(128 + number)


def _programs(against: str) -> list[str]:
    from tcomp.runtime.bench.program import PROGRAMS

    names = [n.strip() for n in against.split(",") if n.strip()]
    if names == ["none"]:
        return []
    for name in names:
        if name not in PROGRAMS[1:]:
            known = ", ".join(PROGRAMS[1:])
            raise UserError(f"--against {name}: there is no such program", f"give some of {known}; or none")
    if not names or len(set(names)) < len(names):
        raise UserError(f"--against '{against}': not a list of programs", "write for example --against eager,compile")
    return names


def _note(text: str) -> None:
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def write_byte_code() -> None:
    """tcomp's modules as byte code beside their sources, as an installer leaves them (and has left PyTorch's): a cold
    start is one without what a program keeps for itself."""
    for package in (tcomp, tcomp.dsl, tcomp.autotune, tcomp.runtime):
        for folder in package.__path__:
            compileall.compile_dir(folder, quiet=2)


def _status(text: str) -> Any:
    from rich.console import Console

    return spinner(Console(stderr=True), text)


def _ceilings(built: common.Built) -> list[dict[str, Any]]:
    """Arithmetic and memory peaks: measured on a CPU, as published on a GPU."""
    from dataclasses import asdict

    from tcomp.machine.gpu import GpuMachine
    from tcomp.runtime.cpu.ceilings import Ceiling, bandwidth, compute_peaks

    m = built.machine
    if isinstance(m, GpuMachine):
        rates = (("fma f32, published", "GFLOP/s", m.f32_flops), ("memory, published", "GB/s", m.memory_bandwidth))
        return [asdict(Ceiling(name, 1, unit, *(value / 1e9,) * 3)) for name, unit, value in rates]
    return [asdict(c) for c in (*compute_peaks(built.threads, m), bandwidth("triad", built.threads))]


def _machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in ("tcomp", "torch", "llvmlite", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = ""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "processors": limits.cores(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }
