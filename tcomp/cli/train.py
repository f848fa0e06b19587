"""`tcomp train`: train a model on this machine, from nothing or from a run's newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tcomp.cli import common, limits, options
from tcomp.cli.command import Given, Options, command
from tcomp.cli.display import spinner
from tcomp.cli.rank_devices import way
from tcomp.cli.ranks import built_by, check_same, device_of, opened_by, ranks_text, session
from tcomp.cli.run_settings import common_path, fitting, kept, resumed, run_path, started
from tcomp.cli.settings import TrainSettings, as_json
from tcomp.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from tcomp.model.step import Step
    from tcomp.runtime.checkpoint import Checkpoint
    from tcomp.runtime.data import Data
    from tcomp.runtime.device import Device
    from tcomp.runtime.distributed.group import Group
    from tcomp.runtime.executor import Executor
    from tcomp.runtime.peers import Peers
    from tcomp.runtime.train import Outcome


@dataclass(frozen=True)
class TrainOptions(Options):
    """What only the command line has: other ways to say a setting, and where settings come from."""

    lr: Annotated[float | None, typer.Option(help="Peak learning rate (hyper peak_lr).")] = None
    hyper: Annotated[list[str], typer.Option(help="Any hyperparameter: --hyper warmup=20; may be repeated.")] = field(
        default_factory=list
    )
    dim: options.Dim = field(default_factory=list)
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None
    run_file: Annotated[Path | None, typer.Option(help="Settings in TOML; flags win over them.")] = None

    def settings(self) -> dict[str, Any]:
        """The settings among them, under their names."""
        hyper = limits.parse_values(self.hyper, "--hyper")
        if self.lr is not None:
            hyper["peak_lr"] = self.lr
        return {name: table for name, table in (("hyper", hyper), ("dims", limits.parse_dims(self.dim))) if table}


@command
def train(given: Given[TrainSettings], own: TrainOptions) -> None:
    """Train a model.

    Without arguments: the tiny GPT-2 on the Python standard library's sources, in about a minute.

    Examples:

    - `tcomp train --steps 2000 --lr 1e-3`

    - `tcomp train --data books/ notes.txt -B 16 -T 64 --dim L=2 --run runs/books`

    - `tcomp train gpt2 --config 124M --data train.bin val.bin -B 4 -T 1024 --accumulation 8`

    - `tcomp train --run-file run.toml` with lines such as `steps = 2000` and `[hyper]` / `peak_lr = 1e-3`

    - `tcomp train --resume runs/gpt2-tiny` after Ctrl-C, a crash or a power cut: it goes on bitwise the same

    - `tcomp train --device cuda` on an NVIDIA GPU; `--device virtual` runs the same code on a checking simulator

    - `torchrun --nproc-per-node 2 -m tcomp train gpt2 --zero 1` by two processes, each with -B sequences of a step
    """
    with session() as group:
        _train({**given, **own.settings()}, own, group)


def _train(flags: dict[str, Any], own: TrainOptions, group: Group | None) -> None:
    """Train with these flags, alone or as one rank of a group."""
    if flags.get("zero") and group is None:
        raise UserError(
            "--zero 1 divides the optimizer's state among processes, and there is one",
            "leave it out, or start several: torchrun --nproc-per-node 2 -m tcomp train ... --zero 1",
        )
    limits.check_exchange(flags.get("exchange", ""))
    if flags.get("exchange") and group is None:
        raise UserError("--exchange is about several processes, and there is one", "leave it out, or start several")
    if own.resume is not None:
        settings = resumed(own.resume, flags, own.run_file, group)
        outcome = _run(settings, common_path(own.resume, group), resume=True, group=group)
    else:
        settings = replace(started(flags, own.run_file), ranks=1 if group is None else group.size)
        outcome = _run(settings, run_path(settings, group), resume=False, group=group)
    if outcome.interrupted:
        raise typer.Exit(130)


def _run(settings: TrainSettings, path: Path, resume: bool, group: Group | None = None) -> Outcome:
    from rich.console import Console

    from tcomp.runtime.run_folder import refuse_used

    if not resume:
        refuse_used(path)
    weights = _first_weights(settings, path, resume)
    device = device_of(settings, group)
    by = "" if group is None else way(settings.exchange, device, group)
    built = built_by(group, settings.request(), device)
    console = Console(highlight=False)
    try:
        data = _checked_data(settings, built, resume)
    except BaseException:
        device.abandon()
        raise
    _announce(console, settings, built, data, by)
    if group is not None:
        check_same(group, as_json(settings), built, data, by)
    with spinner(console, "compiling the kernels"):
        executor, peers = opened_by(group, device, built.step, by)
    leads = peers.rank == 0
    try:
        if weights is not None:
            _check_weights(settings, executor, built.step, weights)
        outcome = _trained(_Run(settings, path, resume, built, data), executor, peers, weights, console)
    finally:
        executor.close()
    del executor, peers  # and with it its memory, before the sample takes some
    if group is not None:
        group.close()
    _finish(settings, path, outcome, device, leads and _has_letters(data, path), built.step.writes)
    return outcome


def _first_weights(settings: TrainSettings, path: Path, resume: bool) -> Checkpoint | None:
    """The checkpoint that the run's weights come from, where it has none of its own yet."""
    from tcomp.runtime import checkpoint

    if not settings.init_from or (resume and checkpoint.any_saved(path)):
        return None
    return checkpoint.newest(Path(settings.init_from), common.warn)


