"""Does tuning pay on this CPU? A model's step with the schedules' own values and with a lockfile's, in turns.

    python benchmarks/tuning_cpu.py [--model gpt2] [--config 124M] [-B 4] [-T 64] [--lock FILE] [--rounds 12]

First `tcomp tune` writes the lockfile (gpt2.avx2.lock or the like). Then this starts two programs with equal weights
and batches, lets them take turns of a few steps, each stopped while the other runs, and reports the ratio of their
times with its 95 % interval. Their losses must agree. Leave the machine alone meanwhile. `--against` names another
lockfile instead of the schedules' own values; with `--lock none` both are the same, which shows the noise.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tcomp.autotune.contest import Ratio, ratio
from tcomp.autotune.lockfile import find_lock
from tcomp.cli import common
from tcomp.cli.bench import ENTRY
from tcomp.cli.limits import cores
from tcomp.errors import UserError
from tcomp.model.request import StepRequest
from tcomp.runtime.bench.build import workload_of, write_folder
from tcomp.runtime.bench.running import Running
from tcomp.runtime.bench.workload import Workload, save

RESULTS = Path(__file__).resolve().parent / "results"
AGREE = 1e-4
"""Greatest relative difference of the losses of one step."""


def take_turns(workloads: list[Workload], folders: list[Path], rounds: int, steps: int) -> list[list[float]]:
    """Median seconds of a step, per program and turn. UserError when the losses differ."""
    programs: list[Running] = []
    times: list[list[float]] = [[] for _ in workloads]
    losses: list[list[float]] = [[] for _ in workloads]
    try:
        for workload, folder in zip(workloads, folders, strict=True):
            programs.append(Running("tcomp", workload, folder, folder / "caches", ENTRY))
            programs[-1].pause()
        for turn in range(rounds + 1):  # the first is for warming up
            order = range(len(programs)) if turn % 2 else reversed(range(len(programs)))
            for i in order:
                programs[i].go_on()
                done = programs[i].run(steps)
                programs[i].pause()
                losses[i] += done["losses"]
                if turn:
                    times[i].append(statistics.median(done["seconds"]))
            print(f"turn {turn} of {rounds}", file=sys.stderr, flush=True)
    finally:
        for program in programs:
            program.close()
    for a, b in zip(*losses, strict=True):
        if not abs(a - b) <= AGREE * abs(a):
            raise UserError(f"the two steps do not agree: losses {a} and {b}", "run `tcomp tune --check`")
    return times


def line(what: str, r: Ratio, times: list[list[float]]) -> str:
    own, tuned = (1e3 * statistics.median(t) for t in times)
    return (
        f"{what}: own values {own:.1f} ms, tuned {tuned:.1f} ms, tuned / own {r.value:.3f} "
        f"(95 % interval {r.low:.3f} to {r.high:.3f}): {1 - r.value:+.1%} time saved"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--config", default="124M")
    parser.add_argument("-B", "--batch", type=int, default=4)
    parser.add_argument("-T", "--length", type=int, default=64)
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--lock", default="", help="the lockfile [default: the one that tcomp build would use]")
    parser.add_argument("--against", default="none", help="a lockfile, or none: the schedules' own values")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=3, help="steps a turn")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    args = parser.parse_args()
    module = common.load_module(args.model, args.dtype)
    file = common.find_file(args.model)
    device = common.device_for("cpu", threads=args.threads)
    lock = find_lock(file, device.machine.name, args.lock or None)
    if lock is None and args.lock != "none":
        raise UserError(f"there is no lockfile for {device.machine.name}", f"run: tcomp tune {args.model} --config ...")
    names = [args.against, str(lock.resolve()) if lock else "none"]
    built = common.build_step(
        StepRequest(args.model, args.config, {"B": args.batch, "T": args.length}, precision=args.dtype, lock=names[1]),
        device,
        module=module,
    )
    used = f"{built.tuned} op instances by {built.lock}" if built.lock else "no lockfile"
    print(f"{args.model} {args.config} B={args.batch} T={args.length} {args.dtype} on {device.description}; {used}")
    workload = workload_of(built.step, built.request, threads=args.threads or cores())
    with tempfile.TemporaryDirectory(prefix="tcomp-tuning-", ignore_cleanup_errors=True) as place:
        folders = [Path(place) / name for name in ("own", "tuned")]
        for folder in folders:
            folder.mkdir()
        write_folder(workload, built.step, folders[1])
        for part in folders[1].iterdir():
            (folders[0] / part.name).symlink_to(part)
        workloads = [replace(workload, request=replace(workload.request, lock=name)) for name in names]
        for made, folder in zip(workloads, folders, strict=True):
            for part in folder.iterdir():
                if part.is_symlink() and part.suffix == ".json":
                    part.unlink()
            save(made, folder)
        del built
        times = take_turns(workloads, folders, args.rounds, args.steps)
    r = ratio(times[1], times[0])
    print(line("step", r, times))
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        found = {"command": shlex.join(["python", "benchmarks/tuning_cpu.py", *sys.argv[1:]]), "seconds": times,
                 "ratio": r.value, "low": r.low, "high": r.high}  # fmt: skip
        (RESULTS / f"{args.save}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as e:
        raise SystemExit(f"error: {e}") from e
