"""`tcomp eval`: a run's loss on data, and its accuracy on multiple-choice questions."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from tcomp.cli import common, limits
from tcomp.cli.settings import from_json
from tcomp.errors import UserError


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run's folder: trained, or imported.")],
    data: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Data as for `train` [default: the run's own].")
    ] = None,
    choices: Annotated[Path | None, typer.Option(metavar="FILE", help="Questions in HellaSwag's format.")] = None,
    batches: Annotated[int, typer.Option(help="Batches of the validation part; 0: all of it.")] = 0,
    questions: Annotated[int, typer.Option(help="At most so many questions; 0: all.")] = 0,
    batch: Annotated[int, typer.Option("--batch", "-B", help="Sequences at a time.")] = 4,
    length: Annotated[int, typer.Option("--length", "-T", help="Tokens per sequence; 0: as in training.")] = 0,
    device: Annotated[str, typer.Option(help=common.DEVICE_HELP)] = "cpu",
    gpu: Annotated[str, typer.Option(help=common.GPU_HELP)] = "",
    threads: Annotated[int, typer.Option(help="Cores to use; 0: all.")] = 0,
) -> None:
    """Measure a run: validation loss and perplexity, or with --choices the accuracy on multiple-choice questions.

    A question is a JSON line {"ctx": text, "endings": [texts], "label": number}. `accuracy` counts the ending of the
    highest probability behind the context, `per token` that of the highest probability per token.

    Examples:

    - `tcomp eval runs/gpt2-tiny`

    - `tcomp eval runs/smollm --data data/books`

    - `tcomp eval runs/smollm --choices hellaswag_val.jsonl --questions 1000`
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tcomp.runtime import checkpoint
    from tcomp.runtime.data import open_data
    from tcomp.runtime.evaluate import answer, read_questions
    from tcomp.runtime.run_folder import PASSED, read_config
    from tcomp.runtime.tokenizer import tokenizer_of
    from tcomp.runtime.train import load_weights, set_scalars, validation_loss

    limits.check_numbers(batch=batch, threads=threads, questions=questions)
    if length or batches:
        limits.check_numbers(length=length or 1, eval_batches=batches or 1)
    limits.check_device(device, gpu)
    settings = from_json(read_config(run), str(run / "run.json"))
    saved = checkpoint.newest(run, lambda text: print(f"warning: {text}", file=sys.stderr))
    asked = read_questions(choices, questions) if choices is not None else []
    module = common.load_module(settings.model)
    numbers = common.numbers_of(module, settings)
    vocabulary, length = int(numbers.get("V", 1 << 16)), length or settings.length
    paths = [Path(p) for p in (data or settings.data)]
    opened = None
    if choices is None:
        opened = open_data(paths, length, vocabulary)
        if opened.text and (run / PASSED / "tokenizer.json").is_file():
            raise UserError(
                "the run has a tokenizer, so text must be prepared with it",
                f"tcomp data prepare TEXT --tokenizer {run / PASSED / 'tokenizer.json'} --out FOLDER",
            )
    runs_on = common.device_for(device, gpu=gpu, threads=threads)
    built = common.build_step(
        settings.model, settings.config, batch, length, dims=settings.dims, precision=saved.manifest.precision,
        programs=("forward",), module=module, device=runs_on,
    )  # fmt: skip
    executor = runs_on.open(built.step)
    try:
        set_scalars(executor, {})
        load_weights(executor, saved)
        if opened is not None:
            count = batches or 1 << 60
            loss = validation_loss(executor, opened, count)
            windows = opened.validation_batches().count
            used = min(count, max(1, windows // batch)) * batch
            print(f"data: {opened.description}")
            print(f"loss {loss:.4f} nats a token, perplexity {_perplexity(loss)}, over {used * length:,} tokens")
        else:
            console = Console(stderr=True)
            columns = (TextColumn("answering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
                task = progress.add_task("", total=len(asked))
                score = None
                for score in answer(executor, tokenizer_of(run), asked, vocabulary):  # noqa: B007  the last one counts
                    progress.advance(task)
            assert score is not None
            print(
                f"{score.questions} questions: accuracy {score.accuracy:.1%}, per token {score.normalised:.1%} "
                f"(chance {score.chance:.1%})"
            )
            if score.cut:
                print(
                    f"{score.cut} contexts were longer than {length} tokens and lost their beginning; a larger -T helps"
                )
    finally:
        executor.close()
    runs_on.finish()


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):.2f}" if loss < 100 else "beyond 1e43"
