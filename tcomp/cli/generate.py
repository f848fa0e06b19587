"""`tcomp generate`: text from a run's newest checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tcomp.cli import common, limits
from tcomp.cli.settings import from_json

if TYPE_CHECKING:
    from tcomp.runtime.device import Device


def generate(
    run: Annotated[str, typer.Argument(help="A run's folder, such as runs/gpt2-tiny.")],
    prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "def ",
    count: Annotated[int, typer.Option("--count", "-n", help="Tokens to add.")] = 400,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw among so many likeliest tokens; 0: among all.")] = 0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 1,
    device: Annotated[str, typer.Option(help=common.DEVICE_HELP)] = "cpu",
    gpu: Annotated[str, typer.Option(help=common.GPU_HELP)] = "",
    graph: Annotated[bool, typer.Option("--graph/--no-graph", help=common.GRAPH_HELP)] = True,
    threads: Annotated[int, typer.Option(help="Cores to use; 0: all.")] = 0,
) -> None:
    """Write text with a trained model.

    Examples:

    - `tcomp generate runs/gpt2-tiny`

    - `tcomp generate runs/gpt2-tiny --prompt "class " -n 1000 --temperature 0.6 --top-k 40 --seed 7`
    """
    limits.check_numbers(temperature=temperature, count=count, top_k=top_k, seed=seed, threads=threads)
    limits.check_prompt(prompt)
    limits.check_device(device, gpu)
    runs_on = common.device_for(device, gpu=gpu, threads=threads, graph=graph)
    for text in stream(Path(run), prompt, count, temperature, top_k, seed, runs_on):
        sys.stdout.write(text)
        sys.stdout.flush()
    print()
    runs_on.finish()


def stream(
    run: Path,
    prompt: str,
    count: int,
    temperature: float,
    top_k: int,
    seed: int,
    device: Device,
) -> Iterator[str]:
    """The prompt and then the model's text, piece by piece."""
    from tcomp.runtime import checkpoint
    from tcomp.runtime.generate import ByteDecoder, sample
    from tcomp.runtime.run_folder import read_config
    from tcomp.runtime.train import load_weights, set_scalars

    settings = from_json(read_config(run), str(run / "run.json"))
    saved = checkpoint.newest(run, lambda text: print(f"warning: {text}", file=sys.stderr))
    module = common.load_module(settings.model)
    built = common.build_step(
        settings.model,
        settings.config,
        1,
        settings.length,
        dims=settings.dims,
        precision=saved.manifest.precision,
        programs=("forward",),
        keep_logits=True,
        module=module,
        device=device,
    )
    sizes = ("B", "T")
    dims = {name: value for name, value in built.step.dims.items() if name not in sizes}
    checkpoint.check_same_model(saved, built.step.model, built.step.config, dims, built.step.precision)
    executor = device.open(built.step)
    try:
        set_scalars(executor, {})
        load_weights(executor, saved)
        vocabulary = built.step.inputs["tokens"] or (1 << 16)
        limits.check_prompt(prompt, vocabulary)
        tokens = list(prompt.encode())
        yield prompt
        decoder = ByteDecoder()
        for token in sample(executor, tokens, count, vocabulary, temperature, top_k, seed):
            yield decoder.feed(token)
        yield decoder.end()
    finally:
        executor.close()
