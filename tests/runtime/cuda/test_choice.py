"""Which GPU, which target, what the driver's answers mean: all that needs no driver."""

from __future__ import annotations

import pytest
from cuda.bindings import driver as cu

from tcomp.errors import UserError
from tcomp.runtime.cuda.driver import CudaError, call
from tcomp.runtime.cuda.gpus import Gpu, check_target, choose, runs_on, target_of


def gpu(index: int = 0, name: str = "NVIDIA H100 80GB HBM3", capability: tuple[int, int] = (9, 0)) -> Gpu:
    return Gpu(index, name, capability, 80 << 30, 13000)


@pytest.mark.parametrize(
    ("capability", "target"),
    [
        ((8, 0), "sm_80"), ((8, 6), "sm_80"), ((8, 9), "sm_89"), ((9, 0), "sm_90a"), ((10, 0), "sm_100a"),
        ((10, 3), "sm_103a"), ((11, 0), "sm_110a"), ((12, 0), "sm_120a"), ((12, 1), "sm_89"),
    ],
)  # fmt: skip
def test_the_target_is_the_best_that_runs(capability: tuple[int, int], target: str) -> None:
    assert target_of(gpu(capability=capability)) == target
    check_target(target, gpu(capability=capability))


@pytest.mark.parametrize(
    ("target", "capability", "how"),
    [
        ("sm_80", (8, 0), "code"), ("sm_80", (8, 6), "code"), ("sm_80", (9, 0), "ptx"), ("sm_89", (8, 6), "no"),
        ("sm_89", (12, 0), "ptx"), ("sm_90a", (9, 0), "code"), ("sm_90a", (10, 0), "no"), ("sm_100a", (10, 3), "no"),
    ],
)  # fmt: skip
def test_where_a_targets_code_runs(target: str, capability: tuple[int, int], how: str) -> None:
    assert runs_on(target, capability) == how


def test_the_wrong_architecture_is_one_message() -> None:
    with pytest.raises(UserError, match=r"compiled for sm_90a, and GPU 0, NVIDIA A100, is sm_80") as e:
        check_target("sm_90a", gpu(name="NVIDIA A100", capability=(8, 0)))
    assert "sm_80" in e.value.hint


def test_a_gpu_that_is_too_old() -> None:
    with pytest.raises(UserError, match=r"Tesla T4, has compute capability 7.5, which is too old"):
        target_of(gpu(name="Tesla T4", capability=(7, 5)))


def test_gpus_are_chosen_by_number_or_name() -> None:
    found = [gpu(), gpu(1, "NVIDIA A100-SXM4-80GB", (8, 0)), gpu(2)]
    assert choose("", found).index == 0
    assert choose("2", found).index == 2
    assert choose("a100", found).index == 1
    for which in ("3", "4090"):
        with pytest.raises(UserError, match=f"no GPU {which}") as e:
            choose(which, found)
        assert "1: NVIDIA A100" in e.value.hint
    with pytest.raises(UserError, match="lists no GPU"):
        choose("", [])


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("NO_DEVICE", "driver is there, but no GPU"),
        ("STUB_LIBRARY", "toolkit's stub, not a driver"),
        ("SYSTEM_DRIVER_MISMATCH", "library and its kernel module are of different versions"),
        ("CALL_REQUIRES_NEWER_DRIVER", "driver is too old"),
    ],
)
def test_what_is_missing_is_said_in_words(result: str, message: str) -> None:
    with pytest.raises(CudaError, match=message) as e:
        call(lambda: (getattr(cu.CUresult, f"CUDA_ERROR_{result}"),))
    assert "--device cpu" in e.value.hint and "--device virtual" in e.value.hint
    assert e.value.name == result and not e.value.sticky


def test_a_driver_without_a_function_is_old() -> None:
    def cuGraphInstantiate() -> None:
        raise RuntimeError('Function "cuGraphInstantiateWithParams" not found')

    with pytest.raises(CudaError, match="too old: it has no cuGraphInstantiate"):
        call(cuGraphInstantiate)


def test_results_come_without_the_status() -> None:
    done = cu.CUresult.CUDA_SUCCESS
    assert call(lambda: (done,)) is None
    assert call(lambda: (done, 5)) == 5
    assert call(lambda: (done, 5, 6)) == (5, 6)
