"""Results in the place of the operand that they are computed from, and copies that are asked for behind a loop."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.codegen.nvptx.copies import tensor_copy
from tcomp.codegen.nvptx.copies.tensor_tile import TensorTile
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.dsl.errors import TcError
from tcomp.ir.print import print_kernel
from tcomp.ir.tile import Kernel
from tcomp.machine.gpu import H100
from tcomp.runtime.vgpu.report import KernelFault
from tcomp.schedule.gpu import result_panels
from tests.tcomp.nvptx.support import given, launch, lowered, run

RNG = np.random.default_rng(11)
TWO_SMS = replace(H100, sms=2)
TEXT = """
op f(X: bf16[M, K], W: bf16[N, K], b: bf16[N], R: bf16[M, N]) -> Y: bf16[M, N]:
  acc[m, n] = sum k: X[m, k] * W[n, k]
  Y[m, n] = acc[m, n] * R[m, n] + b[n] - R[m, n]

schedule f on sm_90a:
  m -> grid.y(128) / warpgroup(64) / mma
  n -> grid.x(BN) / mma
  k -> pipe(64, 2) / mma
  stage X, W in shared at k by tma
  stage b, R in shared at n by tma
  stage Y in shared at n by tma
  use wgmma for acc
  producer warpgroup(40)
  persistent
"""
WITHOUT_PRODUCER = TEXT.replace("  producer warpgroup(40)\n", "")
SIDES = TEXT.replace("warpgroup(64)", "warpgroup(64, 1)") + "  pingpong\n"
PLACE = re.compile(r"Y\.out\d+: .* in the place of R\.shared\d+")


def kernel(text: str = TEXT, columns: int = 128, m: int = 128, n: int = 128, k: int = 64) -> Kernel:
    return lowered(text.replace("BN", str(columns)), {"M": m, "N": n, "K": k})


@pytest.mark.parametrize(
    ("text", "columns", "m", "n", "k"),
    [
        (SIDES, 128, 900, 136, 72),  # more tiles than the blocks' sides, cut at both ends
        pytest.param(SIDES, 192, 640, 192, 200, marks=pytest.mark.slow),
        (TEXT, 128, 640, 128, 72),  # two warpgroups, each of which delivers its rows
        pytest.param(TEXT, 256, 300, 320, 136, marks=pytest.mark.slow),
        (WITHOUT_PRODUCER, 128, 640, 128, 72),
        (WITHOUT_PRODUCER.replace("  persistent\n", ""), 128, 200, 200, 72),
    ],
)
def test_sums_are_the_same(text: str, columns: int, m: int, n: int, k: int) -> None:
    found = kernel(text, columns, m, n, k)
    assert PLACE.search(print_kernel(found))
    ptx, reports = run(found, given(found, RNG), TWO_SMS)
    assert "st.global" not in ptx and "0 bank conflicts" in str(reports[0])


@pytest.mark.slow
def test_sums_in_f32_are_the_same() -> None:
    text = TEXT.replace("R: bf16", "R: f32").replace("Y: bf16", "Y: f32")
    found = kernel(text, 64, 300, 136, 72)
    assert PLACE.search(print_kernel(found))
    run(found, given(found, RNG), TWO_SMS)


def test_the_place_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = compile_kernel(kernel(SIDES), H100).launches[0].shared_bytes
    monkeypatch.setattr(result_panels, "places", lambda *_: {})
    apart = compile_kernel(kernel(SIDES), H100).launches[0].shared_bytes
    assert apart - shared == 2 * 2 * 128 * 128, "two panels of each side"


FAULTS = {
    "no fence": lambda ptx: ptx.replace("fence.proxy.async.shared::cta;", ""),
    "no wait until copies have read": lambda ptx: re.sub(r"cp\.async\.bulk\.wait_group\.read \d;", "", ptx),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_missing_fence_or_wait_is_found(what: str) -> None:
    found = kernel(SIDES, m=128 * 12)
    gpu = compile_kernel(found, TWO_SMS)
    broken = replace(gpu, ptx=FAULTS[what](gpu.ptx))
    assert broken != gpu
    with pytest.raises(KernelFault, match=r"missing proxy fence|write before completion"):
        launch(found, broken, given(found, RNG))


def freed_too_early(self: TensorTile) -> None:
    self.ring.freed(self.slot)
    tensor_copy.await_deliveries(self.phase.em)


def not_waited_for(self: TensorTile) -> None:
    repeated, self.repeated = self.repeated, False
    COPY(self)
    self.repeated = repeated


COPY = TensorTile._copy


@pytest.mark.parametrize(
    ("owner", "name", "other"),
    [
        (TensorTile, "_left", freed_too_early),
        (TensorTile, "_copy", not_waited_for),
        (GpuEmitter, "group_barrier", lambda self, groups: None),
    ],
)
def test_a_place_that_is_taken_too_early_is_found(
    owner: type, name: str, other: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, other)
    found = kernel(SIDES, m=128 * 12)
    with pytest.raises(KernelFault):
        launch(found, compile_kernel(found, TWO_SMS), given(found, RNG))


OTHERS = {
    "another type": TEXT.replace("R: bf16", "R: f32"),
    "another order": TEXT.replace("R: bf16[M, N]", "R: bf16[N, M]").replace("R[m, n]", "R[n, m]"),
    "read again": TEXT.replace("-> Y: bf16[M, N]", "-> Y: bf16[M, N], Z: bf16[M, N]").replace(
        "\n\nsched", "\n  Z[m, n] = R[m, n] + acc[m, n]\n\nsched"
    ),
    "by threads": TEXT.replace("stage b, R", "stage b"),
    "one panel": TEXT,
}


@pytest.mark.parametrize("what", OTHERS)
def test_where_they_do_not_fit_both_have_places_of_their_own(what: str) -> None:
    assert PLACE.search(print_kernel(kernel()))
    assert not PLACE.search(print_kernel(kernel(OTHERS[what], 64 if what == "one panel" else 128)))


def order(text: str) -> list[str]:
    """Tiles' copies and loops in the kernel's text."""
    return [a or b for a, b in re.findall(r"pack (b|R)\.|(pipe) ", print_kernel(kernel(text, k=128)))]


@pytest.mark.parametrize("text", [TEXT, SIDES])
def test_copies_that_the_end_needs_are_asked_for_behind_the_loop(text: str) -> None:
    assert order(text) == ["pipe", "b", "R"]


@pytest.mark.parametrize("line", ["  producer warpgroup(40)\n", "  persistent\n"])
def test_without_a_producer_that_runs_ahead_they_are_asked_for_first(line: str) -> None:
    assert order(TEXT.replace(line, "")) == ["b", "R", "pipe"]


def test_a_condition_decides_what_is_staged() -> None:
    text = TEXT.replace("stage b, R in shared at n by tma", "stage b, R in shared at n by tma when(K <= 64)")
    assert order(text) == ["pipe"] and PLACE.search(print_kernel(kernel(text)))
    for condition, message in (("when", "takes the condition"), ("when(K, 1)", "takes"), ("when(L)", "parameter 'L'")):
        with pytest.raises(TcError) as e:
            kernel(text.replace("when(K <= 64)", condition))
        assert message in e.value.message and e.value.hint
