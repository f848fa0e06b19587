"""`tcomp bench` on the CPU over several settings: the GPT-2 124M step beside PyTorch, one table for all.

    python benchmarks/step_cpu.py [--settings 4x64,4x256,1x1024] [--dtypes f32] [--save NAME] [flags of tcomp bench]

Each setting is one run of the command, so each has its own weights, agreement check and turns. `--save` writes
benchmarks/results/NAME.json (everything measured) and NAME.md (the tables). Flags that this script does not know go to
`tcomp bench`: --against, --rounds, --steps, --threads, --tolerance.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def measure(model: str, config: str, setting: str, dtype: str, flags: list[str]) -> tuple[dict[str, Any], str]:
    """The figures and the report of one run of the command."""
    batch, _, length = setting.partition("x")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        arguments = ["bench", model, "--config", config, "-B", batch, "-T", length, "--dtype", dtype, *flags]
        print("tcomp " + shlex.join(arguments), file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "tcomp", *arguments, "--json", str(out)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.returncode)
        return json.loads(out.read_text()), done.stdout


def summary(runs: list[dict[str, Any]]) -> str:
    """One row per program and setting; ratios are to tcomp."""
    lines = [
        "| B x T | dtype | program | step, median ms | ratio | spread | peak RSS, MiB | cold / warm start, s |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for run in runs:
        w = run["workload"]
        for p in run["programs"]:
            lines.append(
                f"| {w['batch']} x {w['length']} | {w['dtype']} | {p['program']} | {p['median'] * 1e3:.0f} "
                f"| {p['ratio']:.2f} | {p['spread']:.0%} | {p['peak_rss'] / 2**20:.0f} "
                f"| {p['cold']:.1f} / {p['warm']:.1f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--config", default="124M")
    parser.add_argument("--settings", default="4x64,4x256,1x1024", help="BxT, separated by commas")
    parser.add_argument("--dtypes", default="f32", help="f32, bf16, separated by commas")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json and .md")
    args, flags = parser.parse_known_args()
    runs, texts = [], []
    for dtype in args.dtypes.split(","):
        for setting in args.settings.split(","):
            figures, text = measure(args.model, args.config, setting, dtype, flags)
            runs.append(figures)
            texts.append(text)
            print(text, flush=True)
    print(summary(runs))
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        for program in (p for run in runs for p in run["programs"]):
            del program["memory"]  # thousands of samples, which only plots need
        command = shlex.join(["python", "benchmarks/step_cpu.py", *sys.argv[1:]])
        (RESULTS / f"{args.save}.json").write_text(json.dumps({"command": command, "runs": runs}, indent=1) + "\n")
        about = f"`{command}` on {runs[0]['processor']}, {runs[0]['processors']} processors.\n\n"
        (RESULTS / f"{args.save}.md").write_text(about + summary(runs) + "\n" + "\n".join(texts))


if __name__ == "__main__":
    main()
