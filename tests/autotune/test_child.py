"""The process that answers a search's requests: what it starts with."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import pytest

from tcomp.autotune.child import Child, serve_requests
from tcomp.errors import UserError
from tcomp.runtime.cuda.driver import CudaError
from tcomp.runtime.vgpu.errors import PtxError


class Environment:
    def answer(self, request: Any) -> Any:
        if request == "long":
            time.sleep(60)
        if request == "deaf":
            return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        return gc.get_threshold() if request == "cycles" else os.environ.get(request)

    def close(self) -> None:
        pass


def serve(pipe: Connection, subject: Any) -> None:
    serve_requests(pipe, Environment)


def test_numpy_has_one_thread_there_and_cycles_are_seldom_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of a BLAS that wait for work beside what is timed made it take up to twice its time."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    child = Child(None, serve)
    try:
        assert [child.ask(n, 60.0) for n in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")] == ["1", "1"]
        assert child.ask("cycles", 60.0) == (100_000, 50, 10)
        assert child.ask("deaf", 60.0) and signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        child.close()
    assert os.environ.get("OPENBLAS_NUM_THREADS") is None and os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("error", [UserError("m", "h"), CudaError("NO_DEVICE", "m", "h"), PtxError("m", 3, "h")])
def test_errors_come_back_as_they_are(error: UserError) -> None:
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error) and str(found) == str(error) and vars(found) == vars(error)


@pytest.mark.parametrize("delay", [0.0, 0.8])
def test_ctrl_c_ends_a_request_at_once(delay: float) -> None:
    """While the process is being started, and while it is at work; the next request has a new one."""
    child = Child(None, serve)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    start = child._context.Process.start
    try:
        if delay:
            child.ask("cycles", 60.0)
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            child._context.Process.start = lambda p: (os.kill(os.getpid(), signal.SIGINT), start(p))
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            child.ask("long", 60.0)
        child.close()
        assert time.monotonic() - began < 4.5
        child._context.Process.start = start
        assert child.ask("cycles", 60.0)
    finally:
        child._context.Process.start = start
        signal.signal(signal.SIGINT, before)
        child.close()
