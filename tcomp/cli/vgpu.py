"""`tcomp vgpu run`: any PTX file on the virtual GPU, with every check, no GPU needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tcomp.cli.display import bars
from tcomp.errors import UserError

app = typer.Typer(no_args_is_help=True, help="The virtual GPU: PTX of any origin, executed and checked on the CPU.")


@app.callback()
def group() -> None:
    """The virtual GPU: PTX of any origin, executed and checked on the CPU."""


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="PTX text.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="One per parameter: f32[1024]=random, =zeros, =empty, =arange, =data.npy; or a number."),
    ] = None,
    kernel: Annotated[str, typer.Option(help="Which kernel; needed when the file has several.")] = "",
    grid: Annotated[str, typer.Option(help="Blocks, as 8 or 8,4,1.")] = "1",
    block: Annotated[str, typer.Option(help="Threads in a block, as 256 or 16,16.")] = "32",
    cluster: Annotated[str, typer.Option(help="Blocks in a cluster, as 2 or 2,1,1.")] = "",
    shared: Annotated[int, typer.Option(help="Bytes of dynamic shared memory.")] = 0,
    show: Annotated[int, typer.Option(help="Print the first N elements of each array afterwards.")] = 4,
) -> None:
    """Launch one kernel of a PTX file and print its report. Ends with 1 when a check has found something.

    Example: `tcomp vgpu run add.ptx f32[1000]=random f32[1000]=random f32[1000]=empty 1000 --grid 4 --block 256`
    """
    from tcomp.runtime.documents import read_small
    from tcomp.runtime.vgpu import Device
    from tcomp.runtime.vgpu.errors import PtxError

    blocks, threads = _dims(grid, "--grid", ((1 << 31) - 1, 65535, 65535)), _dims(block, "--block", (1024, 1024, 64))
    together = _dims(cluster, "--cluster", (16, 16, 16)) if cluster else None
    if shared < 0:
        raise UserError(f"--shared {shared}: must not be negative", "give the bytes of dynamic shared memory, or 0")
    try:
        text = read_small(file)
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(
            f"{file}: cannot read it: {getattr(e, 'strerror', None) or e}", "name a file of PTX text that you may read"
        ) from e
    gpu = Device()
    try:
        module = gpu.load(text)
    except PtxError as e:
        hint = "" if ".version" in text else "this is no PTX; nvcc -ptx, or a compiler's own option, makes it"
        raise UserError(f"{file}: {e.message}", e.hint or hint) from e
    names = module.kernels()
    if not kernel and len(names) != 1:
        raise UserError(f"{file} has the kernels {', '.join(names) or 'none'}", "choose one with --kernel")
    values, arrays = [], []
    for a in arguments or []:
        value, array = _argument(gpu, a)
        values.append(value)
        if array is not None:
            arrays.append((a, value, *array))
    with _shown(math.prod(blocks)) as progress:
        report = module.launch(kernel or names[0], blocks, threads, values, shared, together, progress=progress)
    print(report)
    for text_, address, dtype, count in arrays if show > 0 else []:
        print(f"  {text_}: {gpu.download(int(address), dtype, min(show, count))}")
    if not report.ok:
        raise typer.Exit(1)


@contextmanager
def _shown(blocks: int) -> Iterator[Callable[[int], None]]:
    """Takes the number of blocks that have ended; a bar on a terminal says it."""
    with bars() as bar:
        task = bar.add_task("blocks", total=blocks)
        yield lambda done: bar.update(task, completed=done)


def _dims(text: str, flag: str, most: tuple[int, int, int]) -> list[int]:
    try:
        sizes = [int(p) for p in text.split(",")]
    except ValueError as e:
        raise UserError(f"{flag} {text}: not a size", f"write {flag} 8 or 8,4 or 8,4,1") from e
    if len(sizes) > 3 or not all(1 <= n <= high for n, high in zip(sizes, most, strict=False)):
        raise UserError(f"{flag} {text}: not a size", f"give up to three numbers from 1, at most {most}")
    return sizes


def _argument(gpu: object, text: str) -> tuple[int | float, tuple[str, int] | None]:
    import re

    import numpy as np

    from tcomp.runtime.vgpu import Device

    assert isinstance(gpu, Device)
    m = re.fullmatch(r"(f(?=16|32|64)|[iu])(8|16|32|64)\[([0-9]{1,18})\]=(.+)", text)
    if m is None:
        try:
            return (float(text) if re.search(r"[.eE]", text) and not text.startswith("0x") else int(text, 0)), None
        except ValueError as e:
            raise UserError(f"`{text}` is not an argument", "write a number or f32[1024]=random") from e
    dtype, count, fill = f"{m[1]}{int(m[2]) // 8}", int(m[3]), m[4]
    if fill == "empty":
        return gpu.allocate(np.dtype(dtype).itemsize * count), (dtype, count)
    if fill == "random":
        rng = np.random.default_rng(0)
        data = rng.standard_normal(count) if m[1] == "f" else rng.integers(0, 100, count)
    elif fill in ("zeros", "arange"):
        data = np.zeros(count) if fill == "zeros" else np.arange(count)
    else:
        try:
            with open(fill, "rb") as f:
                data = np.lib.format.read_array(f, allow_pickle=False).reshape(-1)[:count].astype(dtype)
        except (OSError, ValueError) as e:
            raise UserError(f"{fill}: cannot read an array: {e}", "give an array that numpy.save wrote") from e
    return gpu.upload(np.asarray(data).astype(dtype)), (dtype, count)
