"""What the shipped schedules lower to, as printed tile IR: a change shows as a readable diff.

TCOMP_UPDATE_GOLDENS=1 rewrites the files.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tcomp.dsl.load import load, load_text
from tcomp.ir.print import print_kernel
from tcomp.machine.cpu import CpuMachine
from tcomp.machine.gpu import H100, GpuMachine
from tcomp.schedule.lower import lower

GOLDENS = Path(__file__).parent / "goldens"
MACHINE = CpuMachine("avx512", (), 16, 32, 49152, 2 << 20, 32 << 20, 2)
CASES = {
    "linear_gelu": {"M": 256, "N": 3072, "K": 768},
    "layernorm": {"M": 256, "C": 768},
    "attention": {"B": 4, "T": 256, "H": 12, "D": 64},
    "attention.backward": {"B": 4, "T": 200, "H": 12, "D": 64},
    "global_norm": {"N": 1_000_000},
    "embedding.backward": {"B": 2, "T": 5, "V": 11, "S": 7, "C": 40},
}


@pytest.mark.parametrize("machine", [MACHINE, H100], ids=["cpu", "gpu"])
@pytest.mark.parametrize("name", CASES)
def test_printed_tile_ir(name: str, machine: CpuMachine | GpuMachine) -> None:
    module = load("models/gpt2.tc")
    lowered = lower(module.ops[name], module, CASES[name], machine, threads=2)
    found = "\n".join(print_kernel(k) for k in lowered.kernels)
    path = GOLDENS / (f"gpu/{name}.tile" if machine is H100 else f"{name}.tile")
    if os.environ.get("TCOMP_UPDATE_GOLDENS"):
        path.write_text(found)
    assert found == path.read_text()


def test_causal_attention_visits_no_block_above_the_diagonal() -> None:
    """The loop over key blocks ends with the last one that a query of the block sees."""
    module = load("models/gpt2.tc")
    (kernel,) = lower(module.ops["attention"], module, {"B": 1, "T": 576, "H": 1, "D": 8}, MACHINE).kernels
    text = print_kernel(kernel)
    assert "seq k.0 in 0 .. min(576, min(q.0 + 128, 576)) step 128" in text
    (kernel,) = lower(module.ops["attention.backward"], module, {"B": 1, "T": 256, "H": 1, "D": 8}, MACHINE).kernels
    assert "seq q.0 in max(0, k.0 // 32 * 32) .. 256 step 32" in print_kernel(kernel)


def test_attention_never_holds_a_whole_score_matrix() -> None:
    """No buffer of attention grows with T * T, forward or backward."""
    module = load("models/gpt2.tc")
    for name in ("attention", "attention.backward"):
        sizes = []
        for t in (1024, 4096):
            lowered = lower(module.ops[name], module, {"B": 1, "T": t, "H": 1, "D": 64}, MACHINE)
            assert not lowered.workspaces
            sizes.append(sum(b.bytes for k in lowered.kernels for b in k.tiles))
        assert sizes[1] <= 4 * sizes[0]
        assert sizes[1] < 4096 * 4096


GUARDED = """
op guarded(a: f32[T, T]) -> y: f32[T]:
  p[q, k] = select(k <= q, a[q, k], 0.0)
  y[q] = sum k where k <= q: p[q, k] * {factor}
"""


@pytest.mark.parametrize(("factor", "kept"), [("a[q, k]", False), ("(1.0 / (q - k + 1.0))", True)])
def test_a_guard_is_dropped_only_where_zero_times_the_rest_is_zero(factor: str, kept: bool) -> None:
    """At k = q + 1 the second factor is infinite: without the guard the sum would be NaN."""
    module = load_text(GUARDED.format(factor=factor))
    (kernel,) = lower(module.ops["guarded"], module, {"T": 8}, MACHINE).kernels
    assert ("sum k where" in print_kernel(kernel)) is kept
