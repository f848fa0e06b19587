"""Acceptance on a GPU, in one run of under ten minutes: is what it computes right, and how fast is it?

    python benchmarks/gpu_acceptance.py                  on a machine with an NVIDIA GPU
    python benchmarks/gpu_acceptance.py --virtual        the same path on the virtual GPU: tiny sizes, no times

Every section (gpu_sections.py) runs in a process of its own, with a share of the time, and writes each result down as
it comes: whatever fails or is cut short, the others' results are kept. The report is one JSON and one Markdown file.
Exit status 1 when something was wrong, 0 otherwise (skipped sections included).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PREDICTIONS = HERE / "results" / "gpu_predictions.json"
AGAIN = 75
"""A section's process ended with the context of its GPU, and goes on behind the case (gpu_job.py)."""
OUT_OF_TIME, HUNG = -1000, -1001
PATIENCE = 25.0
"""Seconds in which a case on a GPU says nothing before it is given up."""


@dataclass(frozen=True)
class Section:
    """`share`: the most seconds it may take of a run on a real GPU. With `precisions` it is run once for each of them,
    as NAME:PRECISION; `--precisions` names others."""

    name: str
    title: str
    share: float
    precisions: tuple[str, ...] = ()


EVERY = ("f32", "bf16", "bf16_stochastic", "fp8", "fp8_block")
SECTIONS = (
    Section("machine", "Machine", 20),
    Section("ops", "Every op against the oracle, f32", 110),
    Section("step", "Training steps against the CPU backend", 60),
    Section("precisions", "Small models against the CPU backend", 60, EVERY),
    Section("sweep_products", "Products on tensor cores at awkward shapes, against the oracle", 45),
    Section("sweep_attention", "Attention at awkward shapes, against the oracle", 45),
    Section("sweep_fp8", "8-bit layers at awkward shapes, against the oracle", 45),
    Section("ops_bf16", "Every op against the oracle, bf16 storage", 70),
    Section("products", "Products, beside the model's predictions and PyTorch's library", 50),
    Section("attention", "Attention, beside the model's predictions, PyTorch's library and published figures", 60),
    Section("fp8", "8-bit products, beside the model's predictions and PyTorch's library", 50),
    Section("kernels", "Time of every kernel of the step", 60, ("bf16",)),
    Section("step_time", "Time of the step, beside PyTorch", 90, ("bf16",)),
    Section("train", "tcomp train, resume and generate", 90, ("bf16",)),
    Section("train_large", "tcomp train of the timed configuration", 60, ("bf16",)),
    Section("startup", "From the start to the end of the first step", 80, ("bf16",)),
    Section("tuning", "Tuning of the products, a minute", 75),
    Section("torch_compile", "The step by torch.compile", 150, ("bf16",)),
)
BY_NAME = {s.name: s for s in SECTIONS}


