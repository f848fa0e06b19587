"""Generation on this CPU: tcomp and transformers with the same weights, prompt and threads, in turns in one process.

    python benchmarks/generate_cpu.py [--prompt 20,500] [--tokens 32] [--rounds 5] [--threads 2]

The model is GPT-2 124M with random weights, saved by transformers and brought in by `tcomp import`. Printed are the
seconds to the first token (the prompt's pass) and the milliseconds of each further one: medians over the rounds. The
greedy continuations must be the same text.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tcomp.cli import common
from tcomp.cli.generate import scorer_for
from tcomp.cli.settings import from_json
from tcomp.runtime import checkpoint
from tcomp.runtime.run_folder import read_config

Turn = Callable[[list[int], int], tuple[list[int], float, float]]
"""Continues a text by so many tokens: these, seconds to the first, seconds of all others."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="20,500", help="lengths of prompts, by commas")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    table = Table("prompt", "program", "first token, s", "each further, ms")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="generate-")))
        theirs = transformers_turn(place / "hf", args.threads)
        subprocess.run(
            [sys.executable, "-m", "tcomp", "import", "--from-hf", str(place / "hf"), "--out", str(place / "run")],
            check=True,
        )
        for length in map(int, args.prompt.split(",")):
            prompt = np.random.default_rng(length).integers(0, 50257, length).tolist()
            with ExitStack() as inner:
                ours = tcomp_turn(place / "run", length, args.tokens, args.threads, inner)
                turns = {"tcomp": ours, "transformers": theirs}
                times: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
                for i in range(args.rounds + 1):
                    texts = []
                    for name in list(turns)[:: 1 if i % 2 else -1]:
                        text, first, others = turns[name](prompt, args.tokens)
                        texts.append(text)
                        if i:  # the first round warms up
                            times[name].append((first, others / (args.tokens - 1)))
                    if texts[0] != texts[1]:
                        raise SystemExit(f"the texts differ: {texts}")
            for name, found in times.items():
                first, each = (statistics.median(column) for column in zip(*found, strict=True))
                table.add_row(str(length), name, f"{first:.3f}", f"{1e3 * each:.1f}")
    Console().print(table)


def tcomp_turn(run: Path, prompt: int, tokens: int, threads: int, stack: ExitStack) -> Turn:
    settings, saved = from_json(read_config(run), str(run)), checkpoint.newest(run, print)
    device = common.device_for("cpu", threads=threads)
    scorer, vocabulary = stack.enter_context(scorer_for(settings, saved, device, prompt, prompt + tokens))

    def turn(text: list[int], count: int) -> tuple[list[int], float, float]:
        scorer.scores([vocabulary - 1])  # the caches hold another text
        began, text = time.perf_counter(), list(text)
        text.append(int(np.argmax(scorer.scores(text))))
        first = time.perf_counter()
        for _ in range(count - 1):
            text.append(int(np.argmax(scorer.scores(text))))
        return text[-count:], first - began, time.perf_counter() - first

    return turn


def transformers_turn(folder: Path, threads: int) -> Turn:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model: Any = GPT2LMHeadModel(GPT2Config())
    model.eval()
    model.save_pretrained(folder)

    def turn(text: list[int], count: int) -> tuple[list[int], float, float]:
        began, made = time.perf_counter(), []
        given, past, first = torch.tensor([text]), None, 0.0
        with torch.no_grad():
            for _ in range(count):
                out = model(input_ids=given, past_key_values=past, use_cache=True, logits_to_keep=1)
                given, past = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
                made.append(int(given))
                first = first or time.perf_counter()
        return made, first - began, time.perf_counter() - first

    return turn


if __name__ == "__main__":
    main()
