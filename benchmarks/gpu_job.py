"""What a section of gpu_acceptance.py is given, and cases that a section takes one by one, each able to fail alone.

A fault in a kernel ends the context, and a kernel may never end: the notes say which case has begun, so that the
section can be started again behind it (`Lost`, `--skip`).
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from tcomp.runtime.cuda.device import CudaDevice
from tcomp.runtime.cuda.driver import CudaError

Item = dict[str, Any]
"""`kind` is "row" (of the section's table; `good` False where something is wrong) or what else a section keeps."""
C = TypeVar("C")
P = TypeVar("P")
AGAIN = 75
"""Exit status of a section whose context was lost: it goes on behind the case in another process."""

FAULTS = (
    "illegal memory access", "misaligned address", "unspecified launch failure", "illegal instruction",
    "device-side assert", "hardware stack error", "invalid program counter",
)  # fmt: skip
"""What PyTorch says of a fault"""


@dataclass
class Job:
    """`skip`: how many of the section's cases are done or given up. `predicted`: kernel -> seconds of each case, from
    a file. `predictions`: a file of gpu_predictions.py, for whole steps, which are in `precision`."""

    device: CudaDevice
    config: str
    batch: int
    length: int
    deadline: float
    skip: int = 0
    predicted: dict[str, dict[str, float]] = field(default_factory=dict)
    precision: str = "bf16"
    predictions: Path | None = None
    cut: bool = False

    @property
    def real(self) -> bool:
        return self.device.kind == "cuda"

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def over(self) -> bool:
        """Whether the time is used up; noted, for the report."""
        self.cut = self.cut or time.monotonic() > self.deadline
        return self.cut


class Skip(Exception):
    """The section cannot run here; the reason."""


class Lost(Exception):
    """A fault has ended this process's context."""


def in_turn(
    job: Job,
    cases: Sequence[C],
    prepare: Callable[[C], P],
    run: Callable[[C, P], Iterator[Item]],
    first: Callable[[], Iterator[Item]] | None = None,
) -> Iterator[Item]:
    """What `run` says of each case, and `first` before all. `prepare` needs no GPU and is done for all cases in other
    processes meanwhile; it must be a function of a module. An exception is a row that is wrong."""
    left = list(enumerate(cases))[job.skip :]
    pool = None
    if job.real:
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # (of the processes that are started)
        workers = max(1, min(os.cpu_count() or 1, 14, len(left)))
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        ready: dict[int, Future[P]] = {n: pool.submit(prepare, c) for n, c in left} if pool else {}
        if first is not None:
            yield from first()
        for number, case in left:
            if job.over():
                return
            before = len(job.device.findings())
            try:
                made = _made(job, ready[number], prepare, case) if pool else prepare(case)
                if made is None:
                    return
                yield {"kind": "begin", "number": number, "what": str(case)}
                for item in run(case, made):
                    found = len(job.device.findings()) - before
                    yield item | ({"findings": found, "good": False} if found else {})
            except Exception as e:
                yield {"kind": "row", "what": str(case), "error": reason(e), "good": False}
                if lost(e):
                    raise Lost from e
            yield {"kind": "done"}
    finally:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


def _made(job: Job, ready: Future[P], prepare: Callable[[C], P], case: C) -> P | None:
    """What was prepared for a case, here where the processes for that have died; nothing when the time is used up."""
    while not job.over():
        try:
            return ready.result(0.2)
        except TimeoutError:
            if ready.done():
                raise  # (the preparation's own)
        except (BrokenExecutor, CancelledError):
            return prepare(case)
    return None


def lost(e: BaseException) -> bool:
    """Whether nothing more can be done in this context: a fault, as our driver calls or PyTorch's report it."""
    return (isinstance(e, CudaError) and e.sticky) or any(fault in str(e) for fault in FAULTS)


def reason(e: BaseException) -> str:
    """An exception in a line."""
    text = " ".join(str(e).split())
    return f"{type(e).__name__}: {text}"[:300]


def guarded(what: Item, rows: Iterable[Item]) -> Iterator[Item]:
    """The rows; where making them fails, one more with the reason: what comes after them is still tried."""
    try:
        yield from rows
    except Skip:
        raise
    except Exception as e:
        traceback.print_exc()
        yield {"kind": "row", **what, "error": reason(e), "good": False}
