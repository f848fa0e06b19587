"""`tcomp roofline`: the table of a small step, and what is refused."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from tcomp.runtime.roofline import Peaks, Row
from tests.cli.support import Tcomp, refused

SMALL = ["--dim", "L=1", "--dim", "H=2", "--dim", "C=16", "-B", "2", "-T", "8", "--threads", "1"]


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings of a moment: the test is of the table, not of the machine."""
    from tcomp.runtime.cpu import ceilings, function_ceilings

    peak, bandwidth = ceilings.fma_peak, ceilings.bandwidth
    monkeypatch.setattr(ceilings, "fma_peak", lambda threads: peak(threads, seconds=0.002, repetitions=2))
    dots = ceilings.dot_peak
    monkeypatch.setattr(ceilings, "dot_peak", lambda threads: dots(threads, seconds=0.002, repetitions=2))
    rate = function_ceilings.function_rate
    monkeypatch.setattr(function_ceilings, "function_rate", lambda f, threads: rate(f, threads, 10, 2))
    monkeypatch.setattr(ceilings, "bandwidth", lambda kind, threads: bandwidth(kind, threads, mib=4, repetitions=2))


def test_a_measured_table(tcomp: Tcomp, tmp_path: Path) -> None:
    result = tcomp("roofline", "gpt2", *SMALL, "--measure", "--runs", "2", "--json", "r.json")
    assert result.code == 0, result.error
    assert "| adamw | 1 |" in result.out and "| whole step |" in result.out and "fma f32" in result.out
    found = json.loads((tmp_path / "r.json").read_text())
    by_name = {k["kernel"]: k for k in found["kernels"]}
    assert by_name["linear"]["flops"] == 16 * 48 * (16 * 2 + 1)
    assert all(k["seconds"] > 0 and k["share"] > 0 for k in found["kernels"])
    assert by_name["crossentropy"]["functions"]["exp"] == 16 * 256
    assert by_name["attention"]["functions"]["exp"] == 2 * 2 * 36
    assert by_name["linear_gelu"]["functions"] == {"tanh": 16 * 64}
    for k in found["kernels"]:
        evaluated = sum(n / found["functions"][f] for f, n in k["functions"].items())
        least = max(k["flops"] / found["peak"], k["bytes"] / found["bandwidth"], evaluated)
        assert k["least"] == pytest.approx(least)
    assert "exp f32" in result.out


def test_without_measuring_there_is_the_least_time_alone(tcomp: Tcomp) -> None:
    result = tcomp("roofline", "gpt2", *SMALL)
    assert result.code == 0, result.error
    (row,) = [line for line in result.out.splitlines() if line.startswith("| adamw |")]
    assert row.endswith(" |  |  |  |  |")


def test_what_is_refused(tcomp: Tcomp) -> None:
    refused(tcomp("roofline", "gpt2", "--device", "cuda"), "--device cuda", "tcomp bench")
    refused(tcomp("roofline", "gpt2", "--runs", "0"), "--runs")
    refused(tcomp("roofline", "gpt2", "--out", "r"), "--out", "--gpu h100")
    refused(tcomp("roofline", "--ladder", "--gpu", "h100"), "--ladder", "leave out")
    refused(tcomp("roofline", "gpt2", "--json", "no/such/folder.json"), "cannot write there")


def test_kernels_that_use_an_instruction_are_held_against_its_peak() -> None:
    product = Row("matmul", "matmul", 1, 100, 1, instruction="vdpbf16ps")
    measured, elsewhere = Peaks(10.0, 1.0, {}, {"vdpbf16ps": 20.0}), Peaks(10.0, 1.0)
    assert product.parts(measured)["compute"] == 5.0 and product.parts(elsewhere)["compute"] == 10.0
    assert replace(product, instruction="").parts(measured)["compute"] == 10.0


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="levels of x86")
def test_products_use_the_instruction_where_the_cpu_has_it(
    tcomp: Tcomp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for level, used in (("sse2+avx512bf16", "vdpbf16ps"), ("sse2", "")):
        monkeypatch.setenv("TCOMP_CPU", level)
        result = tcomp("roofline", "gpt2", *SMALL, "--precision", "bf16", "--json", "r.json")
        assert result.code == 0, result.error
        kernels = {k["kernel"]: k for k in json.loads((tmp_path / "r.json").read_text())["kernels"]}
        assert kernels["linear_gelu"]["instruction"] == kernels["matmul.backward.dW"]["instruction"] == used
        assert not kernels["attention"]["instruction"]
