"""`tcomp roofline`: the table of a small step, and what is refused."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from tcomp.runtime.roofline import Peaks, Row, table
from tests.cli.support import Tcomp, refused

SMALL = ["--dim", "L=1", "--dim", "H=2", "--dim", "C=16", "-B", "2", "-T", "8", "--threads", "1"]


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings of a moment: the test is of the table, not of the machine."""
    from tcomp.runtime.cpu import ceilings, function_ceilings, launch_ceiling

    peak, bandwidth, gather = ceilings.fma_peak, ceilings.bandwidth, ceilings.gather_bandwidth
    monkeypatch.setattr(ceilings, "gather_bandwidth", lambda row, threads: gather(row, threads, 4, 2))
    launch = launch_ceiling.launch_cost
    monkeypatch.setattr(launch_ceiling, "launch_cost", lambda threads: launch(threads, 50, 2))
    monkeypatch.setattr(ceilings, "fma_peak", lambda threads, lanes: peak(threads, lanes, 0.002, 2))
    dots = ceilings.dot_peak
    monkeypatch.setattr(ceilings, "dot_peak", lambda threads: dots(threads, seconds=0.002, repetitions=2))
    rate = function_ceilings.function_rate
    monkeypatch.setattr(function_ceilings, "function_rate", lambda f, threads: rate(f, threads, 10, 2))
    monkeypatch.setattr(ceilings, "bandwidth", lambda kind, threads: bandwidth(kind, threads, mib=4, repetitions=2))


def test_a_measured_table(tcomp: Tcomp, tmp_path: Path) -> None:
    result = tcomp("roofline", "gpt2", *SMALL, "--accumulation", "3", "--measure", "--runs", "2", "--json", "r.json")
    assert result.code == 0, result.error
    assert "| adamw | 1 |" in result.out and "| whole step |" in result.out and "fma f32" in result.out
    found = json.loads((tmp_path / "r.json").read_text())
    by_name = {k["kernel"]: k for k in found["kernels"]}
    assert by_name["linear"]["flops"] == 3 * 16 * 48 * (16 * 2 + 1)
    assert all(k["seconds"] > 0 and k["share"] > 0 for k in found["kernels"])
    assert by_name["crossentropy_at_once"]["functions"]["exp"] == 3 * 2 * 16 * 256
    assert by_name["attention"]["functions"]["exp"] == 3 * 2 * 2 * 36
    assert by_name["linear_gelu"]["functions"] == {"tanh": 3 * 16 * 64}
    for k in found["kernels"]:
        evaluated = sum(n / found["functions"][f] for f, n in k["functions"].items())
        rows = sum(n / found["gathers"][row] for row, n in k["gathered"].items())
        memory = (k["bytes"] - sum(k["gathered"].values())) / found["bandwidth"] + rows
        least = max(k["flops"] / found["peak"], memory, evaluated) + k["phases"] * found["launch"]
        assert k["least"] == pytest.approx(least)
        in_turn = max(k["flops"] / found["peak"] + evaluated, memory) + k["phases"] * found["launch"]
        assert k["in_turn"] == pytest.approx(in_turn) and k["in_turn"] >= k["least"]
    assert "exp f32" in result.out and "random rows of 64 bytes" in result.out
    assert by_name["embedding"]["gathered"] == {"64": 3 * 16 * 16 * 4}
    assert by_name["linear"]["phases"] == 3 and not by_name["linear"]["gathered"]


def test_without_measuring_there_is_the_least_time_alone(tcomp: Tcomp) -> None:
    result = tcomp("roofline", "gpt2", *SMALL)
    assert result.code == 0, result.error
    (row,) = [line for line in result.out.splitlines() if line.startswith("| adamw |")]
    assert row.endswith(" |  |  |  |  |  |")


def test_what_is_refused(tcomp: Tcomp) -> None:
    refused(tcomp("roofline", "gpt2", "--device", "cuda"), "--device cuda", "tcomp bench")
    refused(tcomp("roofline", "gpt2", "--runs", "0"), "--runs")
    refused(tcomp("roofline", "gpt2", "--out", "r"), "--out", "--gpu h100")
    refused(tcomp("roofline", "--ladder", "--gpu", "h100"), "--ladder", "no other flag")
    refused(tcomp("roofline", "gpt2", "--gpu", "h100", "--measure"), "--measure", "leave out --gpu")
    refused(tcomp("roofline", "gpt2", "--gpu", "h100", "--out", __file__), "cannot make this folder", "--out")
    refused(tcomp("roofline", "gpt2", "--json", "no/such/folder.json"), "cannot write there")
    refused(tcomp("roofline", "gpt2", "--json", "/proc/none.json"), "/proc/none.json: cannot write there: No such file")


def test_kernels_that_use_an_instruction_are_held_against_its_peak() -> None:
    product = Row("matmul", "matmul", 1, 100, 1, instruction="vdpbf16ps")
    measured, elsewhere = Peaks(10.0, 1.0, {}, {"vdpbf16ps": 20.0}), Peaks(10.0, 1.0)
    assert product.parts(measured)["compute"] == 5.0 and product.parts(elsewhere)["compute"] == 10.0
    assert replace(product, instruction="").parts(measured)["compute"] == 10.0


def test_functions_and_products_share_units() -> None:
    row = Row("attention", "attention", 1, 100, 10, 0.02, functions={"exp": 8}, phases=1)
    peaks = Peaks(1e4, 1e4, {"exp": 4e3}, launch=1e-3)
    assert row.least(peaks) == pytest.approx(0.011) and row.in_turn(peaks) == pytest.approx(0.013)
    assert table([row], peaks).splitlines()[-1].endswith("| 55% | 65% |")
    assert replace(row, bytes=1000).in_turn(peaks) == pytest.approx(0.101)  # memory binds


def test_a_small_kernel_takes_its_launches_and_rows_in_random_order_take_longer() -> None:
    row = Row("embedding", "embedding", 1, 0, 100, gathered={64: 60}, phases=3)
    streams, chosen = Peaks(1.0, 10.0), Peaks(1.0, 10.0, gathers={64: 5.0}, launch=8.0)
    assert row.least(streams) == 10.0 and row.bound(streams) == "memory"
    assert row.least(chosen) == 4.0 + 12.0 + 24.0 and row.bound(chosen) == "launch"


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
        assert kernels["attention"]["instruction"] == kernels["attention.backward"]["instruction"] == used
        assert not kernels["layernorm"]["instruction"]
