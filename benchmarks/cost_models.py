"""How well do the static models rank? The CPU's against times measured here, the GPU's against published speeds.

    python benchmarks/cost_models.py [--op linear ...] [--points 24] [-B 4] [-T 64] [--config 124M]

A search looks at points that the model likes and at neighbours of good ones, so its trials say little about the model.
Here points are drawn at random from a schedule's space, those that do not lower or would spill left out; each is
checked against the oracle and timed in turns with the default, slow ones too. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys

from tcomp.autotune.backend_cpu import CpuBackend
from tcomp.autotune.child import Failure
from tcomp.autotune.contest import ratio
from tcomp.autotune.evaluator import Evaluator, Subject
from tcomp.autotune.instances import Instance, facts_of, instances_of, schedule_of
from tcomp.autotune.registers import spill_of
from tcomp.autotune.space import spaces_of
from tcomp.autotune.spearman import spearman
from tcomp.cli import common
from tcomp.cli.limits import cores
from tcomp.cli.roofline_gpu import ladder_text
from tcomp.dsl.ast import Module
from tcomp.dsl.errors import TcError
from tcomp.errors import UserError
from tcomp.machine.cpu import detect
from tcomp.model.request import StepRequest
from tcomp.runtime.cache import cache_folder
from tcomp.schedule.lower import lower

ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--config", default="124M")
    parser.add_argument("-B", "--batch", type=int, default=4)
    parser.add_argument("-T", "--length", type=int, default=64)
    parser.add_argument("--op", action="append", help="ops [default: linear, attention]")
    parser.add_argument("--points", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    module = common.load_module(args.model)
    name = common.only_model(module, args.model).name
    wanted = args.op or ["linear", "attention"]
    seen = set()
    request = StepRequest(name, args.config, {"B": args.batch, "T": args.length})
    for instance in instances_of(module, request, detect()):
        if instance.op.name in wanted and instance.op.name not in seen:
            seen.add(instance.op.name)
            for line in correlations(module, instance, args.points, args.seed):
                print(line, flush=True)
    print(f"static GPU model against published speeds:\n{ladder_text()}")


def correlations(module: Module, instance: Instance, points: int, seed: int) -> list[str]:
    """One line per kernel with a choice."""
    backend = CpuBackend(detect(), cores(), cache_folder("kernels"))
    machine, threads = backend.machine, backend.threads
    dims = dict(instance.dims)
    default = lower(instance.op, module, dims, machine, threads).kernels
    schedule = schedule_of(instance.op, module, dims, machine, threads)
    lines = []
    evaluator = Evaluator(Subject(module, instance.op, instance.dims, backend, seed))
    try:
        for space in spaces_of(schedule, facts_of(instance, machine, threads)):
            at = next(i for i, k in enumerate(default) if k.span == space.span)
            evaluator.build("default", {}, at)
            guesses, times = [], []
            for values in itertools.islice(space.points(seed), 40 * points):
                chosen = space.chosen(values)
                try:
                    kernel = lower(instance.op, module, dims, machine, threads, chosen).kernels[at]
                except TcError:
                    continue
                if spill_of(kernel, default[at], machine) or isinstance(evaluator.build("one", chosen, at), Failure):
                    continue
                found = evaluator.times(("default", "one"), ROUNDS, 10.0, None)
                if isinstance(found, Failure):
                    continue
                guesses.append(backend.estimate(kernel))
                times.append(ratio(found[1], found[0]).value)
                if len(times) == points:
                    break
            near = [i for i, t in enumerate(times) if t < 1.25]
            close = spearman([guesses[i] for i in near], [times[i] for i in near]) if len(near) >= 6 else None
            lines.append(
                f"{instance.key} [{space.kernel}]: rank correlation {spearman(guesses, times):.2f} over {len(times)} "
                f"random points, times {min(times):.2f} to {max(times):.2f} of the default's (median "
                f"{statistics.median(times):.2f}); "
                f"{f'{close:.2f}' if close is not None else '-'} over the {len(near)} within 1.25"
            )
    finally:
        evaluator.close()
    return lines


if __name__ == "__main__":
    try:
        main()
    except UserError as e:
        sys.exit(str(e))
