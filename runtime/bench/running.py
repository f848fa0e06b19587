"""A program under measurement as its parent sees it: started, told to do steps, stopped while others run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tcomp.errors import UserError
from tcomp.runtime.bench.workload import Workload

_PERIOD = 0.02
"""Seconds between two looks at a process's memory."""


class Running:
    """A child process. `first` is its answer to its first step: losses, phases, the time since it was started.

    `entry` is the module that is the process. `caches` is the folder of everything that the program keeps for a later
    start: empty for a cold one.
    """

    def __init__(
        self, name: str, workload: Workload, folder: Path, caches: Path, entry: str, watch: bool = False
    ) -> None:
        self.name = name
        environment = dict(os.environ)
        environment["OMP_NUM_THREADS"] = str(workload.threads)
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(caches / "inductor")
        environment["TRITON_CACHE_DIR"] = str(caches / "triton")
        environment["TCOMP_CACHE"] = str(caches / "tcomp")
        environment["XDG_CACHE_HOME"] = str(caches)
        reading, writing = os.pipe()
        started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", entry, name, str(folder), str(started), str(writing)],
            stdin=subprocess.PIPE,
            stdout=2,  # what a program prints is no result
            pass_fds=[writing],
            env=environment,
            text=True,
            start_new_session=True,  # Ctrl-C is the parent's
        )
        os.close(writing)
        self.answers = os.fdopen(reading)
        self.memory: list[tuple[float, int]] = []
        self._watching = threading.Event()
        self._watcher = threading.Thread(target=self._watch, args=(started,), daemon=True)
        if watch:
            self._watching.set()
            self._watcher.start()
        try:
            self.first = self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Running:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def run(self, steps: int) -> dict[str, Any]:
        """Do `steps` steps and wait for them."""
        return self._ask(f"run {steps}")

    def profile(self) -> dict[str, Any]:
        """tcomp only: kernels' shares and the plan."""
        return self._ask("profile")

    def pause(self) -> None:
        """Take no processor time at all until `go_on`."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Undo `pause`."""
        self._signal(signal.SIGCONT)

    def stop_watching(self) -> None:
        """No more looks at the memory."""
        self._watching.clear()

    def cpu_seconds(self) -> float:
        """Processor time of the program so far, 0 where /proc does not tell."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the program, by force when it does not end itself."""
        self.stop_watching()
        if self.process.poll() is None:
            self.go_on()
            try:
                self.process.communicate("stop\n", timeout=20)
            except (subprocess.TimeoutExpired, KeyboardInterrupt, OSError):
                self._signal(signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.answers.close()

    def _signal(self, number: signal.Signals) -> None:
        """To the program and whatever it started (torch.compile has compiler processes)."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended: the missing answer says so
            self.process.stdin.write(f"{command}\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.answers.readline()
        if not line:
            status = self.process.wait()
            how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            raise UserError(f"the program '{self.name}' {how}", "its own messages are above; is there enough memory?")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise UserError(f"{self.name}: {found['error']}", found["hint"])
        return found

    def _watch(self, started: float) -> None:
        """Seconds since the start and resident bytes, until told to stop."""
        page = os.sysconf("SC_PAGE_SIZE")
        path = Path(f"/proc/{self.process.pid}/statm")
        while self._watching.is_set():
            try:
                resident = int(path.read_text().split()[1]) * page
            except (OSError, IndexError):
                return
            self.memory.append((time.monotonic() - started, resident))
            time.sleep(_PERIOD)
