"""The settings of a run that begins or goes on: from flags, a run file, the run that is resumed or whose weights it
starts from; where its folder is, and what of the settings that keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcomp.cli import common
from tcomp.cli.ranks import ranks_text, regrouped
from tcomp.cli.settings import TrainSettings, from_json, merged, read_run_file
from tcomp.errors import UserError

if TYPE_CHECKING:
    from tcomp.runtime.distributed.group import Group

_TINY_LR = 3e-3
_LOCK = "tuning.lock"
_RESUMABLE = (
    "steps", "device", "gpu", "graph", "threads", "zero", "exchange", "memory", "eval_every", "save_every", "keep",
    "sample", "prompt",
)  # fmt: skip


def started(flags: dict[str, Any], run_file: Path | None) -> TrainSettings:
    """The settings of a new run: the defaults, the run whose weights it starts from, the run file, flags."""
    layers = (read_run_file(run_file) if run_file else {}, flags)
    start = merged(TrainSettings(), *layers).init_from
    before = _same_model(Path(start)) if start else {}
    settings = merged(TrainSettings(), before, *layers)
    if (
        before
        and common.find_file(settings.model) != common.find_file(before["model"])
        and common.declaring_file(settings.model) != common.declaring_file(before["model"])
        and not _builds_on(settings)
    ):
        raise UserError(
            f"{start}: it holds weights of {before['model']}, not of {settings.model}",
            "leave the model out: it is taken from the run; or freeze what stays, to build on another's",
        )
    return settings


def resumed(path: Path, flags: dict[str, Any], run_file: Path | None, group: Group | None) -> TrainSettings:
    """The settings of a run that goes on, with what may change as the flags say; warns of changes that show in its
    results."""
    from tcomp.runtime.run_folder import read_config

    if run_file is not None:
        raise UserError("--resume and --run-file exclude each other", "a run keeps the settings it began with")
    fixed = sorted(set(flags) - set(_RESUMABLE))
    if fixed:
        flag = {"model": "the model", "hyper": "--hyper or --lr", "dims": "--dim"}.get(fixed[0])
        raise UserError(
            f"{flag or '--' + fixed[0].replace('_', '-')} cannot change when a run is resumed",
            f"only these can: {', '.join('--' + n.replace('_', '-') for n in _RESUMABLE)}",
        )
    values = read_config(path)
    if values.get("weights_only"):
        raise UserError(
            f"{path}: it holds weights only, without the optimizer's state",
            f"start a run from them: tcomp train --init-from {path}",
        )
    before = from_json(values, str(path / "run.json"))
    before = replace(before, lock="none" if before.lock in ("", "none") else str(path / _LOCK))
    if "device" in flags and "gpu" not in flags:
        flags["gpu"] = ""
    settings = merged(before, flags)
    changed = []
    if (settings.device.partition(":")[0], settings.gpu) != (before.device.partition(":")[0], before.gpu):
        changed.append(f"{_device_text(settings)} instead of {_device_text(before)}")
        # The run's own are of the other machine.
        settings = replace(settings, lock="", exchange=flags.get("exchange", ""))
    settings = regrouped(settings, 1 if group is None else group.size, "threads" in flags)
    if settings.ranks != before.ranks:
        changed.append(f"{ranks_text(settings)} instead of {ranks_text(before)}")
    elif settings.threads != before.threads and settings.device == before.device == "cpu":
        changed.append(f"{settings.threads} threads instead of {before.threads}")
    if changed:
        common.warn(f"{', '.join(changed)}: sums are rounded differently, so this run will not go on bitwise the same")
    return settings


def _same_model(path: Path) -> dict[str, Any]:
    """The settings of the run whose weights a new one starts from, as far as they say which model it is."""
    from tcomp.runtime.run_folder import read_config

    if not (path / "run.json").is_file() and (path / "config.json").is_file():
        raise UserError(
            f"{path}: a Hugging Face folder, not a run folder",
            f"bring it in first: tcomp import --from-hf {path} --out runs/{path.name}",
        )
    before = from_json(read_config(path), str(path / "run.json"))
    return {"model": before.model, "config": before.config, "dims": before.dims}


def _builds_on(settings: TrainSettings) -> bool:
    """Whether the model keeps some parameters as they are: those may come from another model that has them."""
    model = common.only_model(common.load_module(settings.model, settings.precision), settings.model)
    return any(p.frozen for p in model.params)


def _device_text(settings: TrainSettings) -> str:
    return f"{settings.device} {settings.gpu}".rstrip()


def run_path(settings: TrainSettings, group: Group | None) -> Path:
    """The named folder, or runs/MODEL-CONFIG with the first number that is free (to rank 0)."""
    if settings.run:
        return common_path(Path(settings.run), group)
    if group is not None and group.rank:
        return Path(group.of_first("run", ""))
    base = Path("runs") / f"{Path(settings.model).stem}-{settings.config}"
    path, number = base, 1
    while path.exists() and any((path / "checkpoints").glob("step-*")):
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return common_path(path, group)


def common_path(path: Path, group: Group | None) -> Path:
    """A rank's own path, of which rank 0 tells others that were given none."""
    if group is not None and not group.rank:
        group.of_first("run", str(path))
    return path


def kept(settings: TrainSettings, path: Path, built: common.Built) -> TrainSettings:
    """The settings as the run folder keeps them: what they left open is said, and files by their full paths."""
    return replace(
        settings,
        precision=built.step.precision,
        threads=built.threads if built.device.kind == "cpu" else settings.threads,
        run=str(path),
        model=str(Path(settings.model).resolve()) if Path(settings.model).is_file() else settings.model,
        data=[str(Path(p).resolve()) for p in settings.data],
        init_from=str(Path(settings.init_from).resolve()) if settings.init_from else "",
        lock=_kept_lock(built, path),
    )


def _kept_lock(built: common.Built, run: Path) -> str:
    """The run's own copy of the lockfile, so that a resumed run has the same kernels whatever is tuned meanwhile."""
    if built.lock is None:
        return "none"
    copy = run / _LOCK
    copy.write_bytes(built.lock.read_bytes())
    return str(copy)


def fitting(settings: TrainSettings, defaults: dict[str, float]) -> dict[str, float]:
    """Hyperparameters that fit the run where none are given: the learning rate's schedule ends with the run and
    warms up over a tenth of it at most, and our own tiny model takes a rate that suits its small width."""
    fitting = {}
    if "hyper.total" in defaults:
        fitting["total"] = float(settings.steps)
    if "hyper.warmup" in defaults:
        fitting["warmup"] = min(defaults["hyper.warmup"], max(1.0, settings.steps // 10))
    if (settings.model, settings.config) == ("gpt2", "tiny"):
        fitting["peak_lr"] = _TINY_LR
    return fitting