def chosen(sections: str, precisions: str) -> list[tuple[Section, str]]:
    """Sections and precisions ("" where a section has none) that the options name, in the order of SECTIONS. ValueError
    with a message."""
    found = []
    for word in sections.split(","):
        name, _, precision = word.partition(":")
        if name not in BY_NAME:
            raise ValueError(f"no section {name!r}; there are {', '.join(BY_NAME)}")
        section = BY_NAME[name]
        if precision and not section.precisions:
            raise ValueError(f"section {name} has no precisions")
        own = (precision,) if precision else tuple(precisions.split(",")) if precisions else section.precisions
        for p in own if section.precisions else ("",):
            if p and p not in EVERY:
                raise ValueError(f"no precision {p!r}; there are {', '.join(EVERY)}")
            found.append((section, p))
    return sorted(dict.fromkeys(found), key=lambda pair: SECTIONS.index(pair[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--virtual", action="store_true", help="on the virtual GPU, at tiny sizes")
    parser.add_argument("--gpu", default="h100", help="which GPU the virtual one is")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cuda:NAME")
    parser.add_argument("--config", default="124M", help="configuration to time")
    parser.add_argument("--setting", default="16x1024", help="BxT to time")
    parser.add_argument("--precisions", default="", help="bf16,fp8 ... in place of the sections' own")
    parser.add_argument("--predictions", type=Path, default=PREDICTIONS, help="written by gpu_predictions.py")
    parser.add_argument("--budget", type=float, default=540, help="seconds for everything")
    parser.add_argument("--sections", default=",".join(BY_NAME), help="some of them: machine,kernels,step_time:fp8")
    parser.add_argument("--family-predictions", type=Path, help="file of gpu_cases.py, to predict nothing meanwhile")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the report")
    args = parser.parse_args()
    try:
        wanted = chosen(args.sections, args.precisions)
    except ValueError as e:
        parser.error(str(e))
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / ("gpu_acceptance_virtual" if args.virtual else "gpu_acceptance")
    began = time.monotonic()
    results: dict[str, Any] = {}
    report: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/gpu_acceptance.py", *sys.argv[1:]]),
        "virtual": args.virtual,
        "python": platform.python_version(),
        "sections": results,
    }
    for section, precision in wanted:
        key = f"{section.name}:{precision}" if precision else section.name
        left = args.budget - (time.monotonic() - began)
        if left < 5:
            results[key] = {"state": "skipped", "reason": "the time for the whole run was used up"}
        else:
            limit = left if args.virtual else min(left, section.share)
            print(f"{key}: {section.title} (at most {limit:.0f} s)", file=sys.stderr, flush=True)
            notes = stem.with_suffix(f".{key.replace(':', '.')}.jsonl")
            results[key] = run_section(section, args, limit, notes, precision)
        report["seconds"] = round(time.monotonic() - began, 1)
        stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        stem.with_suffix(".md").write_text(markdown(report))
    print(stem.with_suffix(".md").read_text())
    if any(r["state"] in ("failed", "wrong") for r in results.values()):
        raise SystemExit(1)


def run_section(
    section: Section, args: argparse.Namespace, limit: float, notes: Path, precision: str = ""
) -> dict[str, Any]:
    """Run a section in a child process; its state (ok, wrong, cut short, failed, skipped) and its items."""
    notes.unlink(missing_ok=True)
    child = [sys.executable, str(HERE / "gpu_sections.py"), section.name, str(notes)]
    child += ["--device", "virtual" if args.virtual else args.device, "--config", args.config]
    child += ["--setting", args.setting]
    if args.virtual:
        child += ["--gpu", args.gpu]
    if precision:
        child += ["--precision", precision, "--predictions", str(args.predictions.resolve())]
    if args.family_predictions:
        child += ["--family-predictions", str(args.family_predictions.resolve())]
    began, skip = time.monotonic(), 0
    deadline = began + limit
    while True:
        again = ["--skip", str(skip), "--limit", str(max(1.0, deadline - time.monotonic() - 5))]
        code, error = watched([*child, *again], notes, deadline, math.inf if args.virtual else PATIENCE)
        case = begun(notes)
        if case is None or code in (0, OUT_OF_TIME):
            break
        skip = case["number"] + 1  # the case failed, and the process with it: the others go on
        why = {HUNG: "it did not end", AGAIN: ""}.get(code, " ".join(error.strip().splitlines()[-1:]) or f"exit {code}")
        with notes.open("a") as out:
            if why:
                out.write(json.dumps({"kind": "row", "what": case["what"], "error": why, "good": False}) + "\n")
            out.write(json.dumps({"kind": "done"}) + "\n")
    items = noted(notes)
    notes.unlink(missing_ok=True)
    ending = next((i for i in items if i.get("kind") == "end"), None)
    items = [i for i in items if i.get("kind") not in ("begin", "done", "end")]
    wrong = sum(not i.get("good", True) for i in items)
    result: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1), "items": items, "wrong": wrong}
    if ending is not None and ending.get("skipped"):
        result |= {"state": "skipped", "reason": ending["skipped"]}
    elif code == 0 and ending is not None:
        cut = bool(ending.get("cut"))
        result |= {"state": "wrong" if wrong else "cut short" if cut else "ok"}
        if cut:
            result["reason"] = "its share of the time was used up"
    elif code == OUT_OF_TIME:
        result |= {"state": "wrong" if wrong else "cut short", "reason": "it was stopped when its time was used up"}
    else:
        result |= {"state": "failed", "reason": "\n".join(error.strip().splitlines()[-12:])}
    return result


