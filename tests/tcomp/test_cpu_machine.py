"""Detecting the CPU: a level, what follows from it, and limits that are checked."""

from __future__ import annotations

import platform
from dataclasses import replace

import pytest

import tcomp.machine.cpu as cpu
from tcomp.errors import UserError
from tcomp.machine.cpu import detect

X86 = platform.machine().lower() in ("x86_64", "amd64")


def test_the_host_has_sane_figures() -> None:
    m = detect()
    assert m.lanes_f32 in (4, 8, 16) and m.vector_registers in (16, 32)
    assert 8 << 10 <= m.l1_bytes < m.l2_bytes < m.l3_bytes
    assert m.cores >= 1
    assert detect() is m


@pytest.mark.skipif(not X86, reason="limits of x86")
def test_a_limit_lowers_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    sse2 = detect("sse2")
    assert (sse2.name, sse2.lanes_f32, sse2.features, sse2.has_fma) == ("sse2", 4, ("sse2",), False)
    monkeypatch.setenv("TCOMP_CPU", "sse2")
    assert detect() == sse2


@pytest.mark.parametrize(
    ("limit", "message"), [("avx1024", "unknown CPU level"), ("neon" if X86 else "avx2", "has no")]
)
def test_a_limit_that_cannot_be_met_is_refused(limit: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        detect(limit)


@pytest.mark.skipif(not X86, reason="feature sets of x86")
def test_only_whole_feature_sets_raise_the_level() -> None:
    avx2 = frozenset(cpu._AVX2)
    assert cpu._best_level(frozenset()) == "sse2"
    assert cpu._best_level(avx2 - {"fma"}) == "sse2"
    assert cpu._best_level(avx2 | {"avx512f"}) == "avx2"
    avx512 = avx2 | frozenset(cpu._AVX512)
    assert cpu._best_level(avx512) == "avx512"
    assert cpu._best_level(avx2 | {"avx512bf16"}) == "avx2"
    assert cpu._best_level(avx512 | {"avx512bf16"}) == "avx512bf16"
    # A level has its own features only, whatever the host has beside them.
    assert "avx512bf16" not in cpu._level_features("avx512", avx512 | {"avx512bf16"})


def test_a_level_takes_schedules_for_wider_targets_and_for_what_it_emulates() -> None:
    dot = replace(detect(), name="avx512bf16")
    assert dot.targets == ("cpu.avx512bf16", "cpu.avx512", "cpu")
    level = "sse2" if X86 else "neon"
    emulating = detect(f"{level}+avx512bf16")
    assert emulating == replace(detect(level), emulated=("avx512bf16",))
    assert emulating.targets == ("cpu.avx512bf16", f"cpu.{level}", "cpu")
