"""Outside proposers: what is asked, what may be told, and that proposals pass the same gates."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tcomp.autotune import proposals
from tcomp.autotune.apply import Applied
from tcomp.autotune.backend_cpu import CpuBackend
from tcomp.autotune.instances import Instance
from tcomp.autotune.judge import Choice, Job, Outcome, Verdict
from tcomp.autotune.judge_measured import MeasuredJudge
from tcomp.autotune.lockfile import read_lock
from tcomp.autotune.plan import Plan
from tcomp.autotune.schedule_text import schedule_from
from tcomp.autotune.space import Values
from tcomp.dsl.ast import Schedule
from tcomp.dsl.printer import print_schedule
from tcomp.errors import UserError
from tcomp.machine.cpu import detect
from tcomp.schedule.lower import lower
from tests.autotune.support import SHAPE, search_on
from tests.cli.support import Result, Tcomp, refused

DOC = Path(__file__).resolve().parents[2] / "docs" / "proposers.md"
TINY = ["gpt2", "--dim", "L=1", "-B", "1", "-T", "24", "--threads", "1", "--ops", "attention", "--storage", "t.sqlite3"]
GOOD = """schedule attention on cpu:
  b, h -> core(1)
  q -> seq(32) / unroll(2) / vec
  k -> seq(32) / unroll(4) / vec
  d -> seq
  e -> unroll(4) / vec
  order q, k
  inline s
  fuse qk, m, l, o at k
"""


def lines(result: Result) -> list[dict[str, object]]:
    assert result.code == 0, result
    return [json.loads(line) for line in result.out.splitlines()]


@pytest.mark.slow
def test_a_conversation(tcomp: Tcomp, tmp_path: Path) -> None:
    (question,) = lines(tcomp("tune", *TINY, "--ask"))
    assert question["basis"] == "measured" and question["best"] is None and question["history"] == []
    assert str(question["op"]).startswith("op attention(") and "fuse qk, m, l, o at k" in str(question["schedule"])
    assert {p["name"] for p in question["parameters"]} == {"BQ", "BK"}  # type: ignore[union-attr, attr-defined]
    job = question["job"]
    told = [
        {"job": job, "values": {"BQ": 32, "BK": 32}},
        {"job": job, "values": {"BQ": 31}},
        {"job": job, "schedule": GOOD},
        {"job": job, "schedule": GOOD.replace("k -> seq(32)", "k -> core")},
        {"job": job, "schedule": GOOD.replace("attention", "linear")},
    ]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(t) + "\n" for t in told))
    verdicts = lines(tcomp("tune", *TINY, "--tell", "answers.jsonl"))
    assert [v["kind"] in ("timed", "slow") for v in verdicts] == [True, False, True, False, False]
    assert verdicts[1]["kind"] == "where" and "31 is not among its choices" in str(verdicts[1]["reason"])
    assert verdicts[3]["kind"] == verdicts[4]["kind"] == "illegal"
    assert "schedule attention on cpu:" in str(verdicts[4]["reason"])
    (again,) = lines(tcomp("tune", *TINY, "--ask"))
    kinds = [h["kind"] for h in again["history"]]  # type: ignore[union-attr, attr-defined]
    assert kinds[0] == "default" and kinds.count("illegal") == 2 and len(kinds) == 5
    assert list(tmp_path.glob("gpt2.*.lock")), "what was told is settled"


class Oracle(MeasuredJudge):
    """A judge that runs nothing and finds one schedule twice as fast as all else."""

    def start(self, instance: Instance, patience: float = 0.0) -> list[float]:
        return [1e-3] * 8

    def evaluate(self, job: Job, values: Values, patience: float, schedule: Schedule | None = None) -> Verdict:
        fast = schedule is not None and "seq(32)" in print_schedule(schedule)
        return Verdict(0.5 if fast else 0.9, 1e-3)

    def confirm(self, instance: Instance, incumbent: Choice, choice: Choice, patience: float = 0.0) -> Outcome:
        better = choice != incumbent and choice.schedule is not None
        return Outcome(1e-3, 5e-4 if better else 1e-3, 0.01, better)


def test_a_schedule_that_wins_is_carried_by_the_lockfile_and_lowered(tmp_path: Path) -> None:
    search = search_on(tmp_path, Plan(SHAPE, ops=("attention",)))
    search.judge = Oracle(search.module, CpuBackend(detect(), 1, tmp_path), 0)
    (job,) = search.jobs()
    lines = [json.dumps({"job": job.label, "schedule": GOOD})]
    told = proposals.tell(search, [*lines, "{"])
    assert next(told)["value"] == 0.5
    with pytest.raises(UserError, match="line 2: not JSON"):
        next(told)
    assert search.lock.exists(), "a line that is no proposal takes nothing from those before it"
    lock = read_lock(search.lock)
    carried = lock.entries[job.key]
    assert carried.text.startswith("schedule attention on cpu:") and carried.basis == "measured"
    applied = Applied(lock, search.module, detect(), 1)
    instance = job.instance
    given = schedule_from(GOOD, instance.op, search.module, detect())
    assert applied.lower(instance.op, search.module, dict(instance.dims)) == lower(
        instance.op, search.module, dict(instance.dims), detect(), 1, {}, given
    )
    assert not applied.stale
    before = search.lock.read_text()
    list(proposals.tell(search, lines))
    assert search.lock.read_text() == before, "the incumbent is not written again"


NO_PROPOSALS = {
    "{": ["line 1: not JSON"],
    '{"job": "x"}': ["line 1: not a proposal"],
    '{"job": "x", "values": {"BQ": true}}': ["not a proposal"],
    '{"job": "x", "values": {}, "schedule": ""}': ["not a proposal"],
    '{"job": "x", "values": {}}': ["there is no job 'x'", "--ask"],
}


def test_what_is_no_proposal_is_refused(tcomp: Tcomp, tmp_path: Path) -> None:
    """By the command as by what it calls."""
    search = search_on(tmp_path, Plan(SHAPE, ops=("attention",)))
    for line, words in NO_PROPOSALS.items():
        with pytest.raises(UserError) as refusal:
            list(proposals.tell(search, [line]))
        assert all(w in f"{refusal.value.message}\n{refusal.value.hint}" for w in words)
    (tmp_path / "a.jsonl").write_text(line + "\n")
    refused(tcomp("tune", *TINY, "--tell", "a.jsonl"), *words)


@pytest.mark.slow(seconds=14)
def test_the_documented_proposer_runs(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.S)
    (tmp_path / "proposer.py").write_text(program)
    out = subprocess.run(
        [sys.executable, "proposer.py", "2", *TINY], cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    turns = [line.split()[0] for line in out.stdout.splitlines()]
    assert set(turns) == {"0", "1"}, "the second knows what came of the first"
    assert all(kind in out.stdout for kind in ("attention",)) and ("timed" in out.stdout or "slow" in out.stdout)
    whole = [line for line in out.stdout.splitlines() if line.endswith("(schedule)")]
    assert whole and not any("illegal" in line for line in whole)
