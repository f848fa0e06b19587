"""The report of kept trials: a table, reasons of failures, figures."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import optuna
import pytest

from tcomp.autotune import storage
from tcomp.autotune.instances import op_hash, schedule_hash
from tcomp.autotune.judge import Job
from tcomp.autotune.report import write_report
from tcomp.autotune.spearman import spearman
from tcomp.errors import UserError
from tests import turns
from tests.autotune.support import scale


def new_study(kept: optuna.storages.BaseStorage) -> tuple[Job, optuna.Study]:
    """A job of the kernel `scale`, and its study, in which the default's time stands."""
    module, instance, space = scale()
    hashes = op_hash(instance.op, module), schedule_hash(module.schedules["scale", "cpu"])
    job = Job(instance, instance.key, space, 0, *hashes, 1e-3)
    study = storage.open_study(kept, job, "avx2", "measured", 0)
    storage.add_default(study, space, 1e-3)
    return job, study


def test_a_report_has_wins_reasons_and_figures(tmp_path: Path) -> None:
    kept = storage.open_storage(tmp_path / "t.sqlite3")
    job, study = new_study(kept)
    for i in range(8):
        trial, values = storage.ask(study, job.space)
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


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Job, str]:
    """A storage file with a study of a few trials, to be copied; the study's name."""
    path = tmp_path_factory.mktemp("kept") / "t.sqlite3"
    job, study = kept_study(path)
    return path, job, study.study_name


def kept_study(path: Path) -> tuple[Job, optuna.Study]:
    """A storage file with a study of a few trials."""
    kept = storage.open_storage(path)
    job, study = new_study(kept)
    for i in range(4):
        trial, _ = storage.ask(study, job.space)
        for name, value in {"kind": "timed", "reason": "", "seconds": 1e-3, "model": 2.0}.items():
            trial.set_user_attr(name, value)
        study.tell(trial, 0.5 + i / 10)
    optuna.create_study(storage=kept, study_name="of another program")
    return job, study


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("values", "["), ("values", 3), ("values", "[1]"), ("values", '{"A": "x"}'), ("values", '{"A": NaN}'),
        ("values", "[" * 1500), ("kind", []), ("reason", 3), ("model", "x"), ("seconds", None), ("process", "a"),
        ("process", "a b c"), ("margin", {}),
    ],
)  # fmt: skip
def test_a_trial_of_another_making_is_damage(
    tmp_path: Path, kept: tuple[Path, Job, str], name: str, value: object
) -> None:
    path = tmp_path / "t.sqlite3"
    whole, job, study_name = kept
    shutil.copy(whole, path)
    opened = storage.open_storage(path)
    study = optuna.load_study(storage=opened, study_name=study_name)
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs={name: value}))
    for read in (
        lambda kept: storage.open_study(kept, job, "avx2", "measured", 0),
        lambda kept: write_report(kept, "avx2", tmp_path / "no.lock", None),
    ):
        with (
            pytest.raises(UserError, match=rf"t\.sqlite3: the tuning results are damaged: '{name}' of trial 5") as e,
            storage.failures_of(path),
        ):
            read(opened)
        assert "rm " in e.value.hint


@pytest.mark.slow
def test_a_damaged_storage_file_is_one_message(tmp_path: Path) -> None:
    """Bytes altered anywhere in it, letters altered in what it says, its end missing."""
    path = tmp_path / "t.sqlite3"
    job, _ = kept_study(path)
    whole = path.read_bytes()
    draw, count = random.Random(turns.turn()), 120 if turns.turn() == turns.ALL else 40
    words = [b"COMPLETE", b"MINIMIZE", b"FINITE", b"IntDistribution", b"low", b"values", b"measured", b"{", b"2"]
    places = {word: [m.start() for m in re.finditer(re.escape(word), whole)] for word in words}
    refused = 0
    for turn in range(count):
        content = bytearray(whole)
        if turn % 2:
            word = draw.choice(words)
            at = draw.choice(places[word])
            content[at] ^= 1 << draw.randrange(7)
        else:
            at = draw.randrange(len(content))
            content[at : at + 8] = draw.randbytes(8)
        path.write_bytes(content[: draw.randrange(len(content))] if turn % 10 == 0 else content)
        try:
            with storage.failures_of(path):
                kept = storage.open_storage(path)
                write_report(kept, "avx2", tmp_path / "no.lock", None)
                storage.ask(storage.open_study(kept, job, "avx2", "measured", 0), job.space)
        except UserError as e:
            assert str(path) in e.message
            refused += 1
    assert refused > count // 6
