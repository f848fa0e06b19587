"""A GPT-2 training step on the CPU: tcomp beside PyTorch, in turns within one run.

    python benchmarks/step_cpu.py --settings 4x64,1x1024 --programs tcomp,eager,compile --save step_cpu

Programs: tcomp, eager, compile (torch.compile), eager-heap and compile-heap (PyTorch with a malloc that
keeps its pages). Each is a process of its own, with the same starting weights and batches. It is first
started with empty caches and again with full ones, which gives the time from process start to the first
finished step; then the processes take turns, all others stopped meanwhile, and the losses are compared.
The step is the whole one: forward, backward, clip by global norm, AdamW, loss read back. The memory given
is the greatest resident set of the process itself, without compiler processes that it may have started.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workload import SIZES, write_weights

HERE = Path(__file__).resolve().parent
PROGRAMS = ("tcomp", "eager", "compile", "eager-heap", "compile-heap")


@dataclass
class Measured:
    """What is known about one program at one setting; times in seconds, memory in bytes."""

    program: str
    cold_start: float = 0.0
    warm_start: float = 0.0
    peak_rss: int = 0
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median step."""
        return statistics.median(self.seconds)


class Program:
    """A running child: told to do steps, stopped (SIGSTOP) while others run."""

    def __init__(self, name: str, config: str, B: int, T: int, threads: int, weights: Path, caches: Path) -> None:
        self.name = name
        environment = dict(os.environ)
        environment["OMP_NUM_THREADS"] = str(threads)
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(caches / "inductor")
        environment["TRITON_CACHE_DIR"] = str(caches / "triton")
        environment["TCOMP_CACHE"] = str(caches / "tcomp")
        reading, writing = os.pipe()
        sizes = [config, str(B), str(T), str(threads), str(weights)]
        started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "step_program.py"), name, *sizes, str(started), str(writing)],
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
            pass_fds=[writing],
            env=environment,
            text=True,
        )
        os.close(writing)
        self.answers = os.fdopen(reading)
        self.first = self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.answers.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()} (its messages are above)")
        return json.loads(line)  # type: ignore[no-any-return]

    def run(self, steps: int) -> dict[str, Any]:
        """Do `steps` steps and wait for them."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"run {steps}\n")
        self.process.stdin.flush()
        return self._answer()

    def pause(self) -> None:
        """Take no processor time at all until `go_on`."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Undo `pause`."""
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the child, by force when it does not end itself."""
        if self.process.poll() is None:
            self.go_on()
            try:
                self.process.communicate("stop\n", timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self.answers.close()


def measure(
    config: str, B: int, T: int, programs: list[str], threads: int, rounds: int, steps: int, weights: Path
) -> dict[str, Measured]:
    """Run one setting: cold and warm start of each program, then `rounds` turns of `steps` steps each."""
    results = {name: Measured(name) for name in programs}
    running: list[Program] = []
    caches = Path(tempfile.mkdtemp(prefix="step_cpu-"))
    try:
        for name in programs:
            cold = Program(name, config, B, T, threads, weights, caches / name)
            results[name].cold_start = cold.first["since_start"]
            cold.close()
            warm = Program(name, config, B, T, threads, weights, caches / name)
            running.append(warm)
            results[name].warm_start = warm.first["since_start"]
            results[name].losses += warm.first["losses"]
            results[name].losses += warm.run(2)["losses"]  # warming up, not timed
            warm.pause()
            r = results[name]
            note(f"{name}: first step after {r.cold_start:.2f} s cold, {r.warm_start:.2f} s warm")
        for turn in range(rounds):
            shift = turn % len(running)
            for program in running[shift:] + running[:shift]:
                program.go_on()
                answer = program.run(steps)
                program.pause()
                r = results[program.name]
                r.seconds += answer["seconds"]
                r.losses += answer["losses"]
                r.peak_rss = answer["peak_rss"]
            note(
                f"round {turn + 1} of {rounds}: "
                + ", ".join(f"{r.program} {r.median * 1e3:.0f} ms" for r in results.values())
            )
    finally:
        for program in running:
            program.close()
        shutil.rmtree(caches, ignore_errors=True)
    return results


def note(text: str) -> None:
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def disagreement(results: dict[str, Measured], count: int = 10) -> float:
    """Largest relative difference of the first `count` losses between any program and the first one."""
    reference, *others = (r.losses[:count] for r in results.values())
    return max((abs(a - b) / abs(b) for o in others for a, b in zip(o, reference, strict=False)), default=0.0)


def table(setting: str, config: str, results: dict[str, Measured], threads: int) -> str:
    """The results as a Markdown table; ratios are to the first program (above 1: it takes more)."""
    base = next(iter(results.values()))
    lines = [
        f"### GPT-2 {config}, B x T = {setting}, f32, {threads} threads",
        "",
        "| program | step, median ms | least .. greatest | tokens/s | ratio | peak RSS, MiB | ratio "
        "| first step cold, s | warm, s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    b, t = (int(v) for v in setting.split("x"))
    for r in results.values():
        low, high = min(r.seconds) * 1e3, max(r.seconds) * 1e3
        lines.append(
            f"| {r.program} | {r.median * 1e3:.1f} | {low:.1f} .. {high:.1f} | {b * t / r.median:.0f} "
            f"| {r.median / base.median:.2f} | {r.peak_rss / 2**20:.0f} | {r.peak_rss / base.peak_rss:.2f} "
            f"| {r.cold_start:.2f} | {r.warm_start:.2f} |"
        )
    worst = disagreement(results)
    lines += ["", f"Losses of the first ten steps differ by at most {worst:.1e} relative."]
    return "\n".join(lines)


def processor() -> str:
    """The processor's name, for the record."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="124M", choices=sorted(SIZES))
    parser.add_argument("--settings", default="4x64,1x1024", help="BxT, separated by commas")
    parser.add_argument("--programs", default="tcomp,eager,compile", help=f"some of {','.join(PROGRAMS)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6, help="turns of each program")
    parser.add_argument("--steps", type=int, default=0, help="steps a turn (default: 1280 tokens)")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of the losses, relative; else exit 1")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json and .md")
    args = parser.parse_args()
    programs = args.programs.split(",")
    for name in programs:
        if name not in PROGRAMS:
            parser.error(f"no program {name!r}; there are {', '.join(PROGRAMS)}")
    records, texts, agree = [], [], True
    with tempfile.TemporaryDirectory(prefix="step_cpu-") as folder:
        weights = Path(folder) / "weights.f32"
        write_weights(SIZES[args.config], weights)
        for setting in args.settings.split(","):
            b, t = (int(v) for v in setting.split("x"))
            steps = args.steps or max(1, 1280 // (b * t))
            results = measure(args.config, b, t, programs, args.threads, args.rounds, steps, weights)
            texts.append(table(setting, args.config, results, args.threads))
            print("\n" + texts[-1], flush=True)
            agree &= disagreement(results) <= args.tolerance
            records.append({"setting": setting, "results": [asdict(r) for r in results.values()]})
    if args.save:
        folder = HERE / "results"
        folder.mkdir(exist_ok=True)
        about = {
            "command": " ".join(["python", "benchmarks/step_cpu.py", *sys.argv[1:]]),
            "processor": processor(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        }
        (folder / f"{args.save}.json").write_text(json.dumps({**about, "runs": records}, indent=1) + "\n")
        head = f"`{about['command']}` on {about['processor']}, {about['cpus']} processors.\n\n"
        (folder / f"{args.save}.md").write_text(head + "\n\n".join(texts) + "\n")
    if not agree:
        raise SystemExit(f"the programs' losses differ by more than {args.tolerance:g} relative")


if __name__ == "__main__":
    main()
