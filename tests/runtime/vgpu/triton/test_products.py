"""Triton: products by tensor descriptors (TMA on sm_90), persistent, grouped, batched, in clusters, of small types."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tcomp.runtime.vgpu import Device
from tests.runtime.vgpu.triton.conftest import Descriptor

RNG = np.random.default_rng(24)
M, N, K = 192, 128, 96
SMALL = {"BM": 64, "BN": 64, "BK": 32}


def half(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float16)


def close(found: np.ndarray, a: np.ndarray, b: np.ndarray) -> bool:
    return np.allclose(found, a.astype(np.float32) @ b.astype(np.float32), rtol=2e-2, atol=2e-2)


def matrices(m: int = M, n: int = N, k: int = K) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return half(m, k), half(n, k), np.zeros((m, n), np.float16)


def described(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> list[Descriptor]:
    return [Descriptor(a, (64, 32)), Descriptor(b, (64, 32)), Descriptor(c, (64, 64))]


def test_descriptors_made_in_the_kernel(triton, cap) -> None:  # type: ignore[no-untyped-def]
    a, b, c = matrices(100, 72, 96)
    built = triton.compile("matmul_descriptors", [a, b, c, 100, 72, 96], SMALL, {}, cap, num_warps=4)
    assert ("cp.async.bulk.tensor" in built.asm["ptx"]) == (cap == 90)
    found = triton.run("matmul_descriptors", (2, 2), a, b, c, 100, 72, 96, cap=cap, constants=SMALL)[2]
    assert close(found, a, b.T)


def test_descriptors_made_by_the_host(triton, cap) -> None:  # type: ignore[no-untyped-def]
    a, b, c = matrices(128, 128)
    found = triton.run("matmul_host_descriptors", (2, 2), *described(a, b, c), K, cap=cap, constants=SMALL)[2]
    assert close(found, a, b.T)


@pytest.mark.parametrize("specialised", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_persistent_programs_with_descriptors(triton, cap, specialised) -> None:  # type: ignore[no-untyped-def]
    a, b, c = matrices()
    found = triton.run("persistent", 3, *described(a, b, c), M, N, K, cap=cap, num_stages=3,
                       constants={**SMALL, "PROGRAMS": 3, "WS": specialised})[2]  # fmt: skip
    assert close(found, a, b.T)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["persistent_dev", "persistent_ptr"])
def test_persistent_programs(triton, cap, kernel) -> None:  # type: ignore[no-untyped-def]
    m, n, k = (M, N, K) if kernel == "persistent_dev" else (100, 130, 72)
    a, b, c = matrices(m, n, k)
    constants = {**SMALL, "PROGRAMS": 3}
    assert close(triton.run(kernel, 3, a, b, c, m, n, k, cap=cap, num_stages=3, constants=constants)[2], a, b.T)


def test_two_blocks_share_a_tile_in_a_cluster(triton) -> None:  # type: ignore[no-untyped-def]
    m, n, k = 256, 128, 64
    a, b, c = half(m, k), half(k, n), np.zeros((m, n), np.float16)
    found = triton.run("matmul", 2, a, b, c, m, n, k, k, 1, n, 1, n, 1, cap=90, num_ctas=2,
                       constants={"BM": 128, "BN": 128, "BK": 32, "GROUP": 1, "PRECISION": "tf32"})[2]  # fmt: skip
    assert close(found, a, b)


@pytest.mark.slow
def test_groups_of_products_in_one_launch(triton, cap) -> None:  # type: ignore[no-untyped-def]
    sizes = [(40, 50, 64), (100, 30, 32), (64, 64, 96)]
    tables: list[Any] = [np.zeros(3, np.int64)] * 3
    constants = {"PROGRAMS": 2, "BM": 32, "BN": 32, "BK": 32}
    built = triton.compile("grouped", [*tables, np.zeros(9, np.int32), 3], constants, {}, cap, num_warps=4)
    gpu = Device(sm=cap)
    a, b = [half(m, k) for m, _, k in sizes], [half(k, n) for _, n, k in sizes]
    c = [np.zeros((m, n), np.float16) for m, n, _ in sizes]
    places = [[gpu.upload(x) for x in group] for group in (a, b, c)]
    arguments = [gpu.upload(np.array(p, np.int64)) for p in places]
    gpu.load(built.asm["ptx"]).launch(
        built.metadata.name, 2, 128, [*arguments, gpu.upload(np.array(sizes, np.int32)), 3, 0, 0], built.metadata.shared
    ).check()
    for place, out, x, y in zip(places[2], c, a, b, strict=True):
        assert close(gpu.download(place, np.float16, out.size).reshape(out.shape), x, y)


def test_a_batch_in_one_program(triton, cap) -> None:  # type: ignore[no-untyped-def]
    a, b = half(4, 32, 16), half(4, 16, 32)
    constants = {"B": 4, "M": 32, "N": 32, "K": 16}
    assert close(
        triton.run("batched", 1, a, b, np.zeros((4, 32, 32), np.float32), cap=cap, constants=constants)[2], a, b
    )


def test_eight_bit_integers(triton, cap) -> None:  # type: ignore[no-untyped-def]
    a, b = (RNG.integers(-99, 99, (64, 64)).astype(np.int8) for _ in range(2))
    constants = {"M": 64, "N": 64, "K": 64}
    found = triton.run("int8dot", 1, a, b, np.zeros((64, 64), np.int32), cap=cap, constants=constants)[2]
    assert np.array_equal(found, a.astype(int) @ b.astype(int).T)


@pytest.mark.slow
def test_scaled_blocks(triton) -> None:  # type: ignore[no-untyped-def]
    import torch

    m, n, k = 32, 32, 64
    a, b = torch.randn(m, k).to(torch.float8_e4m3fn), torch.randn(k, n).to(torch.float8_e4m3fn)
    sa, sb = (RNG.integers(125, 130, (r, k // 32)).astype(np.uint8) for r in (m, n))
    raw = [x.view(torch.uint8).numpy() for x in (a, b)]
    found = triton.run("scaled", 1, raw[0], sa, raw[1], sb, np.zeros((m, n), np.float32), cap=90,
                       types={0: "*fp8e4nv", 2: "*fp8e4nv"}, constants={"M": m, "N": n, "K": k})[4]  # fmt: skip
    scales = [np.repeat(np.exp2(s.astype(int) - 127.0), 32, 1) for s in (sa, sb)]
    assert close(found, a.float().numpy() * scales[0], b.float().numpy() * scales[1].T)


def test_a_descriptor_that_adds(triton) -> None:  # type: ignore[no-untyped-def]
    x, y = np.zeros((64, 32), np.float32), RNG.standard_normal((32, 32)).astype(np.float32)
    found = triton.run("descreduce", 4, Descriptor(x, (32, 32)), y, 32, cap=90, constants={"BM": 32, "BN": 32})[0]
    assert np.allclose(found, np.tile(y * 2, (2, 1)))
