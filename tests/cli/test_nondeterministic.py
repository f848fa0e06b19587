"""`--nondeterministic`: sums that blocks add up in any order are refused without it, by a message that names it."""

from __future__ import annotations

from pathlib import Path

from tests.cli.support import Tcomp, refused

MODEL = """import ops.crossentropy

op constant(peak_lr: f32[]) -> lr: f32[]:
  lr = peak_lr

op sgd(inout p: f32[N], g: f32[N], inout m: f32[N], lr: f32[], beta: f32[]) -> w: real[N]:
  m[i] = beta * m[i] + g[i]
  p[i] = p[i] - lr * m[i]
  w[i] = p[i]

op total(X: f32[M, N]) -> y: f32[N]:
  y[n] = sum m: X[m, n]

schedule total on gpu:
  m -> grid(4)
  n -> lane
  combine y over m by atomic

model sums(B, T):
  config one: M = 8, N = 4
  param w: f32[M, N] = normal(0.1) in all
  forward:
    y = total(w)
    loss = mean(y)
  loss loss
  optimizer sgd:
    hyper peak_lr = 0.1
    group all: beta = 0.9
    lr by constant
"""


def test_atomic_sums_are_refused_and_taken(tcomp: Tcomp, tmp_path: Path) -> None:
    (tmp_path / "sums.tc").write_text(MODEL)
    build = ("build", "sums.tc", "--target", "sm_80", "-T", "1")
    refused(tcomp(*build), "sums.tc:", "would depend on the order", "--nondeterministic")
    taken = tcomp(*build, "--nondeterministic")
    assert taken.code == 0, taken.error
    refused(tcomp(*build), "would depend on the order")  # and no step that was kept of the other build is used


def test_atomic_sums_are_checked_against_the_oracle(tcomp: Tcomp, tmp_path: Path) -> None:
    """Within the tolerance that is allowed to sums."""
    (tmp_path / "total.tc").write_text(MODEL[MODEL.index("op total") : MODEL.index("model sums")])
    check = ("check", "total.tc", "total", "--trials", "1", "--dim", "M=9", "--dim", "N=3", "--device", "virtual")
    refused(tcomp(*check), "1 op is refused")
    assert "`tcomp check` --nondeterministic" in tcomp(*check).out
    taken = tcomp(*check, "--nondeterministic")
    assert taken.code == 0 and "total                        ok" in taken.out, taken
