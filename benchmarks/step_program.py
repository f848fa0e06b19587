"""One program under measurement: a process that trains the same GPT-2 and does steps when told to.

Started by step_cpu.py, never by hand. Reads lines from standard input (`run K`, `stop`) and answers in
JSON lines on the descriptor it was given; it does its first step at once and reports when that ended.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from workload import SIZES, batch, learning_rate

Stepper = Callable[[np.ndarray, np.ndarray, int], float]


def tcomp_stepper(config: str, B: int, T: int, threads: int, weights: Path) -> Stepper:
    """The planned native step of models/gpt2.tc."""
    from tcomp.dsl.load import load
    from tcomp.machine.cpu import detect
    from tcomp.model.build import build_step
    from tcomp.runtime.cache import cache_folder
    from tcomp.runtime.cpu.executor import CpuExecutor

    text = Path(__file__).resolve().parent.parent / "models" / "gpt2.tc"
    machine = detect()
    step = build_step(load(text), "gpt2", config, {"B": B, "T": T}, machine=machine, threads=threads)
    executor = CpuExecutor(step, machine, threads, cache_folder("kernels"))
    with weights.open("rb") as f:
        for parameter in step.parameters:
            f.readinto(memoryview(executor.array(parameter.slot)).cast("B"))
    executor.array("loss_gradient")[...] = 1
    for name, value in step.hyper.items():
        executor.array(name)[...] = value
    tokens, targets = executor.array("tokens"), executor.array("targets")
    loss, counter = executor.array("loss"), executor.array("step")

    def run(x: np.ndarray, y: np.ndarray, number: int) -> float:
        tokens[...], targets[...], counter[...] = x, y, number
        executor.run("micro_first")
        executor.run("update")
        return float(loss)

    return run


def torch_stepper(config: str, threads: int, weights: Path, compiled: bool) -> Stepper:
    """PyTorch, eager or through torch.compile."""
    import torch
    from torch_model import Trainer

    trainer = Trainer(SIZES[config], weights, threads, compiled)

    def run(x: np.ndarray, y: np.ndarray, number: int) -> float:
        return trainer.step(torch.from_numpy(x).long(), torch.from_numpy(y).long(), learning_rate(number))

    return run


def keep_heap() -> None:
    """glibc's malloc never gives memory back: PyTorch then does not pay for fresh pages in every step."""
    import ctypes

    libc = ctypes.CDLL(None)
    libc.mallopt(-4, 0)  # M_MMAP_MAX
    libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("config")
    parser.add_argument("B", type=int)
    parser.add_argument("T", type=int)
    parser.add_argument("threads", type=int)
    parser.add_argument("weights", type=Path)
    parser.add_argument("started", type=float, help="monotonic clock just before this process was started")
    parser.add_argument("answers", type=int, help="file descriptor to answer on")
    a = parser.parse_args()
    answers = os.fdopen(a.answers, "w")
    if a.program.endswith("-heap"):
        keep_heap()
    if a.program == "tcomp":
        run = tcomp_stepper(a.config, a.B, a.T, a.threads, a.weights)
    else:
        run = torch_stepper(a.config, a.threads, a.weights, a.program.startswith("compile"))
    number = 0

    def steps(count: int) -> tuple[list[float], list[float]]:
        nonlocal number
        seconds, losses = [], []
        for _ in range(count):
            x, y = batch(SIZES[a.config], a.B, a.T, number)
            start = time.perf_counter()
            losses.append(run(x, y, number))
            seconds.append(time.perf_counter() - start)
            number += 1
        return seconds, losses

    def answer(count: int) -> None:
        seconds, losses = steps(count)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        since = time.monotonic() - a.started
        json.dump({"seconds": seconds, "losses": losses, "peak_rss": peak, "since_start": since}, answers)
        answers.write("\n")
        answers.flush()

    answer(1)
    for line in sys.stdin:
        command = line.split()
        if command[0] == "stop":
            break
        answer(int(command[1]))


if __name__ == "__main__":
    main()
