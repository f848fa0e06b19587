"""`tcomp tune`: search the open parameters of a model's schedules, and keep the choices in a lockfile."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tcomp.cli import common, limits, options
from tcomp.cli.command import Options, command
from tcomp.cli.display import displays
from tcomp.cli.limits import Range
from tcomp.cli.options import MANY, StepOptions
from tcomp.errors import UserError

if TYPE_CHECKING:
    from tcomp.autotune.backend import Backend, Described, Place
    from tcomp.autotune.instances import Instance
    from tcomp.autotune.judge import Judge
    from tcomp.autotune.lockfile import Lock
    from tcomp.autotune.plan import Plan
    from tcomp.autotune.search import Search
    from tcomp.autotune.step_final import StepFinal
    from tcomp.dsl.ast import Module
    from tcomp.model.request import StepRequest


_PREDICT = "give --gpu h100 for predictions"


@dataclass(frozen=True)
class TunedStep(StepOptions):
    """The step whose ops are tuned; what is computed again in it is none of them."""

    file: str = "gpt2"
    memory: str = "unlimited"
    lock: str = ""
    deterministic: bool = True


@dataclass(frozen=True)
class PlaceOptions(Options):
    """What is tuned for."""

    device: Annotated[str, typer.Option(help="Where candidates run: cpu, or cuda (cuda:1, cuda:NAME).")] = "cpu"
    cpu: Annotated[bool, typer.Option("--cpu", help="This computer's processors, as by default.")] = False
    gpu: Annotated[
        str,
        typer.Option(help="The GPU to tune for: by running on it if it is here, else by a static model (predicted)."),
    ] = ""
    predicted: Annotated[
        bool, typer.Option("--predicted", help="With --gpu: by the static model even where there is such a GPU.")
    ] = False
    threads: options.Threads = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = limits.split_device(self.device)[0]
        if self.cpu and (self.gpu or self.device != "cpu"):
            raise UserError("--cpu excludes --gpu and --device", "tune for one of them at a time, into a lockfile each")
        if self.predicted and not self.gpu:
            raise UserError("--predicted is for --gpu", "give --gpu h100 to tune for an H100 by the static model")
        if kind == "virtual":
            raise UserError("the virtual GPU takes no time that a tuning could go by", _PREDICT)
        if self.gpu and kind == "cuda":
            raise UserError("--device cuda and --gpu exclude each other", "leave --gpu away: the driver knows its GPU")
        if self.gpu or kind == "cuda":
            limits.check_threads(self.threads, f"--gpu {self.gpu}" if self.gpu else f"--device {self.device}")

    def open(self, described: bool) -> Backend | Described:
        """Where candidates are to run; a description where they are not to, or there is no such GPU."""
        from tcomp.autotune.backend import Described
        from tcomp.runtime.cache import cache_folder

        if self.gpu:
            from tcomp.machine.gpu import machine_named

            named = machine_named(self.gpu)
            return (None if described or self.predicted else _present(named.name)) or Described(named)
        kind, which = limits.split_device(self.device)
        if kind == "cuda":
            from tcomp.autotune.backend_cuda import CudaBackend
            from tcomp.runtime.cuda.driver import WITHOUT_GPU
            from tcomp.runtime.cuda.gpus import choose, gpus, machine_of

            try:
                found = choose(which, gpus())
            except UserError as e:  # the virtual GPU, which runs a step without one, takes no time to tune by
                raise UserError(e.message, e.hint.replace(WITHOUT_GPU, f"leave --device out, or {_PREDICT}")) from e
            return CudaBackend(machine_of(found), str(found.index), cache_folder("kernels"))
        from tcomp.autotune.backend_cpu import CpuBackend
        from tcomp.machine.cpu import detect

        return CpuBackend(detect(), self.threads or limits.cores(), cache_folder("kernels"))


@dataclass(frozen=True)
class SearchOptions(Options):
    """What to do, how long, and where trials and choices are kept."""

    words: Annotated[
        list[str], typer.Argument(metavar="[report] [FILE]", help="A .tc file, or one of tcomp's own models.")
    ] = field(default_factory=list)
    budget: Annotated[str | None, typer.Option(help="Stop after this long: 90s, 20m, 1h30m.")] = None
    trials: Annotated[
        int | None, typer.Option(help="Trials per kernel, those of earlier runs included."), Range(1, MANY)
    ] = None
    until_within: Annotated[
        str | None, typer.Option(help="Leave a kernel when 8 trials gained less than this: 2%.")
    ] = None
    ops: Annotated[list[str], typer.Option(help="Only ops of this name (* and ? match); repeatable.")] = field(
        default_factory=list
    )
    seed: Annotated[int, typer.Option(help="Of the search and of the inputs."), options.SEED] = 0
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Use kept trials, or forget them.")] = True
    lock: Annotated[str | None, typer.Option(help="The lockfile [default: MODEL.MACHINE.lock in this folder].")] = None
    storage: Annotated[Path | None, typer.Option(help="Where trials are kept [default: the cache folder].")] = None
    check: Annotated[bool, typer.Option("--check", help="Only say whether the lockfile holds; exit 1 if not.")] = False
    ask: Annotated[bool, typer.Option("--ask", help="Print what there is to tune, a JSON object per kernel.")] = False
    tell: Annotated[str, typer.Option(help="Judge proposals from this file of JSON lines; - is the input.")] = ""
    out: Annotated[Path | None, typer.Option(help="report: the folder of its files.")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = {"report": self.report, "--check": self.check, "--ask": self.ask, "--tell": self.tell}
        if len(several := [name for name, wanted in asked.items() if wanted]) > 1:
            raise UserError(f"{several[0]} and {several[1]} exclude each other", "do one, then the other")
        if self.out is not None and not self.report:
            raise UserError("--out is for reports", "write: tcomp tune report FILE --out FOLDER")
        if self.tell not in ("", "-") and (Path(self.tell).is_dir() or not Path(self.tell).exists()):
            raise UserError(f"--tell {self.tell}: no such file", "name a file of JSON lines, or - for standard input")
        if len(self._files) > 1:
            raise UserError(f"tune takes one file, not {len(self._files)}", "run it once per model")
        _ = self.seconds, self.until  # refused before any work

    @property
    def report(self) -> bool:
        """Is the outcome of earlier searches wanted?"""
        return self.words[:1] == ["report"]

    @property
    def file(self) -> str:
        return self._files[0] if self._files else "gpt2"

    @property
    def _files(self) -> list[str]:
        return self.words[1:] if self.report else self.words

    @property
    def seconds(self) -> float | None:
        return limits.parse_duration(self.budget) if self.budget is not None else None

    @property
    def until(self) -> float | None:
        return limits.parse_share(self.until_within) if self.until_within is not None else None

    def plan(self, step: StepRequest, known: Lock | None) -> Plan:
        """The search that is asked for."""
        from tcomp.autotune.plan import Plan

        return Plan(step, self.seconds, self.trials, tuple(self.ops), self.seed, self.until, _age(), known)


@command
def tune(step: TunedStep, where: PlaceOptions, own: SearchOptions) -> None:
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
    from tcomp.autotune.instances import step_text
    from tcomp.autotune.plan import lockfile_line, summary_lines
    from tcomp.runtime.cache import cache_folder

    file = own.file
    request = replace(step.request(), model=file)
    module = common.load_module(file)
    request = common.resolved(request, module)
    backend = where.open(own.check or own.report)
    machine = backend.machine
    path = Path(own.lock) if own.lock else Path(f"{Path(file).stem}.{machine.name}.lock")
    if own.check:
        _check(path, file, module, request.model, backend, own.lock)
        return
    store = own.storage or cache_folder("tuning") / f"{request.model}.{machine.name}.sqlite3"
    if own.report:
        from tcomp.autotune.report import write_report

        if not store.is_file():
            raise UserError(f"{store}: there are no tuning results", f"run: tcomp tune {file}")
        with trials_storage.failures_of(store):
            print(write_report(trials_storage.open_storage(store), machine.name, path, own.out), end="")
        return
    with trials_storage.failures_of(store):
        judge = _judge(module, backend, own.seed)
        kept = trials_storage.open_storage(store)
        plan = own.plan(request, _known(file, backend, path))
        talk = bool(own.ask or own.tell)
        shown = search.Shown(common.note if talk else _say, _followed)
        steps = None if talk else _steps(module, request, backend)
        run = search.Search(module, backend, plan, judge, kept, path, shown, steps)
        if talk:
            _converse(run, own)
            return
        if not own.resume:
            run.forget()
        print(f"{request.model} {step_text(request)} on {machine.name}: {judge.basis}; trials in {store}", flush=True)
        try:
            summary = run.run()
        except KeyboardInterrupt:
            print(f"stopped; finished trials are in {store}: the same command goes on from there", file=sys.stderr)
            raise typer.Exit(130) from None
        for line in summary_lines(summary, judge.basis):
            print(line)
        print(lockfile_line(summary, path))


def _converse(run: Search, own: SearchOptions) -> None:
    """Questions or answers on standard output, one JSON object a line."""
    from tcomp.autotune import proposals

    try:
        for answer in proposals.ask(run) if own.ask else proposals.tell(run, _lines(own.tell)):
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


def _known(file: str, place: Place, own: Path) -> Lock | None:
    """The lockfile that a build would use and that is not the one to be written."""
    from tcomp.autotune.lockfile import find_lock, read_lock

    found = find_lock(common.find_file(file), place.machine.name, None)
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
    from tcomp.autotune.backend import Described
    from tcomp.runtime.cache import cache_folder

    if isinstance(backend, Described):
        from tcomp.autotune.judge_predicted import PredictedJudge

        return PredictedJudge(module, backend.machine, cache_folder("kernels"), seed)
    from tcomp.autotune.judge_measured import MeasuredJudge

    return MeasuredJudge(module, backend, seed, cache_folder("tuning") / "measuring")


def _steps(module: Module, step: StepRequest, backend: Place) -> StepFinal | None:
    """On a CPU finals are within steps."""
    from tcomp.autotune.backend_cpu import CpuBackend
    from tcomp.autotune.step_final import StepFinal
    from tcomp.runtime.cache import cache_folder

    if not isinstance(backend, CpuBackend):
        return None
    return StepFinal(module, step, backend, cache_folder("tuning") / "measuring")


def _check(path: Path, file: str, module: Module, model: str, place: Place, given: str | None) -> None:
    """Exit 1 when an entry is stale or missing; exit 2 when there is no lockfile."""
    from tcomp.autotune import apply
    from tcomp.autotune.instances import instances_of, parse_step
    from tcomp.autotune.lockfile import find_lock, read_lock_for

    machine, threads = place.machine, place.threads
    found = find_lock(common.find_file(file), machine.name, given)
    if found is None:
        raise UserError(f"{path}: there is no lockfile", f"run: tcomp tune {file}")
    lock = read_lock_for(found, machine.name, model)
    stale: list[str] = []
    missing: list[str] = []
    for text in lock.steps:
        try:
            step = common.resolved(parse_step(text, file), module)
        except ValueError as e:
            raise UserError(f"{found}: {text!r} is no step", "restore the file, or remove it and tune again") from e
        bad, absent = apply.check(lock, module, instances_of(module, step, machine), machine, threads)
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
