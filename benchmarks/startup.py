"""From the start of the process to the end of step 1: `tcomp train` by stages, and PyTorch eager beside it.

    python benchmarks/startup.py [--config 124M] [-B 4] [-T 64] [--rounds 5] [--threads N] [--no-eager] [--cold]

Each start is a process of its own, the two programs in turns; medians, least and greatest in seconds. tcomp's is the
command itself, its stages taken where they begin and end (functions wrapped from outside). Eager's is the program of
`tcomp bench`, which reads its weights from a file. The cache is warm, or with `--cold` empty before each start of
tcomp. A later step is timed too, so that what a start costs beyond the step can be read off.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from tcomp.errors import UserError
from tcomp.model.request import StepRequest

STEPS = 4
"""Of which the last tells how long a step takes when it is not the first. (The second one finds nothing left of an
update, the third makes the list of what is.)"""
LAST = "step"
"""The stage of a step's end."""


def child(started: float, out: Path, arguments: list[str]) -> None:
    """`tcomp` with `arguments`, in this process; the stages go to `out` as JSON after the last step."""
    marks: list[tuple[str, float]] = []

    def mark(name: str) -> None:
        marks.append((name, time.monotonic() - started))

    def ends(where: Any, name: str, stage: str, first: Callable[..., bool] = lambda *_: True) -> None:
        """Wrap where.name: `stage` ends when it returns."""
        original = getattr(where, name)

        @wraps(original)
        def wrapped(*args: Any, **named: Any) -> Any:
            result = original(*args, **named)
            if first(*args):
                mark(stage)
            return result

        setattr(where, name, wrapped)

    mark("Python")
    from tcomp import __main__ as program
    from tcomp.cli import common

    def ended() -> bool:
        """A step has. After the last one the process does too: nothing is evaluated or saved."""
        if sum(name == LAST for name, _ in marks) == STEPS - 1:
            mark(LAST)
            out.write_text(json.dumps(marks))
            os._exit(0)
        return True

    build = common.build_step

    def building(*args: Any, **named: Any) -> Any:
        """The modules that later stages are taken from are loaded after the step, as they are without this."""
        mark("command line")
        built = build(*args, **named)
        mark("find or build the step")
        import tcomp.runtime.train as loop

        ends(type(built.device), "open", "libraries, data, kernels")
        ends(loop, "initialise", "initialise")
        if built.device.kind == "cpu":
            import tcomp.runtime.cpu.executor as cpu

            run_step = cpu.CpuExecutor.run_step

            def whole(executor: cpu.CpuExecutor, program: str) -> None:
                """The first step with all of its update, of which a later one does what the one before has left."""
                run_step(executor, program)
                if not any(name == LAST for name, _ in marks):
                    executor.wait()

            setattr(cpu.CpuExecutor, "run_step", whole)  # noqa: B010  (a method is replaced from outside)
            ends(cpu.CpuExecutor, "run_step", LAST, lambda *_: ended())
        else:  # which runs behind: a step has ended when its results are written down
            from tcomp.runtime.run_folder import Metrics

            ends(Metrics, "write", LAST, lambda _: ended())
        return built

    setattr(common, "build_step", building)  # noqa: B010
    sys.argv = ["tcomp", *arguments]
    program.main()


def tcomp_start(arguments: list[str], cache: str | None) -> dict[str, float]:
    """Seconds of each stage of one start, of all of it ("start") and of a later step ("step")."""
    with tempfile.TemporaryDirectory(prefix="tcomp-startup-") as folder:
        out = Path(folder) / "marks.json"
        environment = dict(os.environ) if cache is None else {**os.environ, "TCOMP_CACHE": cache}
        command = [sys.executable, __file__, "--child", str(time.monotonic()), str(out)]
        command += [*arguments, "--run", str(Path(folder) / "run")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        marks = [(name, at) for name, at in json.loads(out.read_text())]
    last = [at for name, at in marks if name == LAST]
    stages, before = {}, 0.0
    for name, at in marks:
        stages["first step" if name == LAST else name], before = at - before, at
        if name == LAST:
            break
    return {**stages, "start": last[0], "step": last[-1] - last[-2]}


def eager_starts(args: argparse.Namespace, folder: Path) -> Callable[[], dict[str, float]]:
    """What starts PyTorch eager on a folder of weights and batches, and gives the same seconds."""
    from tcomp.cli import common
    from tcomp.cli.bench import ENTRY
    from tcomp.runtime.bench.build import workload_of, write_folder
    from tcomp.runtime.bench.running import Running

    built = common.build_step(
        StepRequest("gpt2", args.config, {"B": args.batch, "T": args.length}, recompute="cheap"),
        common.device_for(threads=args.threads),
    )
    workload = workload_of(built.step, built.request, threads=built.threads)
    write_folder(workload, built.step, folder)

    def start() -> dict[str, float]:
        with Running("eager", workload, folder, folder, ENTRY) as program:
            first = program.first
            later = program.run(STEPS - 1)["seconds"]
        return {**first["phases"], "start": first["since_start"], "step": later[-1]}

    return start


def table(rows: list[dict[str, float]]) -> str:
    """Median, least and greatest of each stage."""
    lines = ["| | median, s | least .. greatest |", "|---|---:|---:|"]
    for name in rows[0]:
        values = [r[name] for r in rows]
        label = {"start": "**start to end of step 1**", "step": "a later step"}.get(name, name)
        lines.append(f"| {label} | {statistics.median(values):.3f} | {min(values):.3f} .. {max(values):.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="124M")
    parser.add_argument("-B", "--batch", type=int, default=4)
    parser.add_argument("-T", "--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--no-eager", action="store_true")
    parser.add_argument("--cold", action="store_true")
    args = parser.parse_args()
    arguments = ["train", "gpt2", "--config", args.config, "-B", str(args.batch), "-T", str(args.length)]
    arguments += ["--steps", str(STEPS), "--eval-every", "0", "--save-every", "0", "--sample", "0"]
    arguments += ["--eval-batches", "1", *(["--threads", str(args.threads)] if args.threads else [])]
    from tcomp.cli.bench import write_byte_code  # not in the processes that are timed

    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="tcomp-startup-") as folder:
        write_byte_code()
        eager = None if args.no_eager else eager_starts(args, Path(folder))
        if not args.cold:
            tcomp_start(arguments, None)
        for _ in range(args.rounds):
            with tempfile.TemporaryDirectory(prefix="tcomp-startup-") as empty:
                ours.append(tcomp_start(arguments, empty if args.cold else None))
            if eager is not None:
                theirs.append(eager())
    print(f"tcomp train, {'cold' if args.cold else 'warm'} cache\n\n{table(ours)}\n")
    start, step = (statistics.median(r[name] for r in ours) for name in ("start", "step"))
    print(f"beyond a step: {start - step:.2f} s")
    if theirs:
        ratio = statistics.median(r["start"] for r in theirs) / start
        print(f"\nPyTorch eager\n\n{table(theirs)}\n\nPyTorch eager takes {ratio:.2f} times as long to start")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(float(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    else:
        try:
            main()
        except UserError as e:
            raise SystemExit(f"error: {e}") from e
