"""What a memory budget costs: the step of a model without one and within it, in turns in one run.

    python benchmarks/memory_budget.py --config 124M -B 4 -T 256 [--budget 2450MiB] [--rounds 4] [--steps 2]

Without --budget the second step is the one that a CPU gets by default, with what costs next to nothing computed again.

Both programs are tcomp, with the same weights and batches; their losses must be equal bit for bit. Printed are the
planned and the measured memory, and the cost, predicted and measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tcomp.cli import common
from tcomp.cli.bench import ENTRY
from tcomp.cli.limits import parse_memory
from tcomp.model.request import StepRequest
from tcomp.runtime.bench.build import workload_of, write_folder
from tcomp.runtime.bench.noise import Noise, processor_time
from tcomp.runtime.bench.running import Running
from tcomp.runtime.bench.workload import save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--config", default="124M")
    parser.add_argument("-B", "--batch", type=int, default=4)
    parser.add_argument("-T", "--length", type=int, default=256)
    parser.add_argument("--budget", default="", help="for example 2450MiB")
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="steps a turn")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = common.device_for(threads=args.threads)
    unlimited = StepRequest(args.model, args.config, {"B": args.batch, "T": args.length}, lock="none")
    limit, recompute = parse_memory(args.budget)
    free = common.build_step(unlimited, device)
    tight = common.build_step(replace(unlimited, memory_limit=limit, recompute=recompute), device, free=False)
    if tight.step.recompute is None:
        raise SystemExit(f"the step fits {args.budget} as it is" if args.budget else "nothing is computed again")
    rows = []
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memory-budget-")))
        workload = workload_of(free.step, free.request, threads=free.threads)
        write_folder(workload, free.step, place)
        second = place / "budget"
        second.mkdir()
        for name in ("weights.f32", "batches.i32"):
            (second / name).symlink_to(place / name)
        save(replace(workload, request=tight.request), second)
        running = []
        for folder in (place, second):
            running.append(stack.enter_context(Running("tcomp", workload, folder, place / "caches", ENTRY)))
            running[-1].run(1)
            running[-1].pause()
        seconds: list[list[float]] = [[], []]
        losses: list[list[float]] = [[], []]
        noise, peaks = Noise(), [0, 0]
        for turn in range(args.rounds):
            for i in (0, 1) if turn % 2 == 0 else (1, 0):
                own, before = running[i].cpu_seconds(), processor_time()
                running[i].go_on()
                answer = running[i].run(args.steps)
                running[i].pause()
                noise.add(before, processor_time(), running[i].cpu_seconds() - own)
                seconds[i] += answer["seconds"]
                losses[i] += answer["losses"]
                peaks[i] = answer["peak_rss"]
            print(f"round {turn + 1} of {args.rounds}", file=sys.stderr, flush=True)
    if losses[0] != losses[1]:
        raise SystemExit("the losses differ: a budget must not change any bit")
    r = tight.step.recompute
    medians = [statistics.median(s) for s in seconds]
    print("| budget | planned, MiB | peak RSS, MiB | step, median ms | least ms |\n|---|---:|---:|---:|---:|")
    for label, planned, i in (("unlimited", r.before, 0), (args.budget or "default", r.after, 1)):
        rows.append({"budget": label, "planned": planned, "peak_rss": peaks[i], "seconds": seconds[i]})
        print(
            f"| {label} | {planned / 2**20:.0f} | {peaks[i] / 2**20:.0f} | {medians[i] * 1e3:.0f} "
            f"| {min(seconds[i]) * 1e3:.0f} |"
        )
    cost, least = medians[1] / medians[0] - 1, min(seconds[1]) / min(seconds[0]) - 1
    print(f"\nCost predicted {r.share:.1%}; measured {cost:+.1%} by medians, {least:+.1%} by least times.")
    print(f"Computed again: {', '.join(f'{x.op} ({x.layers} layers)' for x in r.rows)}. Losses equal bit for bit.")
    print(f"Processor time taken by others: {noise.share:.0%}.")
    if args.json:
        args.json.write_text(json.dumps({"predicted": r.share, "rows": rows, "others": noise.share}, indent=1) + "\n")


if __name__ == "__main__":
    main()
