"""`tcomp data prepare` and `tcomp data check`: text to token files."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tcomp.cli import common, limits, options
from tcomp.cli.command import Options, command
from tcomp.cli.display import bars
from tcomp.cli.limits import Range
from tcomp.cli.options import MANY
from tcomp.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Prepare data to train on: `prepare`, `check`.")
_PLAN = "plan.json"


@dataclass(frozen=True)
class PrepareOptions(Options):
    """What is prepared, and how."""

    inputs: Annotated[list[Path], typer.Argument(help="Text, .jsonl and .parquet files, and folders of these.")]
    out: Annotated[Path, typer.Option(help="The folder to make.")]
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer.json [default: train a BPE].")] = None
    vocabulary: Annotated[int, typer.Option(help="Words of a BPE that is trained here."), Range(258, 1 << 24)] = 8192
    train_bytes: Annotated[str, typer.Option(help="Most text that a BPE is trained on.")] = "200MB"
    key: Annotated[str, typer.Option(help="The text's key in JSON lines, or column in parquet.")] = "text"
    end: Annotated[str, typer.Option(help="The token behind each document, if there is such.")] = "<|endoftext|>"
    validation: Annotated[float, typer.Option(help="Share of documents held out."), Range(0, 0.5)] = 0.01
    shard_tokens: Annotated[int, typer.Option(help="Tokens of one file."), Range(1000, MANY)] = 100_000_000
    workers: options.Workers = 0


@app.command()
@command
def prepare(own: PrepareOptions) -> None:
    """Tokenise text into memory-mapped shards with a manifest and checksums.

    Stopped at any point, the same command goes on where it was. `tcomp train --data FOLDER` takes the outcome, and
    the run keeps its tokenizer.

    Examples:

    - `tcomp data prepare books/ --out data/books --vocabulary 4096`

    - `tcomp data prepare dump.jsonl more.parquet --tokenizer tokenizer.json --out data/dump`
    """
    from tcomp.runtime.prepare.shards import MANIFEST, write_shards
    from tcomp.runtime.prepare.source import parts_of
    from tcomp.runtime.prepare.tokenise import Job, tokenise_all
    from tcomp.runtime.prepare.train_bpe import train_bpe
    from tcomp.runtime.tokenizer import FILE, JsonTokenizer

    out, tokenizer, key, vocabulary = own.out, own.tokenizer, own.key, own.vocabulary
    most = limits.parse_bytes(own.train_bytes, "--train-bytes") or 1 << 62
    if (out / MANIFEST).exists():
        raise UserError(f"{out}: it holds prepared data already", "give another --out, or remove it")
    if tokenizer is not None:
        JsonTokenizer(tokenizer)
    parts = parts_of(own.inputs)
    plan: dict[str, Any] = {
        "sources": [{"path": p, "bytes": Path(p).stat().st_size} for p in dict.fromkeys(p.path for p in parts)],
        "tokenizer": hashlib.blake2b(tokenizer.read_bytes()).hexdigest() if tokenizer else f"BPE {vocabulary} {most}",
        "key": key, "end": own.end, "validation": own.validation,
    }  # fmt: skip
    _begin(out, plan)
    total = sum(p.size for p in parts)
    try:
        with bars(in_bytes=True) as progress:
            if tokenizer is not None:
                common.copy_file(tokenizer, out / FILE)
            elif not (out / FILE).exists():
                task = progress.add_task("training the tokenizer", total=min(total, most))
                train_bpe(parts, key, vocabulary, most, out / FILE, lambda n: progress.advance(task, n))
            used = JsonTokenizer(out / FILE)
            wide = used.size > 1 << 16
            number = used.number(own.end) if own.end else None
            job = Job(str(out / FILE), str(out / ".parts"), key, -1 if number is None else number, own.validation, wide)
            task = progress.add_task("tokenising", total=total)
            tokenise_all(parts, job, own.workers or limits.cores(), lambda n: progress.advance(task, n))
            about = {**plan, "vocabulary": used.size, "end_token": number}
            made = write_shards(out, out / ".parts", len(parts), own.shard_tokens, own.validation, wide, about)
    except KeyboardInterrupt:
        common.note(f"stopped; the same command goes on where it was (what is done is in {out / '.parts'})")
        raise typer.Exit(130) from None
    except OSError as e:
        raise UserError(f"{out}: {e.strerror or e}", "free some disk space; the same command goes on") from e
    (out / _PLAN).unlink(missing_ok=True)
    tokens = sum(f["tokens"] for f in made["files"])
    print(f"{tokens:,} tokens of {total:,} bytes in {len(made['files'])} files, vocabulary {used.size}: {out}")


def _begin(out: Path, plan: dict[str, Any]) -> None:
    """Make the folder, or find that it was begun with the same sources and settings (or that nothing was done yet)."""
    from tcomp.runtime.cache import write_atomic

    text = json.dumps(plan, indent=1)
    started = (out / _PLAN).exists() and (out / ".parts").is_dir()
    done = started and len([*out.rglob("*")]) > 2  # more than the plan and the folder of parts
    if started and (done or (out / _PLAN).read_text(encoding="utf-8") == text):
        if (out / _PLAN).read_text(encoding="utf-8") != text:
            raise UserError(
                f"{out}: it was begun with other files or settings", "give another --out, or remove it to start again"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not started:
        raise UserError(f"{out}: there is something of that name already", "give another --out, or remove it")
    made = [p for p in (out / ".parts", out, *out.parents) if not p.exists()]
    try:
        (out / ".parts").mkdir(parents=True, exist_ok=started)
        write_atomic(out / _PLAN, lambda f: f.write(text.encode()))
    except OSError as e:
        with suppress(OSError):  # nothing was begun, so nothing stays
            for folder in made:
                folder.rmdir()
        raise UserError(f"{out}: cannot write it: {e.strerror or e}", "give another --out, or make room there") from e


@app.command()
def check(folder: Annotated[Path, typer.Argument(help="What `tcomp data prepare` made.")]) -> None:
    """Verify prepared data against its manifest's checksums."""
    from tcomp.runtime.prepare.shards import check_shards

    print(f"{folder}: {check_shards(folder):,} tokens, sound")
