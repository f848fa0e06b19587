"""`tcomp tune`: search the open parameters of a model's schedules, and keep the choices in a lockfile."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tcomp.cli import common, limits
from tcomp.cli.display import displays
from tcomp.errors import UserError

if TYPE_CHECKING:
    from tcomp.autotune.backend import Backend
    from tcomp.autotune.instances import Instance, StepShape
    from tcomp.autotune.judge import Judge
    from tcomp.autotune.lockfile import Lock
    from tcomp.autotune.search import Search
    from tcomp.autotune.step_final import StepFinal
    from tcomp.dsl.ast import Module
    from tcomp.machine.gpu import GpuMachine
    from tcomp.schedule.family import Machine


def tune(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[report] [FILE]", help="A .tc file, or one of tcomp's own models.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="The model's configuration.")] = None,
    batch: Annotated[int, typer.Option("--batch", "-B", help="Sequences per micro-batch.")] = 8,
    length: Annotated[int, typer.Option("--length", "-T", help="Tokens per sequence.")] = 128,
    accumulation: Annotated[int, typer.Option(help="Micro-batches per step.")] = 1,
    dim: Annotated[list[str] | None, typer.Option(help="A configuration value: --dim L=2.")] = None,
    precision: Annotated[str, typer.Option(help=common.PRECISION_HELP)] = "",
    device: Annotated[
        str, typer.Option(help="Where candidates run: cpu, or cuda (cuda:1, cuda:NAME) [default: cpu].")
    ] = "cpu",
    cpu: Annotated[bool, typer.Option("--cpu", help="This computer's processors, as by default.")] = False,
    gpu: Annotated[
        str,
        typer.Option(help="The GPU to tune for: by running on it if it is here, else by a static model (predicted)."),
    ] = "",
    predicted: Annotated[
        bool, typer.Option("--predicted", help="With --gpu: by the static model even where there is such a GPU.")
    ] = False,
    threads: Annotated[int, typer.Option(help="Cores to tune for; 0: all.")] = 0,
    budget: Annotated[str | None, typer.Option(help="Stop after this long: 90s, 20m, 1h30m.")] = None,
    trials: Annotated[int | None, typer.Option(help="Trials per kernel, those of earlier runs included.")] = None,
    until_within: Annotated[
        str | None, typer.Option(help="Leave a kernel when 8 trials gained less than this: 2%.")
    ] = None,
    ops: Annotated[list[str] | None, typer.Option(help="Only ops of this name (* and ? match); repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Of the search and of the inputs.")] = 0,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Use kept trials, or forget them.")] = True,
    lock: Annotated[str | None, typer.Option(help="The lockfile [default: MODEL.MACHINE.lock in this folder].")] = None,
    storage: Annotated[Path | None, typer.Option(help="Where trials are kept [default: the cache folder].")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only say whether the lockfile holds; exit 1 if not.")] = False,
    ask: Annotated[bool, typer.Option("--ask", help="Print what there is to tune, a JSON object per kernel.")] = False,
    tell: Annotated[str, typer.Option(help="Judge proposals from this file of JSON lines; - is the input.")] = "",
    out: Annotated[Path | None, typer.Option(help="report: the folder of its files.")] = None,
) -> None:
    """Find the best values of the schedules' `tune` lines at a model's real shapes.

    Every candidate runs in a process of its own and must give the oracle's result before its time counts. Trials are
    kept as they finish, so a search that is stopped or killed goes on where it was when started again; several may
    run at once. The outcome is a lockfile that `tcomp build` and `tcomp train` use: commit it.

    With --gpu no GPU is needed: where the machine has none of that name nothing is timed, candidates are assembled,
    ranked by a static model, and run on the virtual GPU for correctness. What comes of it is labelled predicted
    everywhere.

    Examples:

    - `tcomp tune gpt2 --config 124M -B 4 -T 64 --budget 20m`

    - `tcomp tune gpt2 --ops linear --ops 'linear*.backward' --trials 60`

    - `tcomp tune gpt2 --gpu h100 --trials 20`

    - `tcomp tune --check` in CI; `tcomp tune report gpt2 --out tuning/`
    """
    from tcomp.autotune import search, storage as trials_storage
    from tcomp.autotune.instances import StepShape
    from tcomp.autotune.plan import Plan, summary_lines
    from tcomp.runtime.cache import cache_folder

    report, file = _what(words or [])
    limits.check_precision(precision)
    limits.check_numbers(batch=batch, length=length, accumulation=accumulation, threads=threads, seed=seed)
    if trials is not None:
        limits.check_numbers(trials=trials)
    seconds = parse_duration(budget) if budget is not None else None
    until = _share(until_within) if until_within is not None else None
    module = common.load_module(file)
    model = common.only_model(module, file)
    shape = StepShape(
        config or common.default_config(module, file),
        batch,
        length,
        accumulation,
        limits.parse_dims(dim or []),
        precision,
    )
    if cpu and (gpu or device != "cpu"):
        raise UserError("--cpu excludes --gpu and --device", "tune for one of them at a time, into a lockfile each")
    if predicted and not gpu:
        raise UserError("--predicted is for --gpu", "give --gpu h100 to tune for an H100 by the static model")
    backend = _backend(device, gpu, predicted or check or report, threads)
    machine, cores = backend.machine, backend.threads
    path = Path(lock) if lock else Path(f"{Path(file).stem}.{machine.name}.lock")
    if check:
        _check(path, file, module, model.name, machine, cores, lock)
        return
    store = storage or cache_folder("tuning") / f"{model.name}.{machine.name}.sqlite3"
    if report:
        from tcomp.autotune.report import write_report

        if not store.is_file():
            raise UserError(f"{store}: there are no tuning results", f"run: tcomp tune {file}")
        with trials_storage.failures_of(store):
            print(write_report(trials_storage.open_storage(store), machine.name, path, out), end="")
        return
    with trials_storage.failures_of(store):
        judge = _judge(module, backend, seed)
        kept = trials_storage.open_storage(store)
        plan = Plan(shape, seconds, trials, tuple(ops or ()), seed, until, _age())
        say = (lambda text: print(text, file=sys.stderr)) if ask or tell else _say
        steps = None if ask or tell else _steps(module, model.name, shape, backend)
        run = search.Search(
            module, model.name, machine, cores, plan, judge, kept, path, say, _known(file, machine, path), _followed,
            steps,
        )  # fmt: skip
        if ask or tell:
            _converse(run, ask, tell)
            return
        if not resume:
            run.forget()
        print(f"{model.name} {shape.text} on {machine.name}: {judge.basis}; trials in {store}", flush=True)
        try:
            summary = run.run()
        except KeyboardInterrupt:
            print(f"stopped; finished trials are in {store}: the same command goes on from there", file=sys.stderr)
            raise typer.Exit(130) from None
        for line in summary_lines(summary, judge.basis):
            print(line)
        print(f"lockfile {path}: {len(summary.tuned)} entries changed")


def _converse(run: Search, asking: bool, told: str) -> None:
    """Questions or answers on standard output, one JSON object a line."""
    from tcomp.autotune import proposals

    try:
        if asking and told:
            raise UserError("--ask and --tell exclude each other", "ask first, then tell")
        if asking:
            answers = proposals.ask(run)
        else:
            answers = proposals.tell(run, _lines(told))
        for answer in answers:
            print(json.dumps(answer), flush=True)
    finally:
        run.judge.close()


def _lines(told: str) -> Iterator[str]:
    """The lines of a file or of standard input, as they come."""
    try:
        if told == "-":
            yield from sys.stdin
        else:
            with open(told, encoding="utf-8") as f:
                yield from f
    except UnicodeDecodeError as e:
        raise UserError(f"{told}: not UTF-8 text", "one JSON object a line, as docs/proposers.md shows") from e


def _say(text: str) -> None:
    print(text, flush=True)


def _followed(instances: Sequence[Instance]) -> Iterable[Instance]:
    """The ops as they are looked at for the first time, which with a static model means to compile them all."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    what = "looking at the step's ops"
    return track(instances, what, console=console, transient=True, disable=not displays(console))


