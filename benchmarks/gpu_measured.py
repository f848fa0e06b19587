"""The static model beside what an H100 or H200 measured (docs/measurements/h100.toml): tables in Markdown.

python benchmarks/gpu_measured.py [--gpu h200] [--write]  print them, or put them into docs/measurements/h100.md
python benchmarks/gpu_measured.py --from REPORT.json ... --commit 0c24555 [--leave-out cosine] [--write]
                                                          take times from reports of gpu_acceptance.py first
python benchmarks/gpu_measured.py --changed attention,linear_residual [--write]
                                                          kernels whose code is another now: no predictions beside them

Nothing is run on a GPU. A report's sections replace what the data have of them: `kernels` and `step_time` by precision,
`products`, `attention` and `fp8`. Of the document, what lies between `<!-- table NAME -->` and `<!-- end -->` is
replaced.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from gpu_cases import ATTENTION, EIGHT_BITS, PRODUCTS, Case, prepare
from measurements import (
    Alone,
    Measurements,
    Run,
    Timed,
    beside,
    families_text,
    read_measurements,
    text_of,
)

from tcomp.autotune.gpu_predict import predict_step
from tcomp.cli import common
from tcomp.cli.build_gpu import TargetDevice
from tcomp.cli.limits import cores
from tcomp.machine.gpu import H100, GpuMachine, machine_named
from tcomp.model.request import StepRequest
from tcomp.runtime.cache import cache_folder
from tcomp.runtime.cuda.kernels import compile_all

FOLDER = Path(__file__).parent.parent / "docs" / "measurements"
FAMILIES = {"products": PRODUCTS, "attention": ATTENTION, "fp8": EIGHT_BITS}


# --------------------------------------------------------------------------------------------------- data


def taken(data: Measurements, report: Mapping[str, Any], commit: str, without: Sequence[str] = ()) -> Measurements:
    """The data with what a report of gpu_acceptance.py has; kernels of a step that are named in `without` are left
    out."""
    steps, events, kernels = dict(data.steps), dict(data.events), dict(data.kernels)
    families = list(data.families)
    for name, section in report["sections"].items():
        kind, _, precision = name.partition(":")
        rows = [item for item in section["items"] if item["kind"] == "row"]
        if kind == "step_time":
            ms = [r["ms a step"] for r in rows if "ms a step" in r and r["program"].endswith("one graph a program")]
            steps[precision] = Run(commit, ms[-1]) if ms else steps[precision]
    for name, section in report["sections"].items():
        kind, _, precision = name.partition(":")
        rows = [item for item in section["items"] if item["kind"] == "row"]
        if kind == "kernels":
            kernels[precision] = [_timed(r) for r in rows if "blocks x threads" in r and r["kernel"] not in without]
            events[precision] = Run(commit, _event(rows, kernels[precision], steps[precision]))
        elif kind in FAMILIES:
            families = [f for f in families if f.section != kind] + [_alone(kind, r) for r in rows if _ours(r)]
    return Measurements(steps, events, kernels, families)


def marked(data: Measurements, names: Sequence[str]) -> Measurements:
    """The data with those kernels said to have changed since, in steps and families, and a case's "whole" with them."""
    kernels = {
        p: [replace(k, changed=k.changed or k.name in names) for k in found] for p, found in data.kernels.items()
    }
    cases = {f.what for f in data.families if f.kernel in names}
    families = [
        replace(f, changed=f.changed or f.kernel in names or (f.kernel == "whole" and f.what in cases))
        for f in data.families
    ]
    return Measurements(data.steps, data.events, kernels, families)


def _timed(row: Mapping[str, Any]) -> Timed:
    shapes = [tuple(map(int, s.split(" x "))) for s in row["blocks x threads"].split(", ")]
    flops = row["flops"] if "flops" in row else round(row["TFLOP/s"] * row["us"] * 1e6)
    launches = tuple((blocks, threads) for blocks, threads in shapes)
    return Timed(row["kernel"], row["times"], row["us in their turn"], flops, launches)


def _event(rows: Sequence[Mapping[str, Any]], kernels: Sequence[Timed], step: Run) -> float:
    """us of an event: as the report says, or what the launches take beyond the step as a graph, over their number; for
    kernels that are left out the graph has what was predicted."""
    if said := [r["an event"] for r in rows if "an event" in r]:
        return float(said[0])
    names = {k.name for k in kernels}
    others = sum(r["predicted us"] * r["times"] for r in rows if "blocks x threads" in r and r["kernel"] not in names)
    launches = sum(k.times * len(k.launches) for k in kernels)
    return float((sum(k.us * k.times for k in kernels) - (1e3 * step.time - others)) / launches)


def _ours(row: Mapping[str, Any]) -> bool:
    """Whether a row is of a kernel of ours that was timed."""
    return "us" in row and "predicted us" in row


def _alone(section: str, row: Mapping[str, Any]) -> Alone:
    rates = row.get("TFLOP/s", 0.0), row.get("library TFLOP/s", 0.0)
    return Alone(section, row["what"], row["kernel"], row["us"], *rates, str(row.get("published TFLOP/s", "")))


