"""A progress bar in bytes over tensors that are streamed from one place to another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tcomp.cli.display import bars
from tcomp.runtime.safetensors_file import Array, Stored


@contextmanager
def shown(title: str, tensors: Mapping[str, Stored]) -> Iterator[dict[str, Stored]]:
    """The same tensors; a bar on a terminal advances as their pieces are taken."""
    with bars(in_bytes=True) as progress:
        task = progress.add_task(title, total=sum(t.bytes for t in tensors.values()))

        def watched(name: str, tensor: Stored) -> Stored:
            def pieces() -> Iterator[Array]:
                progress.update(task, description=f"{title} {name}")
                for piece in tensor.pieces():
                    progress.advance(task, piece.nbytes)
                    yield piece

            return Stored(tensor.kind, tensor.shape, pieces)

        yield {name: watched(name, tensor) for name, tensor in tensors.items()}