def _what(words: list[str]) -> tuple[bool, str]:
    """Whether a report is wanted, and the file."""
    report = words[:1] == ["report"]
    files = words[1:] if report else words
    if len(files) > 1:
        raise UserError(f"tune takes one file, not {len(files)}", "run it once per model")
    return report, files[0] if files else "gpt2"


@dataclass(frozen=True)
class Described:
    """A GPU that is known by its description alone."""

    machine: GpuMachine
    threads: int = 1


def _backend(device: str, gpu: str, described: bool, threads: int) -> Backend | Described:
    """Where candidates are to run; a description where they are not to, or there is no such GPU."""
    from tcomp.runtime.cache import cache_folder

    kind, which = limits.split_device(device)
    if kind == "virtual":
        raise UserError("the virtual GPU takes no time that a tuning could go by", "give --gpu h100 for predictions")
    if gpu and kind == "cuda":
        raise UserError("--device cuda and --gpu exclude each other", "leave --gpu away: the driver knows its GPU")
    if gpu:
        from tcomp.machine.gpu import machine_named

        named = machine_named(gpu)
        return (None if described else _present(named.name)) or Described(named)
    if kind == "cuda":
        from tcomp.autotune.backend_cuda import CudaBackend
        from tcomp.runtime.cuda.gpus import choose, gpus, machine_of

        found = choose(which, gpus())
        return CudaBackend(machine_of(found), str(found.index), cache_folder("kernels"))
    from tcomp.autotune.backend_cpu import CpuBackend
    from tcomp.machine.cpu import detect

    return CpuBackend(detect(), threads or limits.cores(), cache_folder("kernels"))


