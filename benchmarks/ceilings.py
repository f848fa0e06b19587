"""The machine's own ceilings, measured: fused multiply-add peak and memory bandwidth, by thread count.

    python benchmarks/ceilings.py [--threads 1 2] [--mib 256] [--json FILE]

What is measured, and how: runtime/cpu/ceilings.py.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from tcomp.machine.cpu import detect
from tcomp.runtime.cpu.ceilings import bandwidth, dot_peak, fma_peak, vector_widths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, detect().cores}))
    parser.add_argument("--mib", type=int, default=256, help="size of each array of the memory loops")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    found = []
    for threads in args.threads:
        for lanes in vector_widths():
            found.append(fma_peak(threads, lanes))
            print(found[-1], flush=True)
        dots = dot_peak(threads)
        if dots is not None:
            found.append(dots)
            print(dots, flush=True)
        for kind in ("read", "triad"):
            found.append(bandwidth(kind, threads, args.mib))
            print(found[-1], flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps([asdict(c) for c in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
