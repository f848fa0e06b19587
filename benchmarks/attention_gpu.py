"""Flash attention on an H100 as the static model predicts it, beside what was published, or on another GPU. No GPU is
needed; nothing is timed: every figure of ours is a prediction from assembled machine code.

    python benchmarks/attention_gpu.py [--heads 128,64] [--without overlap|reverse] [--gpu b200] [--forward]

16,384 tokens, 2,048 channels, bf16; operations counted as FlashAttention counts them. Prints each kernel with its
registers and findings of the assembler, and for each published figure the share of its upper end that is predicted.
"""

from __future__ import annotations

import argparse

from published_attention import FIGURES, SHAPES, predictions, rate, shape_name

from tcomp.machine.gpu import H100, machine_named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", default="128,64", help="head sizes, of 128 and 64")
    parser.add_argument("--without", default="", metavar="WORD", help="leave out schedule lines that begin so")
    parser.add_argument("--gpu", default="h100", help="the machine, h100 unless said otherwise")
    parser.add_argument("--forward", action="store_true", help="leave out the backward pass")
    args = parser.parse_args()
    machine = machine_named(args.gpu)
    heads = {int(h) for h in args.heads.split(",")}
    for backward, head, causal in SHAPES:
        if head not in heads or (backward and args.forward):
            continue
        kernels = predictions(backward, head, causal, without=args.without, machine=machine)
        ours = rate(kernels, backward, causal)
        print(f"{shape_name(backward, head, causal)}: predicted {ours:.0f} TFLOP/s")
        for k in kernels:
            findings = ", ".join(m.code for m in k.assembled.findings) or "no findings"
            registers = max(r.registers for r in k.assembled.resources if r.entry)
            print(f"    {k.name:40} {k.seconds * 1e3:7.3f} ms  {registers} registers  {findings}  bound by {k.binding}")
        for f in FIGURES if machine is H100 else ():
            if (f.backward, f.head, f.causal) == (backward, head, causal):
                published = f"{f.low:.0f}" if f.low == f.high else f"{f.low:.0f} to {f.high:.0f}"
                print(f"    published {published}: {ours / f.high:.0%} of it ({f.source})")


if __name__ == "__main__":
    main()
