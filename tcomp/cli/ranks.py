"""`tcomp train` as one of several processes that torchrun has started: who speaks, what they must have in common.

    torchrun --nproc-per-node 2 -m tcomp train gpt2 ...

Rank 0 is the one that speaks, but for an error: then the first that fails does, and the others end in silence.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import typer

from tcomp.errors import UserError
from tcomp.runtime.device import CpuDevice
from tcomp.runtime.distributed.place import place_here
from tcomp.runtime.peers import ALONE, Peers

if TYPE_CHECKING:
    from tcomp.cli.common import Built
    from tcomp.cli.settings import TrainSettings
    from tcomp.model.request import StepRequest
    from tcomp.model.step import Step
    from tcomp.runtime.data import Data
    from tcomp.runtime.device import Device
    from tcomp.runtime.distributed.group import Group
    from tcomp.runtime.executor import Executor


@contextmanager
def session() -> Iterator[Group | None]:
    """The other processes, None where there are none. Ends the process where another one says why the run ends."""
    place = place_here()
    if place is None:
        yield None
        return
    from tcomp.runtime.distributed.group import Group

    group = Group(place)
    silent = False
    try:
        with ExitStack() as stack:
            if place.rank:
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            group.divide_cpus()
            yield group
    except (typer.Exit, SystemExit):
        raise
    except BaseException as e:
        for number in (signal.SIGTERM, signal.SIGINT):  # the launcher sends one when it sees that a process has ended
            signal.signal(number, signal.SIG_IGN)
        silent = not group.fails_first(e)
        if not silent:
            raise
    finally:
        group.close()
    if silent:
        raise typer.Exit(2)


def device_of(settings: TrainSettings, group: Group | None) -> Device:
    """The device of this process: where all ranks are told the same, its own."""
    from tcomp.cli.common import device_for
    from tcomp.cli.rank_devices import apart, own_device

    name = settings.device if group is None else own_device(settings.device, group.place)
    device = device_for(name, gpu=settings.gpu, threads=settings.threads, graph=settings.graph)
    return device if group is None else apart(group, device, settings.device, settings.exchange)


def ranks_text(settings: TrainSettings) -> str:
    """How a run is divided: `2 ranks with ZeRO-1`."""
    text = f"{settings.ranks} rank{'s' if settings.ranks > 1 else ''}"
    return text + (" with ZeRO-1" if settings.ranks > 1 and settings.zero else "")


def regrouped(settings: TrainSettings, ranks: int, threads_given: bool) -> TrainSettings:
    """A run's settings for another number of processes: as many sequences a step, in other micro-batches. UserError
    where those cannot be divided evenly."""
    if ranks == settings.ranks:
        return settings
    total = settings.ranks * settings.accumulation
    if total % ranks:
        known = ", ".join(str(n) for n in range(1, total + 1) if total % n == 0)
        raise UserError(
            f"{ranks} processes cannot share a step of the run evenly: micro-batches it has {total}",
            f"go on with as many processes as one of {known}",
        )
    threads = settings.threads if threads_given else 0
    return replace(settings, ranks=ranks, accumulation=total // ranks, threads=threads)


def built_by(group: Group | None, request: StepRequest, device: Device) -> Built:
    """The step, built by one rank of a machine, taken from the cache by the others."""
    from tcomp.cli.common import build_step

    if group is None:
        return build_step(request, device, to_run=True)
    if isinstance(device, CpuDevice):
        device.shared_by = group.neighbours
    # Others begin no kernels: they would wait for the first rank, which would wait for what they have begun.
    return group.first_beside(lambda: build_step(request, device, to_run=group.first_here, free=group.first_here))


def opened_by(group: Group | None, device: Device, step: Step, by: str = "gloo") -> tuple[Executor, Peers]:
    """The step on the device, and who it is divided among, who exchange by nccl or gloo; compiled by one rank of a
    machine for all."""
    if group is None:
        return device.open(step), ALONE
    from tcomp.cli.rank_devices import exchange_of
    from tcomp.runtime.distributed.executor import Inner, RankExecutor
    from tcomp.runtime.distributed.shares import step_of

    inner = cast(Inner, group.first_beside(lambda: device.open(step_of(step, group.rank))))
    try:
        group.join()
        executor = RankExecutor(inner, group, exchange_of(by, group, inner))
    except BaseException:
        inner.close()
        raise
    return executor, executor


def check_same(group: Group, settings: dict[str, Any], built: Built, data: Data, by: str) -> None:
    """UserError where this rank's run would be another one than rank 0's."""
    import numpy as np

    from tcomp import __version__
    from tcomp.cli.common import find_file
    from tcomp.cli.kept_steps import compiler_digest
    from tcomp.dsl.files import source_texts
    from tcomp.runtime.documents import read_small

    try:
        texts = json.dumps(sorted(source_texts(find_file(built.request.model)).values()))
        lock = read_small(built.lock) if built.lock is not None else ""
    except (OSError, ValueError) as e:
        raise UserError(f"{built.request.model}: cannot read it again: {e}", "leave the files as they are") from e
    own = ("run", "data", "device", "model", "init_from", "lock")
    group.check_same({
        "tcomp": f"{__version__} {compiler_digest()}",
        "numpy": np.__version__,
        "settings": json.dumps({k: v for k, v in settings.items() if k not in own}, sort_keys=True),
        "seed": str(settings["seed"]),
        "model's text": _digest(texts),
        "lockfile": _digest(str(lock)),
        "data": data.fingerprint,
        "machine": f"{built.device.kind} {built.machine.name}",
        "number of threads": str(built.threads),
        "way to exchange": by,
    })  # fmt: skip


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
