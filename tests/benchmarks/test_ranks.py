"""The benchmark of ranks: its parts are those of a step, done by all ranks, and it times one process, too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import ranks
from tcomp.machine.cpu import detect
from tcomp.model.request import Sharing
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.distributed.shares import step_of
from tests.reference.ranks import Links, on_ranks, ranked, step_for


@pytest.mark.parametrize(("zero", "last"), [(0, "sums to all"), (1, "parameters to all")])
def test_the_parts_move_the_bytes_that_they_say(zero: int, last: str, objects: Path) -> None:
    step = step_for(Sharing(2, zero))

    def work(links: Links) -> list[str]:
        executor = ranked(CpuExecutor(step_of(step, links.rank), detect(), 1, objects), links)
        parts = ranks._parts(executor)
        for run in parts.values():
            assert ranks._timed(run, executor, None, 1) >= 0
        executor.close()
        return list(parts)

    own, other = on_ranks(2, work)
    assert own == other and own == ["shares to their ranks (18.5 KiB)", "sum", f"{last} (18.5 KiB)"]


def test_one_process_has_the_step_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kernels: Path
) -> None:
    monkeypatch.setenv("TCOMP_CACHE", str(kernels))
    sizes = ["--dim", "L=1", "--dim", "C=16", "--dim", "H=2", "-B", "2", "-T", "16"]
    monkeypatch.setattr(sys, "argv", ["ranks.py", *sizes, "--steps", "1", "--threads", "1"])
    ranks.main()
    head, line = capsys.readouterr().out.splitlines()
    assert head.startswith("gpt2 tiny, 1 ranks, ZeRO-0") and line.split()[0] == "step" and float(line.split()[1]) > 0
