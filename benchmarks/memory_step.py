"""Device memory of GPT-2's bf16 training step: tcomp's plan beside the peak of PyTorch's bf16 autocast step.

    python benchmarks/memory_step.py [--config 124M] [--sizes 16x1024,4x1024] [--gpu h100] [--json FILE]

Nothing is run and no GPU is needed. tcomp's figure is its static plan for the GPU, all that it will ever take besides
code and the context. PyTorch's is an account of every tensor's storage over a step (`torch_memory.py`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch_memory import step_peak

from tcomp.cli import common
from tcomp.model.request import StepRequest
from tcomp.runtime.bench.build import workload_of

MODEL = "gpt2"


def sizes(text: str) -> list[tuple[int, int]]:
    """Pairs of sequences and tokens: "16x1024,4x1024"."""
    return [(int(batch), int(length)) for batch, length in (part.split("x") for part in text.split(","))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="124M")
    parser.add_argument("--sizes", type=sizes, default="16x1024,4x1024", help="sequences x tokens of each, by commas")
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = common.device_for("virtual", gpu=args.gpu)
    table = Table("B x T", "tcomp, MiB", "PyTorch, MiB", "less by")
    rows = []
    for batch, length in args.sizes:
        built = common.build_step(
            StepRequest(MODEL, args.config, {"B": batch, "T": length}, precision="bf16", lock="none"),
            device,
        )
        workload = workload_of(built.step, built.request, "cuda")
        theirs = step_peak(workload)
        ours = built.step.memory_bytes(1)
        rows.append({"batch": batch, "length": length, "tcomp": ours, "torch": theirs})
        less = 1 - ours / theirs["Total"]
        table.add_row(f"{batch} x {length}", f"{ours / 2**20:.0f}", f"{theirs['Total'] / 2**20:.0f}", f"{less:.0%}")
    Console().print(table)
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
