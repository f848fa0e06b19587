"""Tensor copies: boxes of 1 to 5 dimensions, swizzles, borders, reductions, and what must be waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tcomp.runtime.vgpu.errors import UnknownInstruction
from tcomp.runtime.vgpu.tensor_map import TYPES, encode_tiled
from tests.runtime.vgpu.hopper import init, launch, wait

BYTES = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16, "u8": np.uint8, "u32": np.uint32, "tf32": np.float32}


def tiled(array: np.ndarray, kind: str, box: tuple[int, ...], which: int = 0, **options: Any) -> Callable[..., bytes]:
    """A map of a C-ordered array whose last dimension is the map's first."""
    dims, strides = array.shape[::-1], array.strides[::-1][1:]
    steps = options.pop("steps", (1,) * array.ndim)
    return lambda addresses: encode_tiled(TYPES.index(kind), array.ndim, addresses[which], dims, strides, box, steps,
                                          **options)  # fmt: skip


def load_box(array: np.ndarray, kind: str, box: tuple[int, ...], at: tuple[int, ...], **options: Any) -> Any:
    """The bytes of shared memory after the box at `at` was loaded."""
    report, out = loaded(array, kind, box, at, **options)
    assert report.ok, report
    return out


def loaded(array: np.ndarray, kind: str, box: tuple[int, ...], at: tuple[int, ...], **options: Any) -> Any:
    """The report of a load of the box at `at`, and the bytes of shared memory after it."""
    item, steps = array.itemsize, options.get("steps", (1,) * array.ndim)
    counts = [box[0], *(-(-b // s) for b, s in zip(box[1:], steps[1:], strict=True))]
    size = int(np.prod(counts)) * item
    n = array.ndim
    coordinates = ", ".join(str(c) for c in at)
    body = init(1) + f"""
      @%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], {size};
      @%p0 cp.async.bulk.tensor.{n}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes
          [%r1], [%rd20, {{{coordinates}}}], [%r2];
    """ + wait(0, "0", "W") + f"""
      mov.u32 %r4, %r0;
      L: setp.ge.u32 %p1, %r4, {size // 4}; @%p1 bra END;
      shl.b32 %r5, %r4, 2; add.u32 %r6, %r1, %r5; ld.shared.u32 %r7, [%r6];
      cvt.u64.u32 %rd8, %r5; add.s64 %rd9, %rd1, %rd8; st.global.u32 [%rd9], %r7;
      add.u32 %r4, %r4, 32; bra L;
      END:
    """  # fmt: skip
    report, arrays = launch(body, array, np.zeros(size, np.uint8), shared=max(4096, size),
                            maps=[tiled(array, kind, box, **options)])  # fmt: skip
    return report, arrays[1].view(array.dtype).reshape(counts[::-1])


def numbers(*shape: int, kind: type = np.float32) -> np.ndarray:
    return (np.random.default_rng(5).integers(1, 200, shape)).astype(kind)


def expected(array: np.ndarray, box: tuple[int, ...], at: tuple[int, ...], fill: float = 0) -> np.ndarray:
    """The box by plain indexing of a padded array."""
    out = np.full(box[::-1], fill, array.dtype)
    for index in np.ndindex(*box[::-1]):
        place = tuple(i + a for i, a in zip(index, at[::-1], strict=True))
        if all(0 <= p < s for p, s in zip(place, array.shape, strict=True)):
            out[index] = array[place]
    return out


@pytest.mark.parametrize(("shape", "box", "at"), [
    ((64,), (16,), (8,)),
    ((20, 32), (16, 4), (16, 3)),
    ((3, 10, 16), (8, 4, 2), (4, 5, 1)),
    ((2, 3, 6, 16), (8, 2, 3, 1), (8, 1, 0, 1)),
    ((2, 2, 3, 4, 8), (4, 2, 3, 2, 2), (4, 2, 0, 0, 0)),
])  # fmt: skip
def test_boxes_of_every_rank(shape: tuple[int, ...], box: tuple[int, ...], at: tuple[int, ...]) -> None:
    x = numbers(*shape)
    assert (load_box(x, "f32", box, at) == expected(x, box, at)).all()


@pytest.mark.parametrize("at", [(-4, -1), (24, 17), (40, 2), (0, 30)])
def test_what_lies_outside_is_filled_with_zeros_or_nan(at: tuple[int, int]) -> None:
    x = numbers(20, 32)
    assert (load_box(x, "f32", (16, 4), at) == expected(x, (16, 4), at)).all()
    found = load_box(x, "f32", (16, 4), at, oob_fill=1)
    np.testing.assert_array_equal(found, expected(x, (16, 4), at, np.nan))


@pytest.mark.parametrize(("mode", "span"), [(1, 32), (2, 64), (3, 128)])
@pytest.mark.parametrize("kind", ["bf16", "f32", "u8"])
def test_swizzled_loads_follow_the_address_formula(mode: int, span: int, kind: str) -> None:
    x = numbers(40, 256, kind=BYTES[kind])
    width = span // x.itemsize
    flat = load_box(x, kind, (width, 32), (width, 4), swizzle=mode).reshape(-1).view(np.uint8)
    plain = np.ascontiguousarray(x[4:36, width : 2 * width]).reshape(-1).view(np.uint8)
    a = np.arange(len(plain))
    assert (flat[a ^ (((a >> 7) & {32: 1, 64: 3, 128: 7}[span]) << 4)] == plain).all()


def test_element_strides_skip_rows() -> None:
    x = numbers(20, 32)
    assert (load_box(x, "f32", (16, 8), (0, 1), steps=(1, 3)) == x[1:8:3, :16]).all()


def test_tf32_maps_round_on_the_way() -> None:
    x = np.array([[1.0 + 2.0**-11, 1.0 + 2.0**-10, np.inf, -1.0 - 3 * 2.0**-12]], np.float32)
    assert (load_box(x, "tf32", (4, 1), (0, 0)) == [[1, 1 + 2.0**-10, np.inf, -1 - 2.0**-10]]).all()


STORE = """
  shl.b32 %r4, %r0, 2; add.u32 %r5, %r1, %r4; cvt.rn.f32.u32 %f1, %r0; {fill}
  {fence} bar.sync 0;
  @%p0 cp{reduce}.async.bulk.tensor.2d.global.shared::cta{op}.tile.bulk_group [%rd20, {{{column}, {row}}}], [%r1];
  @%p0 cp.async.bulk.commit_group; {wait}
"""
PARTS = {"fence": "fence.proxy.async.shared::cta;", "reduce": "", "op": "", "column": "4", "row": "2",
         "fill": "st.shared.f32 [%r5], %f1;", "wait": "@%p0 cp.async.bulk.wait_group 0;"}  # fmt: skip


def store(x: np.ndarray, box: tuple[int, int] = (8, 4), map_options: Any = None, **parts: str) -> Any:
    body = STORE.format(**{**PARTS, **parts})
    report, arrays = launch(body, x, maps=[tiled(x, "f32", box, **(map_options or {}))])
    return report, arrays[0].reshape(x.shape)


def test_a_store_writes_its_box_and_drops_what_lies_outside() -> None:
    x = numbers(16, 16)
    tile = np.arange(32, dtype=np.float32).reshape(4, 8)
    report, out = store(x)
    assert report.ok, report
    want = x.copy()
    want[2:6, 4:12] = tile
    assert (out == want).all()
    report, out = store(x, column="12", row="14")
    want = x.copy()
    want[14:, 12:] = tile[:2, :4]
    assert report.ok and (out == want).all()


def test_a_swizzled_store_undoes_a_swizzled_layout() -> None:
    x = numbers(16, 16)
    swizzle = ("shr.u32 %r6, %r4, 7; and.b32 %r6, %r6, 1; shl.b32 %r6, %r6, 4; xor.b32 %r5, %r5, %r6; "
               "st.shared.f32 [%r5], %f1;")  # fmt: skip
    report, out = store(x, map_options={"swizzle": 1}, fill=swizzle)
    assert report.ok, report
    assert (out[2:6, 4:12] == np.arange(32).reshape(4, 8)).all()


def test_reductions_add_to_the_tensor() -> None:
    x = numbers(16, 16)
    report, out = store(x, reduce=".reduce", op=".add")
    assert report.ok, report
    want = x.copy()
    want[2:6, 4:12] += np.arange(32, dtype=np.float32).reshape(4, 8)
    assert (out == want).all()


@pytest.mark.parametrize(("kind", "parts"), [
    ("missing proxy fence", {"fence": ""}),
    ("missing bulk wait", {"wait": ""}),
    ("out of bounds global", {"column": "-4"}),
    ("uninitialised read of shared memory", {"fill": ""}),
    ("write before completion", {"wait": "bar.sync 0; st.shared.f32 [%r5], %f1; @%p0 cp.async.bulk.wait_group 0;"}),
])  # fmt: skip
def test_planted_fault_is_found(kind: str, parts: dict[str, str]) -> None:
    assert kind in store(numbers(16, 16), **parts)[0].kinds()


@pytest.mark.parametrize("parts", [{}, {"reduce": ".reduce", "op": ".add"}])
@pytest.mark.parametrize("column", ["1", "2", "3", "6"])
def test_a_box_that_begins_between_16_bytes_is_found(column: str, parts: dict[str, str]) -> None:
    """An illegal instruction to hardware, whatever the direction of the copy."""
    x = numbers(16, 16)
    report, out = store(x, column=column, **parts)
    found = [f for f in report.findings if f.kind == "unaligned box"]
    assert found and f"element {column} of 4 bytes" in found[0].message and (out == x).all()


@pytest.mark.parametrize(("kind", "item", "at"), [("f32", np.float32, 2), ("bf16", np.uint16, 4), ("u8", np.uint8, 8)])
def test_a_load_that_begins_between_16_bytes_is_found(kind: str, item: type, at: int) -> None:
    x = numbers(16, 64, kind=item)
    assert "unaligned box" in loaded(x, kind, (16, 4), (at, 0))[0].kinds()
    assert (load_box(x, kind, (16, 4), (2 * at, 1)) == expected(x, (16, 4), (2 * at, 1))).all()


def test_a_reference_outside_the_allocation_is_found() -> None:
    x = numbers(16, 16)
    tall = lambda a: encode_tiled(7, 2, a[0], (16, 32), (64,), (8, 4), (1, 1))  # noqa: E731
    report, _ = launch(STORE.format(**{**PARTS, "row": "20"}), x, maps=[tall])
    assert "out of bounds global" in report.kinds()


def test_a_map_that_is_none_or_of_another_rank_is_found() -> None:
    x = numbers(4, 4, 4)
    for make in (lambda a: bytes(128), tiled(x, "f32", (4, 4, 4))):
        report, _ = launch(STORE.format(**PARTS), x, maps=[make])
        assert "bad tensor map" in report.kinds()


def test_unaligned_shared_memory_is_found() -> None:
    x = numbers(16, 16)
    report, _ = launch(STORE.format(**PARTS).replace("[%r1];", "[%r1+16];"), x, maps=[tiled(x, "f32", (8, 4))])
    assert "misaligned" in report.kinds()


def test_what_is_not_modelled_is_refused_by_name() -> None:
    x = numbers(16, 16)
    text = ("@%p0 cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%r1], "
            "[%rd20, {%r0, %r0, %r0}], [%r2], {%h0};")  # fmt: skip
    with pytest.raises(UnknownInstruction, match="PTX line"):
        launch(text, x, maps=[tiled(x, "f32", (8, 4))])
    with pytest.raises(UnknownInstruction, match="narrower than its 128-byte swizzle"):
        store(x, map_options={"swizzle": 3})


def test_maps_may_lie_in_global_memory_and_be_prefetched() -> None:
    x = numbers(16, 16)
    body = STORE.format(**PARTS).replace("%rd20", "%rd1")
    from tcomp.runtime.vgpu import Device
    from tests.runtime.vgpu.hopper import kernel

    gpu = Device()
    p = gpu.upload(x)
    q = gpu.upload(np.frombuffer(tiled(x, "f32", (8, 4))([p]), np.uint8))
    prefetch = "prefetch.tensormap [%rd1]; cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%rd1, {0, 0}];\n"
    report = gpu.load(kernel(prefetch + body, 2)).launch("k", 1, 32, [p, q])
    assert report.ok, report
    assert (gpu.download(p, np.float32, 256).reshape(16, 16)[2:6, 4:12] == np.arange(32).reshape(4, 8)).all()


MAKE = """
  shl.b32 %r4, %r0, 2; add.u32 %r5, %r1, %r4; mov.u32 %r6, 0; st.shared.u32 [%r5+1024], %r6; bar.warp.sync 0xffffffff;
  add.u32 %r7, %r1, 1024; mov.u64 %rd5, 64; mov.u32 %r8, 16; mov.u32 %r9, {box}; mov.u32 %r11, 4; mov.u32 %r12, 1;
  @%p0 tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%r7], %rd0;
  @%p0 tensormap.replace.tile.rank.shared::cta.b1024.b32 [%r7], 1;
  @%p0 tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%r7], 0, %r9;
  @%p0 tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%r7], 1, %r11;
  @%p0 tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%r7], 0, %r8;
  @%p0 tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%r7], 1, %r8;
  @%p0 tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%r7], 0, %rd5;
  @%p0 tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [%r7], 0, %r12;
  @%p0 tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [%r7], 1, %r12;
  @%p0 tensormap.replace.tile.elemtype.shared::cta.b1024.b32 [%r7], 7;
  @%p0 tensormap.replace.tile.interleave_layout.shared::cta.b1024.b32 [%r7], 0;
  @%p0 tensormap.replace.tile.swizzle_mode.shared::cta.b1024.b32 [%r7], 0;
  @%p0 tensormap.replace.tile.fill_mode.shared::cta.b1024.b32 [%r7], 0;
  bar.warp.sync 0xffffffff;
  tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%rd1], [%r7], 128;
  fence.proxy.tensormap::generic.acquire.gpu [%rd1], 128;
"""


def test_a_map_made_in_the_kernel_works_like_one_of_the_host() -> None:
    x = numbers(16, 16)
    body = MAKE.format(box=8) + STORE.format(**PARTS).replace("%rd20", "%rd1")
    report, arrays = launch(body, x, np.zeros(128, np.uint8))
    assert report.ok, report
    assert (arrays[0].reshape(16, 16)[2:6, 4:12] == np.arange(32).reshape(4, 8)).all()


def test_a_map_whose_fields_break_a_rule_is_found_when_it_is_used() -> None:
    body = MAKE.format(box=6) + STORE.format(**PARTS).replace("%rd20", "%rd1")
    report, _ = launch(body, numbers(16, 16), np.zeros(128, np.uint8))
    assert [f for f in report.findings if f.kind == "bad tensor map" and "multiple of 16" in f.message]
