"""What the consumer warps issue in the steady state of the 4096^3 bf16 matrix product: tcomp's shipped schedule beside
Triton's kernels, assembled for sm_90a by one and the same ptxas. No GPU is needed; nothing is timed.

    python benchmarks/sass_loop.py [--size 4096] [--triton WORDS] [--show]

Prints for each the instructions of the innermost loop by purpose and the number of others per HGMMA. Triton is taken
with each of its ways to write the product at several tiles, and its best is the one with the fewest others per HGMMA
(the flattened loop has the stores of a finished tile in it, under a condition).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steady_loop import SteadyLoop, steady_loop

from tcomp.autotune.sass import functions_of
from tcomp.codegen.nvptx.assembly.disassemble import disassemble
from tcomp.codegen.nvptx.assembly.tools import cuda_tool
from tcomp.codegen.nvptx.assembly.whole_program import assemble_whole, tool_version
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import DType
from tcomp.dsl.load import load_text
from tcomp.dsl.storage import bound
from tcomp.errors import UserError
from tcomp.machine.gpu import H100
from tcomp.schedule.lower import lower

TILES = ((128, 256, 64, 8, 3), (128, 256, 64, 8, 4), (128, 256, 128, 8, 2), (128, 128, 64, 4, 4), (128, 128, 64, 8, 4))
"""rows, columns, depth, warps and stages: those of Triton's tutorial for large products on Hopper, and their kin"""
KINDS = ("matrix", "descriptors", "barriers", "copies", "control", "other")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--triton", default="", help="only its kernels with this in their name; none: no kernel")
    parser.add_argument("--show", action="store_true", help="print tcomp's loop")
    args = parser.parse_args()
    tool = cuda_tool("ptxas")
    if tool is None:
        sys.exit("ptxas is not installed: pip install nvidia-cuda-nvcc")
    print(f"bf16 {args.size}^3 for sm_90a, ptxas {tool_version(tool)}: instructions of the innermost loop")
    print(f"{'':58}" + "".join(f"{k:>12}" for k in KINDS) + "   others per HGMMA")
    ours = loop_of(tcomp_ptx(args.size), tool)
    print(row("tcomp, the shipped schedule", ours))
    if args.show:
        print("\n".join(f"    {i.guard:6} {i.opcode} {', '.join(i.operands)}" for i in ours.instructions))
    best: tuple[float, str] | None = None
    for name, ptx in triton_ptx(args.size, args.triton):
        loop = loop_of(ptx, tool)
        print(row(name, loop))
        best = min(best or (loop.others_per_matrix, name), (loop.others_per_matrix, name))
    if best is not None:
        print(f"tcomp {ours.others_per_matrix:.2f}, Triton's best {best[0]:.2f} ({best[1]})")


def row(name: str, loop: SteadyLoop) -> str:
    kinds = loop.kinds()
    return f"{name:58}" + "".join(f"{kinds[k]:12}" for k in KINDS) + f"{loop.others_per_matrix:19.2f}"


def loop_of(ptx: str, tool: Path) -> SteadyLoop:
    done = assemble_whole(tool, ptx, "sm_90a")
    if done is None:
        raise UserError(f"{tool} refuses the PTX")
    (function,) = functions_of(disassemble(done[0])).values()
    return steady_loop(function)


def tcomp_ptx(size: int) -> str:
    """The shipped schedule of Y = X W^T."""
    module = load_text("import ops.linear\n")
    op = bound(module.ops["matmul"], DType.BF16)
    (kernel,) = lower(op, module, dict.fromkeys("MNK", size), H100).kernels
    return compile_kernel(kernel, H100).ptx


def triton_ptx(size: int, only: str) -> Iterator[tuple[str, str]]:
    """Triton's kernels, by name; those that Triton does not compile are said."""
    try:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
    except ImportError:
        print("triton is not installed: pip install triton")
        return
    os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp(prefix="tcomp-triton-"))
    sys.path.insert(0, str(Path(__file__).parent))
    import triton_products

    for bm, bn, bk, warps, stages in TILES:
        tile = {"BM": bm, "BN": bn, "BK": bk}
        maps = {n: f"tensordesc<bf16[{a}, {b}]>" for n, a, b in (("x", bm, bk), ("w", bn, bk), ("y", bm, bn))}
        plain = dict.fromkeys("xwy", "*bf16")
        grouped = {**tile, "GROUP": 8}
        stay = {**grouped, "SMS": H100.sms}
        variants: list[tuple[str, str, dict[str, str], dict[str, Any]]] = [
            ("pointers", "pointers", plain, grouped),
            ("descriptors", "descriptors", maps, tile),
            ("persistent", "persistent", maps, {**stay, "FLATTEN": False, "SPECIALIZE": False}),
            ("persistent, flattened", "persistent", maps, {**stay, "FLATTEN": True, "SPECIALIZE": False}),
            ("persistent, warp_specialize", "persistent", maps, {**stay, "FLATTEN": False, "SPECIALIZE": True}),
        ]
        for label, name, types, constants in variants:
            title = f"Triton {triton.__version__} {label} {bm}x{bn}x{bk}/{warps}/{stages}"
            if only not in title:
                continue
            kernel = getattr(triton_products, name)
            signature = {a: types.get(a, "constexpr" if a in constants else "i32") for a in kernel.arg_names}
            places = {(kernel.arg_names.index(c),): v for c, v in constants.items()}
            whole: dict[tuple[int, ...], Any] = {
                (n,): [["tt.divisibility", 16]]
                for n, a in enumerate(kernel.arg_names)
                if signature[a] in ("i32", "*bf16")
            }
            try:
                source = ASTSource(kernel, signature=signature, constexprs=places, attrs=whole)
                options = {"num_warps": warps, "num_stages": stages}
                with _quiet():
                    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
            except Exception as e:  # its passes fail in many ways
                print(f"{title}: does not compile ({type(e).__name__})")
                continue
            yield title, built.asm["ptx"]


class _quiet:
    """Nothing on the error stream, where a failed pass prints its whole program."""

    def __enter__(self) -> None:
        self.kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)

    def __exit__(self, *_: object) -> None:
        os.dup2(self.kept, 2)
        os.close(self.kept)


if __name__ == "__main__":
    main()