def watched(command: list[str], notes: Path, deadline: float, patience: float) -> tuple[int, str]:
    """Run a section's process until it ends, its time is over, or a case has said nothing for `patience` seconds; its
    exit status and what it printed. It is ended with the processes that it started."""
    environment = {**os.environ, "TCOMP_VGPU_QUIET": "1"}
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, stdout=said, stderr=said, env=environment, start_new_session=True)
        code, seen, since = None, -1, time.monotonic()
        try:
            while code is None:
                try:
                    code = child.wait(0.1)
                except subprocess.TimeoutExpired:
                    now, size = time.monotonic(), notes.stat().st_size if notes.exists() else 0
                    if size != seen:
                        seen, since = size, now
                    if now > deadline:
                        code = OUT_OF_TIME
                    elif now - since > patience and begun(notes) is not None:
                        code = HUNG
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in the driver may not even die
                child.wait(10)
        said.seek(0)
        return code, said.read().decode(errors="replace")


def begun(notes: Path) -> dict[str, Any] | None:
    """The case that a section is at: the last one that has begun and has not ended."""
    last = next((i for i in reversed(noted(notes)) if i.get("kind") in ("begin", "done")), None)
    return last if last and last["kind"] == "begin" else None


def noted(notes: Path) -> list[dict[str, Any]]:
    """What a section has written down so far, but a line that it was just writing."""
    lines = notes.read_text().split("\n")[:-1] if notes.exists() else []
    return [json.loads(line) for line in lines]


# ------------------------------------------------------------------------------------------------ report


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    machine: dict[str, Any] = next(iter(report["sections"].get("machine", {}).get("items", [])), {})
    lines = ["# GPU acceptance", "", f"`{report['command']}`, {report['seconds']:.0f} s.", ""]
    if machine:
        lines += [f"{machine['device']}. {machine['about']}.", ""]
    if report["virtual"]:
        lines += ["On the virtual GPU: it shows what is computed and what the checks find, and nothing about time.", ""]
    lines += ["| section | outcome | seconds | items | wrong |", "|---|---|---:|---:|---:|"]
    titles = {key: title_of(key) for key in report["sections"]}
    for name, r in report["sections"].items():
        reason = str(r.get("reason", "")).strip().splitlines()
        outcome = r["state"] + (f": {reason[-1]}" if reason else "")
        count, wrong = len(r.get("items", [])), r.get("wrong", 0)
        lines.append(f"| {titles[name]} | {outcome} | {r.get('seconds', 0):.0f} | {count} | {wrong} |")
    for name, r in report["sections"].items():
        rows = [i for i in r.get("items", []) if i.get("kind") == "row"]
        if rows:
            lines += ["", f"## {titles[name]}", "", *table(rows)]
        if r["state"] == "failed":
            lines += ["", f"## {titles[name]}: failed", "", "```", r["reason"], "```"]
    return "\n".join(lines) + "\n"


def title_of(key: str) -> str:
    name, _, precision = key.partition(":")
    return BY_NAME[name].title + (f", {precision}" if precision else "")


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows of equal keys as a Markdown table; rows that are wrong say so."""
    names = [n for n in dict.fromkeys(k for row in rows for k in row) if n not in ("kind", "good")]
    lines = ["| " + " | ".join(names) + " | |", "|" + "---|" * (len(names) + 1)]
    for row in rows:
        cells = [_cell(row.get(n, "")) for n in names]
        lines.append("| " + " | ".join(cells) + (" | |" if row.get("good", True) else " | **wrong** |"))
    return lines


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 0.01 or abs(value) >= 1e5 else f"{value:.3f}"
    return str(value).replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