def toml_of(data: Measurements, head: str) -> str:
    """The data as a file that `read_measurements` reads, behind comments (`head`)."""
    lines = [head.rstrip()]
    for title, unit, runs in (("step", "ms", data.steps), ("event", "us", data.events)):
        for precision, run in runs.items():
            lines += ["", f"[{title}.{precision}]", f"commit = {json.dumps(run.commit)}", f"{unit} = {run.time:.3f}"]
    for precision, kernels in data.kernels.items():
        for k in kernels:
            lines += ["", "[[kernel]]", f'step = "{precision}"', f"name = {json.dumps(k.name)}", f"flops = {k.flops}"]
            lines += [f"times = {k.times}", f"us = {k.us:.1f}", f"launches = {json.dumps(k.launches)}"]
            lines += ["changed = true"] if k.changed else []
    for f in data.families:
        lines += ["", "[[family]]", f'section = "{f.section}"', f"what = {json.dumps(f.what)}"]
        lines += [f"kernel = {json.dumps(f.kernel)}", f"us = {f.us:.1f}"]
        lines += [f"{n} = {x:.0f}" for n, x in (("rate", f.rate), ("library", f.library)) if x]
        lines += [f"published = {json.dumps(f.published)}"] if f.published else []
        lines += ["changed = true"] if f.changed else []
    return "\n".join(lines) + "\n"


def head_of(text: str) -> str:
    """The comments that a file begins with."""
    return "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))


# ------------------------------------------------------------------------------------------------- tables


def tables(data: Measurements, gpu: GpuMachine) -> Iterator[tuple[str, str]]:
    """Names of tables, and each with today's predictions."""
    for precision in data.kernels:
        request = StepRequest("gpt2", "124M", {"B": 16, "T": 1024}, precision=precision, lock="none")
        step = common.build_step(request, TargetDevice(gpu)).step
        found = list(predict_step(step, gpu, cache_folder("kernels")))
        codes = compile_all({k.name: step.kernels[k.name] for k, _ in found}, gpu, cache_folder("kernels"))
        rows = beside(data, precision, {k.name: k.seconds for k, _ in found}, step.kernels, codes)
        text = text_of(data, precision, rows, {k.name: k for k, _ in found})
        ms = sum(k.seconds * n for k, n in found) * 1e3
        was = data.steps[precision]
        yield precision, f"{text}\nThe whole step: {was.time:.2f} ms measured ({was.commit}), {ms:.2f} predicted.\n"
    with ProcessPoolExecutor(min(2, cores())) as pool:
        for section, cases in FAMILIES.items():
            said = seconds_of(pool, cases, gpu)
            name = section.replace("fp8", "fp8-products")
            yield name, families_text([f for f in data.families if f.section == section], said)


def seconds_of(
    pool: ProcessPoolExecutor, cases: Sequence[Case], gpu: GpuMachine = H100
) -> dict[tuple[str, str], float]:
    """Predicted seconds by case and kernel, and of all of a case's kernels ("whole")."""
    found: dict[tuple[str, str], float] = {}
    work = partial(prepare, gpu, cache_folder("kernels"), {})
    for case, prepared in zip(cases, pool.map(work, cases), strict=True):
        found |= {(str(case), n): s for n, s in prepared.predicted.items()}
        found[str(case), "whole"] = sum(prepared.predicted.values())
    return found


def with_table(document: str, name: str, text: str) -> str:
    """The document with another table in the place of that name. ValueError where it has no such place."""
    pattern = rf"(?s)(<!-- table {re.escape(name)} -->\n).*?(\n<!-- end -->)"
    changed, count = re.subn(pattern, lambda m: f"{m[1]}\n{text}{m[2]}", document)
    if count != 1:
        raise ValueError(f"the document has no place <!-- table {name} -->")
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="reports", type=Path, nargs="+", default=[], metavar="REPORT.json")
    parser.add_argument("--commit", default="", help="that was measured")
    parser.add_argument("--leave-out", default="", help="kernels of steps whose times mean nothing, with commas")
    parser.add_argument("--changed", default="", help="kernels whose code is another now, with commas")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/measurements/h100.md")
    parser.add_argument("--gpu", default="h100", help="whose data and document, and predictions for which")
    args = parser.parse_args()
    gpu = machine_named(args.gpu)
    file, document = FOLDER / f"{gpu.name}.toml", FOLDER / f"{gpu.name}.md"
    data = read_measurements(file)
    if args.reports:
        if not args.commit:
            parser.error("--from needs --commit")
        sections: dict[str, Any] = {}
        for path in args.reports:
            sections |= json.loads(path.read_text())["sections"]
        data = taken(data, {"sections": sections}, args.commit, args.leave_out.split(","))
    if args.reports or args.changed:
        data = marked(data, args.changed.split(","))
        file.write_text(toml_of(data, head_of(file.read_text())))
    for name, text in tables(data, gpu):
        print(f"{name}:\n\n{text}", flush=True)
        if args.write:
            document.write_text(with_table(document.read_text(), name, text))


if __name__ == "__main__":
    main()
