"""`tcomp eval`: a run's loss on data, a classifier's accuracy, and that on multiple-choice questions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tcomp.cli import common, limits, options
from tcomp.cli.command import Options, command
from tcomp.cli.display import bars
from tcomp.cli.limits import Range
from tcomp.cli.options import MANY, RunOptions
from tcomp.cli.run_model import check_step_writes, check_writes, graph_of, vocabulary_of
from tcomp.cli.settings import from_json
from tcomp.errors import UserError

if TYPE_CHECKING:
    from tcomp.runtime.data import Data
    from tcomp.runtime.evaluate import Question
    from tcomp.runtime.executor import Executor

    Loaded = Callable[[int], AbstractContextManager[Executor]]

LINE_SECONDS = 5.0
"""Between two lines of progress where there is no terminal."""


@dataclass(frozen=True)
class EvalOptions(Options):
    """What to measure a run on."""

    run: options.Run
    data: Annotated[
        list[str],
        typer.Option(
            metavar="PATH...",
            help="Data as for `train`, of which the validation part is read (files with 'val' in their names are one) "
            "[default: the run's own].",
        ),
    ] = field(default_factory=list)
    choices: Annotated[Path | None, typer.Option(metavar="FILE", help="Questions in HellaSwag's format.")] = None
    batches: Annotated[int, typer.Option(help="Batches of the validation part; 0: all of it."), Range(0, MANY)] = 0
    questions: Annotated[int, typer.Option(help="At most so many questions; 0: all."), Range(0, MANY)] = 0
    batch: Annotated[int, typer.Option("--batch", "-B", help="Sequences at a time."), options.SIZES] = 4
    length: Annotated[
        int, typer.Option("--length", "-T", help="Tokens per sequence; 0: as in training."), options.SIZES_OR_0
    ] = 0
    weights: options.Weights = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        limits.check_named("--data", self.data)


@command
def evaluate(own: EvalOptions, where: RunOptions) -> None:
    """Measure a run: validation loss and perplexity (a classifier's accuracy), or with --choices the accuracy on
    multiple-choice questions.

    A question is a JSON line {"ctx": text, "endings": [texts], "label": number}. `accuracy` counts the ending of the
    highest probability behind the context, `per token` that of the highest probability per token.

    Examples:

    - `tcomp eval runs/gpt2-tiny`

    - `tcomp eval runs/smollm --data data/books`

    - `tcomp eval runs/smollm --data val_1.bin val_2.bin`, all of both

    - `tcomp eval runs/smollm --choices hellaswag_val.jsonl --questions 1000`
    """
    from tcomp.runtime import checkpoint
    from tcomp.runtime.data import data_for
    from tcomp.runtime.evaluate import label_of, read_questions
    from tcomp.runtime.examples import inputs_of
    from tcomp.runtime.run_folder import PASSED, read_config
    from tcomp.runtime.scalars import set_scalars
    from tcomp.runtime.train import load_weights, rows_of

    run = own.run
    settings = from_json(read_config(run), str(run / "run.json"))
    saved = checkpoint.newest(run, common.warn)
    asked = read_questions(own.choices, own.questions) if own.choices is not None else []
    module = common.load_module(settings.model)
    if asked:
        check_writes(common.only_model(module, settings.model))
    vocabulary = vocabulary_of(module, settings)
    length = own.length or settings.length
    device = where.open()

    @contextmanager
    def loaded(rows: int) -> Iterator[Executor]:
        """The model with the run's weights, for `rows` sequences at a time."""
        request = replace(settings.forward(saved.manifest.precision), sizes={"B": rows, "T": length})
        executor = device.open(common.build_step(request, device, module=module, to_run=True).step)
        try:
            if rows_of(executor.step) != rows:
                raise UserError(
                    f"a batch of the model {executor.step.model} has {rows_of(executor.step)} rows whatever -B is, "
                    f"and {rows} are to be measured",
                    "let every input begin with the batch's size, such as `input x: f32[B, C]`",
                )
            set_scalars(executor, {})
            load_weights(executor, saved, state=own.weights)
            yield executor
        finally:
            executor.close()

    if asked:
        _answer(own, loaded, asked, vocabulary, length)
    else:
        graph = graph_of(module, replace(settings, length=length), saved.manifest.precision)
        inputs, paths = inputs_of(graph.inputs, graph.bounds), [Path(p) for p in (own.data or settings.data)]
        opened = data_for(paths, inputs, settings.batch, length, vocabulary, to_train=False)
        if opened.text and (run / PASSED / "tokenizer.json").is_file():
            raise UserError(
                "the run has a tokenizer, so text must be prepared with it",
                f"tcomp data prepare TEXT --tokenizer {run / PASSED / 'tokenizer.json'} --out FOLDER",
            )
        label = label_of(graph) if opened.unit == "examples" else None
        _measure(loaded, opened, own.batch, own.batches, label)
    device.finish()


def _measure(loaded: Loaded, data: Data, batch: int, most: int, label: str | None) -> None:
    """Print the loss over the validation part's windows, each once, or over `most` batches of them; with the input that
    is the `label` of examples how many are classified rightly."""
    from tcomp.runtime.evaluate import right
    from tcomp.runtime.train import batch_losses

    held_out = data.validation_batches()
    whole, rest = divmod(held_out.count, batch)
    if most and most <= whole:
        whole, rest = most, 0
    total, known, windows = 0.0, 0, whole * batch + rest
    with _progress("evaluating", windows) as advance:
        for rows, numbers in ((batch, range(whole)), (rest, range(whole, whole + 1))):
            if rows and numbers:
                with loaded(rows) as executor:
                    for loss in batch_losses(executor, held_out, numbers):
                        total += loss * rows
                        known += right(executor, label) if label else 0
                        advance(rows)
    loss = total / windows
    print(f"data: {data.description}")
    over = f"over {windows * data.each:,} {data.unit}"
    per = f" nats a token, perplexity {_perplexity(loss)}" if data.unit == "tokens" else ""
    accuracy = f", accuracy {known / windows:.1%}" if label else ""
    print(f"loss {loss:.4f}{per}{accuracy}, {over}")


def _answer(own: EvalOptions, loaded: Loaded, asked: list[Question], vocabulary: int, length: int) -> None:
    """Print the accuracy on the questions."""
    from tcomp.runtime.evaluate import answer
    from tcomp.runtime.tokenizer import tokenizer_of

    with loaded(own.batch) as executor, _progress("answering", len(asked)) as advance:
        check_step_writes(executor.step)
        for score in answer(executor, tokenizer_of(own.run), asked, vocabulary):  # noqa: B007  the last one counts
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
    with bars() as progress:
        task = progress.add_task(what, total=total)
        done, told = 0, time.monotonic()

        def advance(n: int) -> None:
            nonlocal done, told
            done += n
            progress.advance(task, n)
            if progress.disable and time.monotonic() - told >= LINE_SECONDS:
                told = time.monotonic()
                common.note(f"{what}: {done} of {total}")

        yield advance


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):.2f}" if loss < 100 else "beyond 1e43"