def _checked_data(settings: TrainSettings, built: common.Built, resume: bool) -> Data:
    """The run's data. UserError where these, the hyperparameters or the prompt do not go with the model."""
    from tcomp.runtime.data import data_for
    from tcomp.runtime.examples import inputs_of
    from tcomp.runtime.run_folder import PASSED
    from tcomp.runtime.train import check_trainable

    check_trainable(built.step)
    inputs = inputs_of(built.step.slots, built.step.inputs)
    vocabulary = min(built.step.inputs.values())
    data = data_for([Path(p) for p in settings.data], inputs, settings.batch, settings.length, vocabulary)
    own = Path(settings.init_from) / PASSED / "tokenizer.json"
    if settings.init_from and own.is_file() and data.text:
        common.warn(
            "the text is taken as bytes, but the weights came with a tokenizer; prepare the text with it:\n"
            f"  tcomp data prepare TEXT --tokenizer {own} --out FOLDER"
        )
    known = {n.removeprefix("hyper."): v for n, v in built.step.hyper.items()}
    limits.check_hyper(settings.hyper, known)
    if not resume:
        limits.check_effective(settings.hyper, built.step.idle_hyper(), known)
    if settings.sample and data.text:
        limits.check_prompt(settings.prompt, vocabulary)
    return data


def _check_weights(settings: TrainSettings, executor: Executor, step: Step, weights: Checkpoint) -> None:
    """UserError where a checkpoint's weights are not the model's, or too few."""
    from tcomp.runtime.train import added, check_weights

    new = added(step, weights)
    check_weights(executor, weights, new, settings.weights)
    if new:
        common.warn(f"{settings.init_from} has no {', '.join(new)}: they begin as the model's text says")


@dataclass(frozen=True)
class _Run:
    """What is to be trained: everything has been checked and built."""

    settings: TrainSettings
    path: Path
    resume: bool
    built: common.Built
    data: Data


def _trained(run: _Run, executor: Executor, peers: Peers, weights: Checkpoint | None, console: Console) -> Outcome:
    """The run itself. Only now is there a run folder."""
    from tcomp.runtime.progress import progress_for
    from tcomp.runtime.run_folder import FollowedRun, RunFolder
    from tcomp.runtime.train import Settings, train

    settings, resume = run.settings, run.resume
    leads = peers.rank == 0
    folder = RunFolder(run.path, create=not resume) if leads else FollowedRun(run.path)
    try:
        if not resume:
            hyper = {**fitting(settings, run.built.step.hyper), **settings.hyper}
            settings = replace(settings, hyper=hyper)
        if not resume and leads:
            settings = kept(settings, run.path, run.built)
            folder.write_config(as_json(settings))
            if settings.init_from:
                folder.pass_on(Path(settings.init_from))
            folder.keep_tokenizer([Path(p) for p in settings.data])
        own = Settings(
            steps=settings.steps, accumulation=settings.accumulation, seed=settings.seed, hyper=settings.hyper,
            eval_every=settings.eval_every, eval_batches=settings.eval_batches, save_every=settings.save_every,
            keep=settings.keep, threads=settings.threads or limits.cores(),
            weights=settings.weights,
        )  # fmt: skip
        return train(executor, run.data, folder, own, progress_for(console), resume, weights, peers)
    finally:
        folder.close()


def _has_letters(data: Data, path: Path) -> bool:
    """Whether a sample of the run can be shown as text."""
    from tcomp.runtime.run_folder import PASSED

    return data.text or (data.unit == "tokens" and (path / PASSED / "tokenizer.json").is_file())


def _finish(settings: TrainSettings, path: Path, outcome: Outcome, device: Device, sampled: bool, writes: bool) -> None:
    """What is said and shown when the run has ended."""
    if outcome.interrupted:
        print(f"stopped at step {outcome.step}, saved; go on with: tcomp train --resume {path}")
        device.finish()
        return
    print(f"validation loss {outcome.validation_loss:.4f} after {outcome.step} steps")
    if settings.sample and sampled and writes:
        _sample(path, settings, device)
    device.finish()
    further = "more text with `tcomp generate" if writes else "measure it with `tcomp eval"
    print(f"run folder {path}: {further} {path}`")


def _announce(console: Any, settings: TrainSettings, built: common.Built, data: Data, by: str) -> None:
    from tcomp.amounts import bytes_apart, bytes_text

    step = built.step
    count = sum(a.bytes // a.dtype.bytes for n, a in step.slots.items() if a.kind == "parameter")
    rows = settings.batch * settings.accumulation * settings.ranks
    amount = f"{rows} x {settings.length} tokens" if data.unit == "tokens" else f"{rows} {data.unit}"
    text = (
        f"{built.name} {settings.config}: {count / 1e6:.1f} M parameters, precision {step.precision}, "
        f"{amount} a step, {bytes_text(step.arena_bytes)} arena, {built.device.description}"
        + (f", {ranks_text(settings)}" if settings.ranks > 1 else "")
        + (f", exchange by {by}" if by and built.device.kind == "cuda" else "")
    )
    console.print(text, soft_wrap=True, markup=False)
    if step.recompute is not None:
        r = step.recompute
        after, before = bytes_apart(r.after, r.before)
        again = ", ".join(dict.fromkeys(row.op for row in r.rows))
        console.print(
            f"memory: {after} instead of {before}, computing again {again}; predicted cost {r.share:.1%} of a step",
            soft_wrap=True,
            markup=False,
        )
    console.print(f"data: {data.description}", soft_wrap=True, markup=False)


def _sample(path: Path, settings: TrainSettings, device: Device) -> None:
    from tcomp.cli.generate import show_stream, stream
    from tcomp.runtime.generate import Choice

    print(f"a sample of {settings.sample} tokens, prompt {settings.prompt!r}:\n")
    show_stream(stream(path, settings.prompt, settings.sample, Choice(), settings.seed, device))
    print("\n")
