"""`tcomp generate`: text from a run's newest checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tcomp.cli import common, limits, options
from tcomp.cli.command import Options, command
from tcomp.cli.limits import Range
from tcomp.cli.options import MANY, RunOptions
from tcomp.cli.run_model import check_step_writes, check_writes, longest_text
from tcomp.cli.settings import TrainSettings, from_json
from tcomp.errors import UserError

if TYPE_CHECKING:
    from tcomp.runtime.checkpoint import Checkpoint
    from tcomp.runtime.device import Device
    from tcomp.runtime.generate import Choice, Scorer

BYTES = 256


@dataclass(frozen=True)
class GenerateOptions(Options):
    """What to write."""

    run: options.Run
    prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "def "
    count: Annotated[int, typer.Option("--count", "-n", help="Tokens to add."), Range(0, MANY)] = 400
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time."), Range(0, 1000)] = 0.8
    top_k: Annotated[int, typer.Option(help="Draw among so many likeliest tokens; 0: among all."), Range(0, MANY)] = 0
    top_p: Annotated[
        float, typer.Option(help="Draw among the likeliest with this probability together."), Range(0, 1)
    ] = 1.0
    seed: Annotated[int, typer.Option(help="The same seed gives the same text."), options.SEED] = 1
    weights: options.Weights = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        limits.check_prompt(self.prompt)


@command
def generate(own: GenerateOptions, where: RunOptions) -> None:
    """Write text with a trained or imported model.

    Each token runs the model over the new position only; earlier keys and values are kept. The run's tokenizer.json is
    used where there is one (imported weights), else tokens are bytes.

    Examples:

    - `tcomp generate runs/gpt2-tiny`

    - `tcomp generate runs/gpt2-tiny --prompt "class " -n 1000 --temperature 0.6 --top-k 40 --seed 7`
    """
    from tcomp.runtime.generate import Choice

    device = where.open()
    choice = Choice(own.temperature, own.top_k, own.top_p)
    show_stream(stream(own.run, own.prompt, own.count, choice, own.seed, device, own.weights))
    print()
    device.finish()


def show_stream(texts: Iterable[str]) -> None:
    """Print pieces of text as they come."""
    for text in texts:
        sys.stdout.write(text)
        sys.stdout.flush()


def stream(
    run: Path, prompt: str, count: int, choice: Choice, seed: int, device: Device, weights: str = ""
) -> Iterator[str]:
    """The prompt and then the model's text, piece by piece; `weights` as of `scorer_for`."""
    from tcomp.runtime import checkpoint
    from tcomp.runtime.generate import sample
    from tcomp.runtime.run_folder import read_config
    from tcomp.runtime.tokenizer import tokenizer_of

    settings = from_json(read_config(run), str(run / "run.json"))
    saved = checkpoint.newest(run, common.warn)
    tokenizer = tokenizer_of(run)
    tokens = tokenizer.encode(prompt)
    if not tokens:
        raise UserError("the prompt has no tokens", "give other characters with --prompt")
    with scorer_for(settings, saved, device, len(tokens), len(tokens) + count, weights) as (scorer, vocabulary):
        if max(tokens) >= vocabulary:
            if tokenizer.size == BYTES:
                limits.check_prompt(prompt, vocabulary)
            raise UserError(
                f"{run}: the tokenizer gives token {max(tokens)}, the model has {vocabulary} words",
                "put the tokenizer.json that the model was trained with into the run's hf folder",
            )
        yield prompt
        decoder = tokenizer.stream()
        for token in sample(scorer, tokens, count, choice, seed, tokenizer.ends):
            yield decoder.feed(token)
        yield decoder.end()


@contextmanager
def scorer_for(
    settings: TrainSettings, saved: Checkpoint, device: Device, prompt: int, longest: int, weights: str = ""
) -> Iterator[tuple[Scorer, int]]:
    """What gives a checkpoint's scores for texts of up to `longest` tokens that begin with `prompt` of them, and the
    size of the vocabulary. `weights` names what the optimizer keeps in the parameters' place (none: themselves)."""
    from tcomp.model.dimensions import of_no_size
    from tcomp.runtime import checkpoint
    from tcomp.runtime.generate import Decoding, Rereading, prefill_part
    from tcomp.runtime.scalars import set_scalars
    from tcomp.runtime.train import load_weights

    module = common.load_module(settings.model, saved.manifest.precision)
    model = common.only_model(module, settings.model)
    check_writes(model)
    window = longest_text(module, settings, longest)
    again = window // 2 if longest > window else 0  # what is run anew each time the window is full
    part = prefill_part(max(prompt - 1, again), window)
    request = settings.forward(saved.manifest.precision)
    request = replace(request, keep_logits=True, sizes={"B": 1, "T": settings.length})
    if model.decode is not None:
        request = replace(
            request,
            programs=("decode",),
            sizes={"B": 1, "T": 1, **dict.fromkeys(model.decode.dims, window)},
            prefill={"T": part} if part else None,
        )
    built = common.build_step(request, device, module=module, to_run=True)
    executor = device.open(built.step)
    try:
        check_step_writes(built.step)
        dims = of_no_size(model, built.step.dims)
        checkpoint.check_same_model(saved, built.step.model, built.step.config, dims, built.step.precision)
        set_scalars(executor, {})
        load_weights(executor, saved, state=weights)
        vocabulary = built.step.inputs["tokens"] or (1 << 16)
        yield (Decoding if model.decode is not None else Rereading)(executor, vocabulary), vocabulary
    finally:
        executor.close()
