"""What ranks exchange in a step, and the whole step, timed.

    torchrun --nproc-per-node 2 benchmarks/ranks.py --config 124M -B 1 -T 64 --zero 1
    torchrun --nproc-per-node 8 benchmarks/ranks.py --config 124M -B 16 -T 1024 --device cuda [--exchange gloo]
    python benchmarks/ranks.py ...       # one process, for comparison: no exchange

Medians of `--steps` turns behind one that does not count, in milliseconds, all ranks beginning together. Each part is
waited for, the step as a whole once, so parts may add up to more than what they add to it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tcomp.amounts import bytes_text
from tcomp.cli.limits import parse_dims
from tcomp.cli.rank_devices import way
from tcomp.cli.ranks import built_by, device_of, opened_by, session
from tcomp.cli.settings import TrainSettings
from tcomp.model.step import Division
from tcomp.runtime.distributed.executor import RankExecutor
from tcomp.runtime.distributed.group import Group
from tcomp.runtime.initialise import initialise


def main() -> None:
    a = _arguments()
    with session() as group:
        settings = replace(
            TrainSettings(), model=a.model, config=a.config, batch=a.batch, length=a.length, precision=a.precision,
            device=a.device, gpu=a.gpu, threads=a.threads, zero=a.zero, exchange=a.exchange, dims=parse_dims(a.dim),
            ranks=1 if group is None else group.size,
        ).check()  # fmt: skip
        device = device_of(settings, group)
        by = "gloo" if group is None else way(settings.exchange, device, group)
        built = built_by(group, settings.request(), device)
        executor, peers = opened_by(group, device, built.step, by)
        initialise(executor, 1, built.threads)
        print(f"{built.name} {settings.config}, {peers.size} ranks, ZeRO-{settings.zero}, {device.description}")
        parts = _parts(executor) if isinstance(executor, RankExecutor) else {}
        for name, run in {**parts, "step": lambda: _step(executor)}.items():
            print(f"{name:32} {_timed(run, executor, group, a.steps):10.2f} ms", flush=True)
        executor.close()


def _step(executor: Any) -> None:
    with executor.batch() as inputs:
        for values in inputs.values():
            values[...] = 1
    executor.run_step("micro_first")


def _parts(executor: RankExecutor) -> dict[str, Callable[[], None]]:
    """The parts of a step that are for the sake of several ranks."""
    d: Division = executor.division
    spread = [(rows.row(executor.rank), rows) for rows in d.spread]
    sent = sum(rows.bytes for rows, _ in d.scattered) * (d.ranks - 1)
    given = sum(rows.bytes for rows in d.spread) * (d.ranks - 1)
    return {
        f"shares to their ranks ({bytes_text(sent)})": lambda: executor.exchange.scatter(d.scattered),
        "sum": lambda: executor.inner.run("sum"),
        f"{'parameters' if d.zero else 'sums'} to all ({bytes_text(given)})": lambda: executor.exchange.gather(spread),
    }


def _timed(run: Callable[[], None], executor: Any, group: Group | None, turns: int) -> float:
    """Milliseconds."""
    times = []
    for turn in range(turns + 1):
        executor.wait()
        if group is not None:
            executor.joined([0.0])
        began = time.perf_counter()
        run()
        executor.wait()
        if turn:
            times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", nargs="?", default="gpt2")
    p.add_argument("--config", default="tiny")
    p.add_argument("-B", "--batch", type=int, default=8)
    p.add_argument("-T", "--length", type=int, default=128)
    p.add_argument("--dim", action="append", default=[])
    p.add_argument("--precision", default="")
    p.add_argument("--device", default="cpu")
    p.add_argument("--gpu", default="")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--zero", type=int, choices=(0, 1), default=0)
    p.add_argument("--exchange", default="")
    p.add_argument("--steps", type=int, default=9)
    return p.parse_args()


if __name__ == "__main__":
    main()
