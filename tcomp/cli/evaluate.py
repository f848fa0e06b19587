"""`tcomp eval`: a run's loss on data, and its accuracy on multiple-choice questions."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tcomp.cli import common, limits
from tcomp.cli.display import displays
from tcomp.cli.settings import from_json
from tcomp.errors import UserError

if TYPE_CHECKING:
    from tcomp.runtime.data import Data
    from tcomp.runtime.evaluate import Question
    from tcomp.runtime.executor import Executor

LINE_SECONDS = 5.0
"""Between two lines of progress where there is no terminal."""


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
    from tcomp.runtime import checkpoint
    from tcomp.runtime.data import open_data
    from tcomp.runtime.evaluate import read_questions
    from tcomp.runtime.run_folder import PASSED, read_config
    from tcomp.runtime.scalars import set_scalars
    from tcomp.runtime.train import load_weights

    limits.check_numbers(batch=batch, threads=threads, questions=questions)
    if length or batches:
        limits.check_numbers(length=length or 1, eval_batches=batches or 1)
    limits.check_device(device, gpu)
    limits.check_named("--data", data or [])
    settings = from_json(read_config(run), str(run / "run.json"))
    saved = checkpoint.newest(run, lambda text: print(f"warning: {text}", file=sys.stderr))
    asked = read_questions(choices, questions) if choices is not None else []
    module = common.load_module(settings.model)
    vocabulary = int(common.numbers_of(module, settings).get("V", 1 << 16))
    length = length or settings.length
    runs_on = common.device_for(device, gpu=gpu, threads=threads)

    @contextmanager
    def loaded(rows: int) -> Iterator[Executor]:
        """The model with the run's weights, for `rows` sequences at a time."""
        built = common.build_step(
            settings.model, settings.config, rows, length, dims=settings.dims, precision=saved.manifest.precision,
            programs=("forward",), module=module, device=runs_on, deterministic=settings.deterministic, to_run=True,
        )  # fmt: skip
        executor = runs_on.open(built.step)
        try:
            set_scalars(executor, {})
            load_weights(executor, saved)
            yield executor
        finally:
            executor.close()

    if asked:
        _answer(run, loaded, batch, asked, vocabulary, length)
    else:
        opened = open_data([Path(p) for p in (data or settings.data)], length, vocabulary)
        if opened.text and (run / PASSED / "tokenizer.json").is_file():
            raise UserError(
                "the run has a tokenizer, so text must be prepared with it",
                f"tcomp data prepare TEXT --tokenizer {run / PASSED / 'tokenizer.json'} --out FOLDER",
            )
        _measure(loaded, opened, batch, batches)
    runs_on.finish()


def _measure(loaded: Callable[[int], AbstractContextManager[Executor]], data: Data, batch: int, most: int) -> None:
    """Print the loss over the validation part's windows, each once, or over `most` batches of them."""
    from tcomp.runtime.train import batch_losses

    held_out = data.validation_batches()
    whole, rest = divmod(held_out.count, batch)
    if most and most <= whole:
        whole, rest = most, 0
    total, windows = 0.0, whole * batch + rest
    with _progress("evaluating", windows) as advance:
        for rows, count in ((batch, whole), (rest, 1)):
            if rows and count:
                with loaded(rows) as executor:
                    for loss in batch_losses(executor, held_out, count):
                        total += loss * rows
                        advance(rows)
    loss = total / windows
    print(f"data: {data.description}")
    tokens = windows * data.length
    print(f"loss {loss:.4f} nats a token, perplexity {_perplexity(loss)}, over {tokens:,} tokens")


def _answer(
    run: Path, loaded: Callable[[int], AbstractContextManager[Executor]], batch: int, asked: list[Question],
    vocabulary: int, length: int,
) -> None:  # fmt: skip
    """Print the accuracy on the questions."""
    from tcomp.runtime.evaluate import answer
    from tcomp.runtime.tokenizer import tokenizer_of

    with loaded(batch) as executor, _progress("answering", len(asked)) as advance:
        for score in answer(executor, tokenizer_of(run), asked, vocabulary):  # noqa: B007  the last one counts
            advance(1)
    print(
        f"{score.questions} questions: accuracy {score.accuracy:.1%}, per token {score.normalised:.1%} "
        f"(chance {score.chance:.1%})"
    )
    if score.cut:
        print(f"{score.cut} contexts were longer than {length} tokens and lost their beginning; a larger -T helps")


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, elsewhere a line now and then; what is given takes the number of steps done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    drawn = displays(console)
    with Progress(*columns, console=console, transient=True, disable=not drawn) as progress:
        task = progress.add_task("", total=total)
        done, told = 0, time.monotonic()

        def advance(n: int) -> None:
            nonlocal done, told
            done += n
            progress.advance(task, n)
            if not drawn and time.monotonic() - told >= LINE_SECONDS:
                told = time.monotonic()
                console.print(f"{what}: {done} of {total}", highlight=False)

        yield advance


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):.2f}" if loss < 100 else "beyond 1e43"
