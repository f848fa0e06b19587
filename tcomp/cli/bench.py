"""`tcomp bench`: a model's training step beside the same model in PyTorch, in one run."""

from __future__ import annotations

import compileall
import json
import shlex
import signal
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import tcomp
import tcomp.autotune
import tcomp.dsl
import tcomp.runtime
from tcomp.cli import common, limits, options
from tcomp.cli.command import Options, command
from tcomp.cli.display import spinner
from tcomp.cli.limits import Range
from tcomp.cli.options import MANY, DeviceOptions, StepOptions
from tcomp.errors import UserError

ENTRY = "tcomp.cli.bench_program"


@dataclass(frozen=True)
class MeasuredStep(StepOptions):
    """A step that PyTorch does as well: of one micro-batch, by kernels that are the same in every run."""

    batch: options.Batch = 4
    length: options.Length = 64
    precision: Annotated[str, typer.Option("--dtype", help="f32, or bf16 (in PyTorch: autocast).")] = "f32"
    accumulation: int = 1
    deterministic: bool = True

    def __post_init__(self) -> None:
        from tcomp.runtime.bench.measure import TOLERANCE

        if self.precision not in TOLERANCE:
            raise UserError(f"--dtype {self.precision}: not one that both compute in", f"give {' or '.join(TOLERANCE)}")
        super().__post_init__()


@dataclass(frozen=True)
class BenchOptions(Options):
    """What to measure beside it, how long, and where the outcome goes."""

    against: Annotated[
        str,
        typer.Option(help="Of PyTorch: eager, compile, eager-heap, compile-heap; programs of your own: FILE.py; none."),
    ] = "eager,compile"
    rounds: Annotated[int, typer.Option(help="Turns of each program."), Range(1, 10_000)] = 6
    steps: Annotated[int, typer.Option(help="Steps a turn; 0: as many as make 1280 tokens."), Range(0, MANY)] = 0
    tolerance: Annotated[
        float | None, typer.Option(help="Of the losses, relative [default: 1e-4; bf16 1e-2]."), options.TOLERANCES
    ] = None
    json: options.Json = None
    html: Annotated[Path | None, typer.Option(help="Write a report with plots, one HTML file.")] = None
    png: Annotated[Path | None, typer.Option(help="Draw the plots into this file.")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        limits.check_picture(self.png)
        limits.check_writable(self.json, self.html, self.png)

    @property
    def others(self) -> list[str]:
        """The programs beside tcomp. UserError for a list that is none."""
        from tcomp.runtime.bench.own_program import SUFFIX, check_file, label
        from tcomp.runtime.bench.program import PROGRAMS

        names = [n.strip() for n in self.against.split(",") if n.strip()]
        if names == ["none"]:
            return []
        for name in names:
            if name.endswith(SUFFIX):
                check_file(Path(name))
            elif name not in PROGRAMS[1:]:
                known = ", ".join(PROGRAMS[1:])
                raise UserError(
                    f"--against {name}: there is no such program",
                    f"give some of {known}, or a file with one (docs/comparison.md); or none",
                )
        if not names:
            raise UserError(
                f"--against '{self.against}': not a list of programs", "write for example --against eager,compile"
            )
        labels = ["tcomp", *map(label, names)]
        if twice := next((x for x in labels if labels.count(x) > 1), ""):
            raise UserError(
                f"--against {self.against}: two of the programs are called '{twice}'",
                "name each once, and files otherwise than each other, tcomp and PyTorch's",
            )
        return names


@command
def bench(step: MeasuredStep, where: DeviceOptions, own: BenchOptions) -> None:
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

    - `tcomp bench gpt2 --config 124M --against benchmarks/peers/jax_gpt2.py`
    """
    from tcomp.runtime.bench import report
    from tcomp.runtime.bench.build import workload_of, write_folder
    from tcomp.runtime.bench.counterparts import check_counterpart
    from tcomp.runtime.bench.measure import Contest, compare
    from tcomp.runtime.bench.program import PROGRAMS
    from tcomp.runtime.train import check_trainable

    others, request = own.others, step.request()
    module = common.load_module(request.model)
    if any(name in PROGRAMS for name in others):
        model = common.only_model(module, request.model)
        groups = model.optimizer.groups if model.optimizer is not None else ()
        check_counterpart(model.name, next((f"group '{g.name}' by {g.op}" for g in groups if g.op), ""))
    with _status("building"):
        built = common.build_step(request, where.open(), module=module)
    check_trainable(built.step)
    gpu = (where.gpu or limits.DEFAULT_GPU) if where.kind == "virtual" else ""
    threads = built.threads if where.kind == "cpu" else limits.cores()
    workload = workload_of(built.step, built.request, where.device, gpu, threads)
    signal.signal(signal.SIGTERM, _ended)
    write_byte_code()
    with tempfile.TemporaryDirectory(prefix="tcomp-bench-", ignore_cleanup_errors=True) as place:
        with _status("writing weights and batches"):
            write_folder(workload, built.step, Path(place))
        contest = Contest(["tcomp", *others], ENTRY, own.rounds, own.steps, own.tolerance)
        comparison = compare(workload, Path(place), contest, common.note, lambda: _ceilings(built))
    print(report.markdown(comparison), end="")
    command = shlex.join(["tcomp", *sys.argv[1:]])
    if own.json is not None:
        figures = {"command": command, **_machine(), **report.as_json(comparison)}
        common.write_text(own.json, json.dumps(figures, indent=1) + "\n")
    if own.html is not None:
        from tcomp.runtime.bench.report_html import page

        common.write_text(own.html, page(comparison, command))
    if own.png is not None:
        from tcomp.runtime.bench.report_png import draw

        try:
            draw(comparison, own.png)
        except OSError as e:
            raise UserError(
                f"{own.png}: cannot draw there: {e.strerror or e}",
                "name another place, or make room and permission there",
            ) from e


def _ended(number: int, _: object) -> None:
    """Told to end: the programs are closed and the weights' folder is removed on the way out."""
    sys.exit(128 + number)


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