def _known(file: str, machine: Machine, own: Path) -> Lock | None:
    """The lockfile that a build would use and that is not the one to be written."""
    from tcomp.autotune.lockfile import find_lock, read_lock

    found = find_lock(common.find_file(file), machine.name, None)
    return read_lock(found) if found is not None and not (own.exists() and own.samefile(found)) else None


def _present(name: str) -> Backend | None:
    """A GPU of that name in this machine."""
    from tcomp.autotune.backend_cuda import CudaBackend
    from tcomp.runtime.cache import cache_folder
    from tcomp.runtime.cuda.gpus import gpus, machine_of

    try:
        for found in gpus():
            machine = machine_of(found)
            if machine.name == name:
                return CudaBackend(machine, str(found.index), cache_folder("kernels"))
    except UserError:  # no driver, no GPU, or one that is too old
        pass
    return None


def _judge(module: Module, backend: Backend | Described, seed: int) -> Judge:
    from tcomp.runtime.cache import cache_folder

    if isinstance(backend, Described):
        from tcomp.autotune.judge_predicted import PredictedJudge

        return PredictedJudge(module, backend.machine, cache_folder("kernels"), seed)
    from tcomp.autotune.judge_measured import MeasuredJudge

    return MeasuredJudge(module, backend, seed, cache_folder("tuning") / "measuring")


def _steps(module: Module, model: str, shape: StepShape, backend: Backend | Described) -> StepFinal | None:
    """On a CPU finals are within steps."""
    from tcomp.autotune.backend_cpu import CpuBackend
    from tcomp.autotune.step_final import StepFinal
    from tcomp.runtime.cache import cache_folder

    if not isinstance(backend, CpuBackend):
        return None
    return StepFinal(module, model, shape, backend, cache_folder("tuning") / "measuring")


def _check(
    path: Path, file: str, module: Module, model: str, machine: Machine, threads: int, given: str | None
) -> None:
    """Exit 1 when an entry is stale or missing; exit 2 when there is no lockfile."""
    from tcomp.autotune import apply
    from tcomp.autotune.instances import StepShape, instances_of
    from tcomp.autotune.lockfile import find_lock, read_lock_for

    found = find_lock(common.find_file(file), machine.name, given)
    if found is None:
        raise UserError(f"{path}: there is no lockfile", f"run: tcomp tune {file}")
    lock = read_lock_for(found, machine.name, model)
    stale: list[str] = []
    missing: list[str] = []
    for text in lock.steps:
        try:
            shape = StepShape.parse(text)
        except (KeyError, ValueError) as e:
            raise UserError(f"{found}: {text!r} is no step", "restore the file, or remove it and tune again") from e
        bad, absent = apply.check(lock, module, instances_of(module, model, shape, machine), machine, threads)
        stale, missing = stale + bad, missing + absent
    for title, lines in (("stale", stale), ("not tuned", missing)):
        for line in dict.fromkeys(lines):
            print(f"{title}: {line}")
    if stale:
        print(f"{found}: stale; tune again with: tcomp tune {file}", file=sys.stderr)
        raise typer.Exit(1)
    print(f"{found}: {len(lock.entries)} entries hold")


def _age() -> float:
    """Seconds since this process started, Python's own start and imports included; 0 where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def parse_duration(text: str) -> float:
    """Seconds of `90s`, `20m`, `1h30m`, `45`."""
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    parts = [float(p) if p else 0.0 for p in found.groups()] if found and text.strip() else []
    seconds = sum(p * unit for p, unit in zip(parts, (3600.0, 60.0, 1.0), strict=False))
    if seconds <= 0:
        raise UserError(f"--budget {text}: not a duration", "write for example --budget 20m, 90s or 1h30m")
    return seconds


def _share(text: str) -> float:
    try:
        value = float(text.strip().removesuffix("%")) / 100
        if not 0 < value < 1:
            raise ValueError
    except ValueError as e:
        raise UserError(f"--until-within {text}: not a percentage", "write for example --until-within 2%") from e
    return value
