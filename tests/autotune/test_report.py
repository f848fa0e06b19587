"""The report of kept trials: a table, reasons of failures, figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcomp.autotune import storage
from tcomp.autotune.instances import op_hash, schedule_hash
from tcomp.autotune.judge import Job
from tcomp.autotune.report import write_report
from tcomp.autotune.spearman import spearman
from tcomp.errors import UserError
from tests.autotune.support import scale


def test_a_report_has_wins_reasons_and_figures(tmp_path: Path) -> None:
    import optuna

    kept = storage.open_storage(tmp_path / "t.sqlite3")
    module, instance, space = scale()
    hashes = op_hash(instance.op, module), schedule_hash(module.schedules["scale", "cpu"])
    job = Job(instance, instance.key, space, 0, *hashes, 1e-3)
    study = storage.open_study(kept, job, "avx2", "measured", 0)
    storage.add_default(study, space, 1e-3)
    for i in range(8):
        trial, values = storage.ask(study, space)
        trial.set_user_attr("model", float(values["A"]))
        if i == 3:
            trial.set_user_attr("kind", "wrong")
            trial.set_user_attr("reason", "Y is 1.0e-01 from the oracle, 2e-05 allowed")
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            trial.set_user_attr("kind", "timed")
            study.tell(trial, 0.5 + float(values["A"]) / 100)
    text = write_report(kept, "avx2", tmp_path / "no.lock", tmp_path / "out")
    assert "scale Y: M=37 N=67" in text and "measured" in text and " 1.00  " in text
    assert "with measured times 1.00 (median of 1 kernels, 1.00 to 1.00)" in text
    assert "1 wrong: Y is # from the oracle, # allowed" in text
    assert (tmp_path / "out" / "report.txt").read_text() in text
    names = sorted(p.name for p in (tmp_path / "out").glob("*.png"))
    assert names == ["scale-Y-M-37-N-67.history.png", "scale-Y-M-37-N-67.importance.png"]
    with pytest.raises(UserError, match="no tuning results for h100"):
        write_report(kept, "h100", tmp_path / "no.lock", None)


def test_rank_correlation() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1)
    iq, hours = [86, 97, 99, 100, 101, 103, 106, 110, 112, 113], [2, 20, 28, 27, 50, 29, 7, 17, 6, 12]
    assert spearman(iq, hours) == pytest.approx(-29 / 165)
