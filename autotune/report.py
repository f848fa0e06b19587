"""What the kept trials say: wins per kernel, why candidates failed, how well the cost model ranks, and plots.

Optuna's own figures (history, parameter importances) through matplotlib; optuna-dashboard opens the same storage.
"""

from __future__ import annotations

import re
import statistics
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tcomp.autotune.gpu_ladder import ladder
from tcomp.autotune.kept_trials import load_study, study_names, values_of
from tcomp.autotune.lockfile import Lock, read_lock
from tcomp.autotune.spearman import spearman
from tcomp.errors import UserError

if TYPE_CHECKING:
    import optuna

NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")


@dataclass(frozen=True)
class StudyReport:
    """One kernel's trials. `correlation` is Spearman's between the static model's estimates and the measured times,
    None with fewer than six; `close` is that of the trials alone which were not given up as slow. `reasons` are the
    commonest failures, numbers left out."""

    label: str
    basis: str
    default_seconds: float
    best: float | None
    values: dict[str, object]
    kinds: Counter[str]
    reasons: Counter[str]
    correlation: float | None
    close: float | None = None


def study_reports(trials: optuna.storages.BaseStorage, machine: str) -> list[StudyReport]:
    """Of all studies for a machine, those with most to gain first."""

    found = []
    for name in study_names(trials):
        if name.split(" | ")[0].split()[0] == machine:
            found.append(_report(load_study(trials, name)))
    return sorted(found, key=lambda r: r.default_seconds * (1 - (r.best or 1.0)), reverse=True)


def _report(study: optuna.Study) -> StudyReport:
    done = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
    timed = [t for t in done if t.value is not None]
    best = min(timed, key=lambda t: t.value or 0.0, default=None)
    kinds = Counter(str(t.user_attrs.get("kind", "")) for t in done)
    reasons = Counter(
        f"{t.user_attrs['kind']}: {NUMBER.sub('#', str(t.user_attrs['reason']))}"
        for t in done
        if t.user_attrs.get("reason")
    )
    ranked = [t for t in timed if "model" in t.user_attrs]
    attributes = study.user_attrs
    return StudyReport(
        str(attributes.get("job", study.study_name)),
        str(attributes.get("basis", "")),
        float(attributes.get("default_seconds", 0.0)),
        best.value if best else None,
        dict(values_of(best) or {}) if best else {},
        kinds,
        reasons,
        _correlation(ranked),
        _correlation([t for t in ranked if t.user_attrs.get("kind") == "timed"]),
    )


def _correlation(trials: Sequence[optuna.trial.FrozenTrial]) -> float | None:
    """Of the static model's estimates with the times."""
    if len(trials) < 6:
        return None
    return spearman([float(t.user_attrs["model"]) for t in trials], [t.value or 0.0 for t in trials])


def write_report(trials: optuna.storages.BaseStorage, machine: str, lock_path: Path, out: Path | None) -> str:
    """The report as text; with `out`, also as report.txt there, with figures per kernel. UserError when there are no
    trials for the machine."""
    reports = study_reports(trials, machine)
    if not reports:
        raise UserError(f"there are no tuning results for {machine}", "run tcomp tune first")
    lock = read_lock(lock_path) if lock_path.is_file() else None
    text = "\n".join([*_table(reports), *_model(reports), "", *_failures(reports), *_step(lock, lock_path)]) + "\n"
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / "report.txt").write_text(text)
        except OSError as e:
            raise UserError(f"{out}: cannot write the report there: {e.strerror or e}", "name another by --out") from e
        files = _figures(trials, machine, out)
        text += f"{len(files)} figures in {out}\n"
    return text


def _table(reports: Sequence[StudyReport]) -> list[str]:
    lines = [f"{'kernel':58}{'basis':11}{'default us':>11}{'best':>7}{'trials':>8}{'model':>7}  values of the best"]
    for r in reports:
        best = f"{r.best:.3f}" if r.best is not None else "-"
        model = f"{r.correlation:.2f}" if r.correlation is not None else "-"
        count = sum(n for k, n in r.kinds.items() if k not in ("repeated", "default"))
        values = " ".join(f"{k}={v}" for k, v in r.values.items())
        lines.append(f"{r.label:58}{r.basis:11}{r.default_seconds * 1e6:11.1f}{best:>7}{count:8}{model:>7}  {values}")
    lines.append("best: time over the default's, before the final; model: rank correlation of the static model with it")
    return lines


def _model(reports: Sequence[StudyReport]) -> list[str]:
    """How well the static model's estimates rank what they were made for, or what is published where that is all."""
    every = sorted(r.correlation for r in reports if r.correlation is not None)
    close = sorted(r.close for r in reports if r.close is not None)
    lines = []
    if every:
        lines.append(
            f"static model: rank correlation (Spearman) with measured times {_spread(every)}, over all trials with a "
            f"time; among those not given up as slow {_spread(close) if close else '-'}"
        )
    if any(r.basis == "predicted" for r in reports):
        rungs = ladder()
        rank = spearman([g.published for g, _ in rungs], [p.tflops for _, p in rungs])
        lines.append(
            f"static GPU model: rank correlation (Spearman) {rank:.3f} with the published speeds of {len(rungs)} "
            "matrix products on H100 (tcomp roofline --ladder)"
        )
    return lines


def _spread(values: Sequence[float]) -> str:
    """Median and range of sorted values."""
    return f"{statistics.median(values):.2f} (median of {len(values)} kernels, {values[0]:.2f} to {values[-1]:.2f})"


def _failures(reports: Sequence[StudyReport]) -> list[str]:
    total: Counter[str] = Counter()
    for r in reports:
        total.update(r.reasons)
    if not total:
        return ["no candidate failed"]
    return ["why candidates failed:", *(f"  {n:5} {reason}" for reason, n in total.most_common(12))]


def _step(lock: Lock | None, path: Path) -> list[str]:
    if lock is None or not lock.entries:
        return [f"no lockfile {path}"]
    lines = [f"lockfile {path}:"]
    for key, e in sorted(lock.entries.items(), key=lambda item: -item[1].default_seconds):
        interval = f" +- {e.margin:.1%}" if e.margin else ""
        lines.append(
            f"  {key:66}{e.basis:10}{e.default_seconds * 1e6:11.1f} us -> {e.seconds * 1e6:11.1f} us "
            f"({e.gain:.1%} less{interval}){', by a schedule of its own' if e.text else ''}"
        )
    return lines


def _figures(trials: optuna.storages.BaseStorage, machine: str, out: Path) -> list[Path]:
    """History and parameter importances of every study with enough trials, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import matplotlib as figures

    made = []
    for name in study_names(trials):
        study = load_study(trials, name)
        timed = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if name.split(" | ")[0].split()[0] != machine or len(timed) < 4:
            continue
        stem = re.sub(r"[^A-Za-z0-9.]+", "-", str(study.user_attrs.get("job", name))).strip("-")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for what in ("history", "importance"):
                if what == "history":
                    figures.plot_optimization_history(study, target_name="time / default's")
                else:
                    try:
                        figures.plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
                    except (ValueError, RuntimeError):  # all values equal, or a single parameter
                        continue
                plt.title(f"{study.user_attrs.get('job', name)}\n{study.user_attrs.get('basis', '')}", fontsize=9)
                path = out / f"{stem}.{what}.png"
                plt.savefig(path, dpi=90, bbox_inches="tight")
                plt.close("all")
                made.append(path)
    return made
