"""What the tests of the command line share."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

TINY = [
    "--dim", "L=1", "--dim", "H=2", "--dim", "C=16", "-B", "2", "-T", "16",
    "--threads", "1", "--eval-batches", "2", "--sample", "8",
]  # fmt: skip


@dataclass
class Result:
    code: int
    out: str
    error: str


OP = "op double(X: f32[M, N]) -> Y: f32[M, N]:\n  Y[m, n] = X[m, n] * 2.0\n"

Tcomp = Callable[..., Result]


def refused(result: Result, *words: str) -> None:
    """Exit code 2, the words in the message, no traceback, nothing else."""
    assert result.code == 2, result
    flat = re.sub(r"[\s│]+", " ", result.error)
    for word in words:
        assert word in flat, result.error
    assert "Traceback" not in result.error
