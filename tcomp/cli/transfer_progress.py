"""A progress bar in bytes over tensors that are streamed from one place to another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tcomp.cli.display import displays
from tcomp.runtime.safetensors_file import Array, Stored


@contextmanager
def shown(title: str, tensors: Mapping[str, Stored]) -> Iterator[dict[str, Stored]]:
    """The same tensors; a bar on a terminal advances as their pieces are taken."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn(title),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not displays(console)) as progress:
        task = progress.add_task("", total=sum(t.bytes for t in tensors.values()))

        def watched(name: str, tensor: Stored) -> Stored:
            def pieces() -> Iterator[Array]:
                progress.update(task, description=name)
                for piece in tensor.pieces():
                    progress.advance(task, piece.nbytes)
                    yield piece

            return Stored(tensor.dtype, tensor.shape, pieces)

        yield {name: watched(name, tensor) for name, tensor in tensors.items()}
