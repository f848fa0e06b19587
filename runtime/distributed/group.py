"""The ranks of one run over torch.distributed: the only module of training that imports torch.

Messages go by gloo, through host memory; what GPUs hold by NCCL, where it is there (`nccl.py`). What ranks say of
themselves at the start, and which of them failed first, goes through the launcher's key-value store, which outlives a
rank.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tcomp.errors import UserError
from tcomp.runtime.distributed.exchange import Array
from tcomp.runtime.distributed.nccl import NcclExchange
from tcomp.runtime.distributed.place import Place, among, cpus_here, keep_to_own_cpus, machine_here
from tcomp.runtime.distributed.pulse import Pulse
from tcomp.runtime.peers import PeerFailed

if TYPE_CHECKING:
    from tcomp.runtime.cuda.context import Context

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for another: longer than compiling, or a step, takes"""
_REACH = timedelta(minutes=5)
"""How long it looks for the launcher's store: an environment that an old launch has left names one that is gone"""
_LASTS = 10.0
"""Seconds of a wait before people are told of it"""
_FAILED = "failed"
_LAST_WORDS = 1.0
"""Seconds in which a rank that fails tells the others"""
T = TypeVar("T")


class Group:
    """All ranks, from `connect` to `close` (`exchange.Links`)."""

    def __init__(self, place: Place, patience: timedelta = PATIENCE) -> None:
        try:
            import torch
            import torch.distributed as dist
        except ImportError as e:
            raise UserError(
                "training by several processes goes through torch.distributed, and torch is not installed",
                "pip install tcomp[torch]",
            ) from e
        self.place, self._torch, self._dist, self._patience = place, torch, dist, patience
        self.neighbours = place.beside
        """how many ranks are on this machine, whoever has started them, once `divide_cpus` has found these"""
        self._first_here = place.rank - place.local
        """the rank of this machine that compiles first"""
        self._turns = 0
        self._pulse: Pulse | None = None
        # With --max-restarts the store still has all that was said before the ranks were started again.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        with self._reaching():
            store = next(dist.rendezvous("env://", timeout=min(patience, _REACH)))[0]
            self._launcher = dist.PrefixStore(f"attempt/{attempt}", store)
            self._store = dist.PrefixStore("tcomp", self._launcher)

    def divide_cpus(self) -> None:
        """Keep to this rank's part of the CPUs, which ranks of other launchers may have as well."""
        here = machine_here()
        machines = self.each("machine", here)
        self.neighbours, self._first_here = machines.count(here), machines.index(here)
        keep_to_own_cpus(among(self.place, self.each("cpus", cpus_here())))

    def join(self) -> None:
        """Open the ways between ranks. (Not before compilers are done: they are forked, and this starts threads.)

        All wait for all before, where one sees that another has failed: the ways would be waited for in silence."""
        self.each("here", "")
        with self._reaching():
            self._dist.init_process_group(
                "gloo", store=self._launcher, rank=self.rank, world_size=self.size, timeout=self._patience
            )

    @property
    def has_nccl(self) -> bool:
        """Whether torch can exchange what GPUs hold."""
        return bool(self._dist.is_nccl_available() and self._torch.cuda.is_available())

    def nccl(
        self, context: Context, arena: int, faults: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> NcclExchange:
        """NCCL's ways between all ranks, from and to the GPU of `context`, whose arena is at that address; `faults`
        reports what its driver says. Behind `join`."""
        # torch would end the process where a rank is gone; `pulse` finds that out, and we say so.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        torch, index = self._torch, context.gpu.index
        hint = "NCCL_DEBUG=INFO tells more; --exchange gloo does without NCCL"
        with self._reaching(hint), self._said_to_wait(f"NCCL reaches all GPUs ({hint})"):
            torch.cuda.set_device(index)
            device = torch.device("cuda", index)
            ways = self._dist.new_group(backend="nccl", timeout=self._patience, device_id=device)
        patience = self._patience.total_seconds()
        pulse = Pulse(self._store, self.rank, self.size, lambda: bool(self._store.check([_FAILED])), patience)
        self._pulse = pulse
        return NcclExchange(torch, ways, self.rank, self.size, context, arena, pulse.look, faults)

    @contextmanager
    def _reaching(
        self, hint: str = "look whether all are started, and whether MASTER_ADDR and MASTER_PORT are right"
    ) -> Iterator[None]:
        """What waits for others in native code. Ctrl-C ends the process there and then: Python would hear of it behind
        the wait only, and a run that has not begun has nothing to save."""
        before = signal.getsignal(signal.SIGINT)
        ours = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
        if ours:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            yield
        except (RuntimeError, ValueError) as e:
            raise PeerFailed(f"rank {self.rank} of {self.size} cannot reach the others: {_first_line(e)}", hint) from e
        finally:
            if ours:
                signal.signal(signal.SIGINT, before)

    @contextmanager
    def _said_to_wait(self, until: str) -> Iterator[None]:
        """A wait in native code that lasts is told of by another thread, and how to end it: Ctrl-C itself cannot say
        anything then."""
        text = f"rank {self.rank} of {self.size} waits until {until}; Ctrl-C ends it"
        told = threading.Timer(_LASTS, lambda: print(text, file=sys.stderr, flush=True))
        told.daemon = True
        told.start()
        try:
            yield
        finally:
            told.cancel()

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def size(self) -> int:
        return self.place.size

    def exchange(self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]]) -> None:
        """`exchange.Links.exchange`."""

        def run() -> None:
            works: list[Any] = []
            try:
                works += (self._dist.isend(self._bytes(a), r) for r, a in sends if a.size)
                works += (self._dist.irecv(self._bytes(a), r) for r, a in receives if a.size)
                while works:
                    works[-1].wait()
                    works.pop()
            finally:  # where a rank is gone, others' messages are still to come, into memory that is given back next
                works.clear()

        self._guarded(run)

    @property
    def first_here(self) -> bool:
        """Whether this rank makes what others of its machine then take from the cache."""
        return self.rank == self._first_here

    def first_beside(self, make: Callable[[], T]) -> T:
        """What `make` gives, first on one rank of each machine, whose caches then have what others need."""
        self._turns += 1
        key = f"made/{self._first_here}/{self._turns}"
        if not self.first_here:
            self._told(key)
        made = make()
        if self.first_here:
            self._say(key, "")
        return made

    def of_first(self, name: str, value: str) -> str:
        """Rank 0's value."""
        if self.rank:
            return self._told(name)
        self._say(name, value)
        return value

    def each(self, name: str, value: str) -> list[str]:
        """All ranks' values, in the order of the ranks."""
        self._say(f"{name}/{self.rank}", value)
        return [value if r == self.rank else self._told(f"{name}/{r}") for r in range(self.size)]

    def check_same(self, about: Mapping[str, str]) -> None:
        """UserError where this rank differs from rank 0 in what a run depends on: name -> value."""
        first = json.loads(self.of_first("about", json.dumps(dict(about))))
        found = [name for name in about if first.get(name) != about[name]]
        if found:
            raise UserError(
                f"rank {self.rank} and rank 0 do not have the same {', '.join(found)}",
                "start all ranks with the same command, on machines and installations that are alike",
            )

    def _say(self, key: str, value: str) -> None:
        self._guarded(lambda: self._store.set(key, value))

    def _told(self, key: str) -> str:
        """What another rank says under a key, once it does. (Asked again and again: a signal must get through.)"""
        value: list[str] = []

        def run() -> None:
            end = time.monotonic() + self._patience.total_seconds()
            while not self._store.check([key]):
                if self._store.check([_FAILED]):
                    raise RuntimeError("it has failed")
                if time.monotonic() > end:
                    raise RuntimeError(f"it has not answered for {self._patience}")
                time.sleep(0.02)
            value.append(self._store.get(key).decode())

        self._guarded(run)
        return value[0]

    def fails_first(self, error: BaseException) -> bool:
        """Whether this rank is the one to say why the run ends; who lost another waits a moment for that one's word."""
        with suppress(RuntimeError, ValueError):
            if isinstance(error, PeerFailed):
                end = time.monotonic() + _LAST_WORDS
                while time.monotonic() < end and not self._store.check([_FAILED]):
                    time.sleep(0.05)
            return int(self._store.add(_FAILED, 1)) == 1
        return not isinstance(error, PeerFailed)  # the store is gone, and with it the launcher

    def close(self) -> None:
        """Leave the group."""
        if self._pulse is not None:
            self._pulse.close()
        with suppress(RuntimeError, ValueError):
            if self._dist.is_initialized():
                self._dist.destroy_process_group()

    def _bytes(self, array: Array) -> Any:
        """A tensor over the array's memory."""
        assert array.flags.c_contiguous
        return self._torch.from_numpy(array.reshape(-1).view(np.uint8))

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except RuntimeError as e:
            raise PeerFailed(
                f"rank {self.rank} has lost another rank: {_first_line(e)}",
                "look for that one's message, or for a process that was killed (out of memory?)",
            ) from e


def _first_line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
