"""nvcc: divergent control flow, jump tables, recursion, function pointers, virtual functions, early exits."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tcomp.runtime.vgpu import PtxError

ARCHITECTURES = ("sm_90",)  # the language is tried here, which becomes the same instructions on all
RNG = np.random.default_rng(2)


def int32(v: int) -> int:
    return (v + 2**31) % 2**32 - 2**31


def test_loops_with_break_continue_and_goto(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    def want(v: int) -> int:
        acc = 0
        for a in range(50):
            if v % 7 == 3:
                v += 1
                continue
            b = v & 7
            while b >= 0:
                acc += b * a
                if acc > 5000:
                    return acc
                if not (acc ^ b) & 1:
                    acc += 3
                b -= 1
            v = (v * 5 + 1) & 1023
            if v == 17:
                break
        while True:
            acc -= v & 3
            v >>= 1
            if v <= 1:
                return acc

    x = RNG.integers(0, 1000, 301).astype(np.int32)
    out = cuda.run("control", "loops", 3, 128, x, np.zeros_like(x), 301, arch=arch)[1]
    assert out.tolist() == [want(int(v)) for v in x]


def test_switch_by_jump_table(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    def want(op: int, v: int) -> int:
        if op in (3, 4):
            return (int(v / 7) if op == 3 else v) - 11
        if op == 7:
            for k in range(5):
                v = int32(v * v + k)
            return v
        simple = {0: v * 3 + 1, 1: v ^ 0x5A5A, 2: bin(v & 0xFFFFFFFF).count("1"), 5: int32(v << (v & 7)), 6: ~v, 9: -1}
        return simple.get(op, 0)

    op = RNG.integers(-2, 12, 300).astype(np.int32)
    x = RNG.integers(-1000, 1000, 300).astype(np.int32)
    out = cuda.run("control", "table", 3, 128, op, x, np.zeros_like(x), 300, arch=arch)[2]
    assert out.tolist() == [want(int(o), int(v)) for o, v in zip(op, x, strict=True)]


def test_recursion(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    def fib(n: int) -> int:
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    def ackermann(m: int, n: int) -> int:
        if m == 0:
            return n + 1
        return ackermann(m - 1, 1 if n == 0 else ackermann(m, n - 1))

    (out,) = cuda.run("control", "recursion", 1, 64, np.zeros(50, np.int32), 50, arch=arch)
    assert out.tolist() == [fib(i % 11) * 1000 + ackermann(i % 3, i % 4) for i in range(50)]


def test_recursion_with_arrays_on_the_stack(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x = RNG.integers(0, 100, (40, 12)).astype(np.int32)
    (out,) = cuda.run("control", "quicksort", 1, 40, x, 12, arch=arch)
    assert np.array_equal(out, np.sort(x, axis=1))


def test_mutual_recursion(cuda) -> None:  # type: ignore[no-untyped-def]
    (out,) = cuda.run("control", "mutual", 1, 50, np.zeros(50, np.int32))
    assert np.array_equal(out, np.arange(50) % 2 + 1)


def test_endless_recursion_is_a_stack_overflow(cuda) -> None:  # type: ignore[no-untyped-def]
    report, _ = cuda.launch("control", "endless", 1, 32, np.zeros(32, np.int32))
    assert report.kinds() == {"stack overflow"}


def test_function_pointers(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x, y = RNG.standard_normal((2, 200)).astype(np.float32)
    out = cuda.run("control", "pointers", 2, 128, x, y, np.zeros_like(x), 200, arch=arch)[2]
    i = np.arange(200) % 3
    assert np.array_equal(out, np.select([i == 0, i == 1], [x + y, x * y], x - y))
    for which, want in ((0, x[:64] * 2), (1, x[:64] + 2)):
        assert np.array_equal(
            cuda.run("control", "chosen", 1, 64, x[:64], np.zeros(64, np.float32), which, arch=arch)[1], want
        )


def test_structures_by_value(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    start = [0.5, 1.5, -2, 3, 4]
    raw = np.frombuffer(struct.pack("<5fid", *start, 7, 0.0), np.uint8)

    def twist(v: list[float], n: int, k: int) -> tuple[list[float], int]:
        v = list(v)
        for i in range(5):
            v[i] = v[(i + k) % 5] * 2
        return v, n + k

    want = []
    for t in range(40):
        v, n = twist(start, 7 + t, t % 5)
        v, n = twist(v, n, 2)
        want.append(n * 0.5 + n + sum(x * (i + 1) for i, x in enumerate(v)))
    report, (out,) = cuda.launch("control", "byvalue", 1, 40, raw.tobytes(), np.zeros(40), arch=arch)
    report.check()
    assert np.array_equal(out, want)


def test_printf_is_passed_over_and_assert_holds(cuda) -> None:  # type: ignore[no-untyped-def]
    (out,) = cuda.run("control", "speaking", 1, 32, np.zeros(32, np.int32), 5)
    assert np.array_equal(out, np.arange(32))


def test_failed_assertion_and_trap_are_findings(cuda) -> None:  # type: ignore[no-untyped-def]
    report, _ = cuda.launch("control", "speaking", 1, 32, np.zeros(32, np.int32), 0)
    assert report.kinds() == {"trap"}
    report, _ = cuda.launch("control", "trapping", 1, 32, np.zeros(32, np.int32))
    assert report.kinds() == {"trap"} and report.findings[0].thread == (7, 0, 0)


def test_threads_that_leave_early(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    (out,) = cuda.run("control", "early", 1, 64, np.full(64, 99, np.int32), 64, arch=arch)
    t = np.arange(64)
    assert np.array_equal(out, np.where(t % 32 < 16, t ^ 1, -t))


def test_virtual_functions(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x = RNG.standard_normal(50).astype(np.float32)
    out = cuda.run("control", "virtuals", 1, 64, np.zeros_like(x), x, 50, arch=arch)[0]
    i = np.arange(50) % 3
    want = np.select([i == 0, i == 1], [x * x, 3 * x * x], 3 * x * x - 0.75)
    assert np.allclose(out, want, rtol=1e-6, atol=1e-6)


def test_templates_and_lambdas(cuda) -> None:  # type: ignore[no-untyped-def]
    x = RNG.integers(-9, 9, 60).astype(np.int32)
    out = cuda.run("control", "templates", 1, 32, x, np.zeros(32, np.int32))[1]
    assert np.array_equal(out, [x[t : t + 10].sum() for t in range(32)])
    c = RNG.standard_normal(4).astype(np.float32)
    out = cuda.run("control", "lambdas", 1, 32, c, np.zeros(32, np.float32), 4)[1]
    p = np.polynomial.Polynomial(c[::-1].astype(np.float64))
    assert np.allclose(out, p(0.1 * np.arange(32)) - p(0.5), rtol=1e-4, atol=1e-5)


def test_an_external_function_is_named(cuda) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PtxError, match="elsewhere"):
        cuda.launch("external", "caller", 1, 32, np.zeros(32, np.int32))
