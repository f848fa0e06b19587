"""Which GPU a rank has, and by what ranks exchange."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tcomp.cli.rank_devices import apart, own_device, way
from tcomp.cli.ranks import built_by
from tcomp.cli.run_settings import common_path, resumed, run_path
from tcomp.cli.settings import TrainSettings, as_json
from tcomp.errors import UserError
from tcomp.machine.cpu import detect
from tcomp.machine.gpu import H100
from tcomp.runtime.cuda import gpus as drivers
from tcomp.runtime.cuda.device import CudaDevice
from tcomp.runtime.cuda.gpus import Gpu
from tcomp.runtime.device import CpuDevice
from tcomp.runtime.distributed.place import Place
from tests.cli.support import Tcomp, own_folders, refused, tcomp

__all__ = ["own_folders", "tcomp"]

NAMES = ["NVIDIA A100", "NVIDIA H100", "NVIDIA A100", "NVIDIA H100"]


def gpu(index: int, name: str = "NVIDIA H100") -> Gpu:
    return Gpu(index, name, (9, 0), 1 << 36, 13000)


@pytest.mark.parametrize(
    ("names", "asked", "found"),
    [
        (NAMES, "cuda", ["cuda:0", "cuda:1", "cuda:2"]),
        (NAMES, "cuda:h100", ["cuda:1", "cuda:3", None]),
        (NAMES, "cuda:2", ["cuda:2", "cuda:2", "cuda:2"]),
        (NAMES[:1], "cuda", ["cuda:0", "cuda:0", "cuda:0"]),
        (NAMES[:2], "cuda", ["cuda:0", "cuda:1", None]),
        ([], "cpu", ["cpu", "cpu", "cpu"]),
    ],
)
def test_a_rank_has_the_gpu_of_its_number_on_its_machine(
    monkeypatch: pytest.MonkeyPatch, names: list[str], asked: str, found: list[str | None]
) -> None:
    monkeypatch.setattr(drivers, "gpus", lambda: [gpu(i, n) for i, n in enumerate(names)])
    for local, wanted in enumerate(found):
        place = Place(local + 3, 6, local, 3)
        if wanted is not None:
            assert own_device(asked, place) == wanted
            continue
        with pytest.raises(UserError, match="3 ranks on this machine, and 2 GPUs") as e:
            own_device(asked, place)
        assert "--nproc-per-node 2" in e.value.hint


def test_ranks_without_a_gpu_do_not_keep_the_others_waiting() -> None:
    said: list[tuple[str, str]] = []
    group: Any = SimpleNamespace(rank=1, neighbours=2, each=lambda name, value: said.append((name, value)) or ["a", ""])
    for device in (CpuDevice(detect(), 1), CudaDevice(gpu(0), H100, virtual=Any)):  # type: ignore[arg-type]
        assert apart(group, device, "cpu", "").machine is device.machine
    assert said == [("gpu", ""), ("gpu", "")]


@pytest.mark.parametrize("first", [True, False])
def test_one_rank_of_a_machine_compiles_while_it_builds(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others began it would wait for, and they for it."""
    asked: list[dict[str, bool]] = []
    monkeypatch.setattr("tcomp.cli.common.build_step", lambda request, device, **how: asked.append(how))
    group: Any = SimpleNamespace(first_here=first, neighbours=2, first_beside=lambda make: make())
    built_by(group, None, CpuDevice(detect(), 1))  # type: ignore[arg-type]
    assert asked == [{"to_run": first, "free": first}]


def test_virtual_gpus_of_ranks_share_the_computers_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from tcomp.runtime.cuda import context, device

    monkeypatch.setattr(device, "memory_here", lambda: 1 << 30)
    monkeypatch.setattr(
        context, "Context", lambda gpu: SimpleNamespace(free_memory=lambda: 1 << 36, close=lambda: None)
    )
    group: Any = SimpleNamespace(rank=1, neighbours=4, each=lambda name, value: [""] * 4)
    alone = CudaDevice(gpu(0), H100, virtual=Any)  # type: ignore[arg-type]
    assert alone.free_memory() == 1 << 30
    assert apart(group, alone, "virtual", "").free_memory() == 1 << 28


def group_of(rank: int, uuids: list[str], has_nccl: bool = False) -> Any:
    return SimpleNamespace(rank=rank, has_nccl=has_nccl, each=lambda name, value: uuids)


@pytest.mark.parametrize(
    ("uuids", "name", "exchange", "shared"),
    [
        (["a", "b"], "cuda", "", 1),
        (["a", "a"], "cuda", "gloo", None),
        (["a", "a"], "cuda:1", "", None),
        (["a", "a"], "cuda:1", "nccl", None),
        (["a", "a"], "cuda:1", "gloo", 2),
    ],
)
def test_ranks_share_a_gpu_only_where_that_is_asked(
    monkeypatch: pytest.MonkeyPatch, uuids: list[str], name: str, exchange: str, shared: int | None
) -> None:
    monkeypatch.setattr(Gpu, "uuid", lambda self: "a")
    device = CudaDevice(gpu(1), H100)
    if shared is not None:
        found = apart(group_of(0, uuids), device, name, exchange)
        assert isinstance(found, CudaDevice) and found.shared_by == shared
        return
    with pytest.raises(UserError, match="ranks 0, 1 have the same GPU, 1: NVIDIA H100") as e:
        apart(group_of(0, uuids), device, name, exchange)
    assert "--device cuda:1 --exchange gloo" in e.value.hint


def test_ranks_exchange_by_nccl_where_it_is_there() -> None:
    real: Any = CudaDevice(gpu(0), H100)
    other: Any = SimpleNamespace(kind="virtual")
    assert way("", real, group_of(0, [], True)) == "nccl" and way("", real, group_of(0, [])) == "gloo"
    assert way("gloo", real, group_of(0, [], True)) == "gloo" and way("", other, group_of(0, [], True)) == "gloo"
    for device, group, said in (
        (real, group_of(0, []), "the installed torch has no NCCL"),
        (other, group_of(0, [], True), "it is for --device cuda, not for virtual"),
    ):
        with pytest.raises(UserError, match=said) as e:
            way("nccl", device, group)
        assert "--exchange gloo" in e.value.hint  # it may be the run's that is resumed: no flag to leave out


def test_ways_that_are_none(tcomp: Tcomp) -> None:
    refused(tcomp("train", "--exchange", "mpi"), "--exchange mpi: there is no such way")
    refused(tcomp("train", "--exchange", "gloo"), "--exchange is about several processes, and there is one")


def test_rank_0_says_its_run_folder_to_those_that_were_given_none(tmp_path: Path) -> None:
    for rank, named, told in ((0, "a", ["a"]), (1, "a", []), (1, "", [""])):
        said: list[str] = []
        group: Any = SimpleNamespace(rank=rank, of_first=lambda name, value: said.append(value) or "b")  # noqa: B023
        assert run_path(TrainSettings(run=named), group) == Path(named or "b") and said == told
    said = []
    group = SimpleNamespace(rank=0, of_first=lambda name, value: said.append(value))
    assert common_path(tmp_path, group) == tmp_path and said == [str(tmp_path)]


def test_a_run_goes_on_elsewhere_by_what_is_there(tmp_path: Path) -> None:
    settings = replace(TrainSettings(), device="cuda", exchange="nccl", ranks=2)
    (tmp_path / "run.json").write_text(json.dumps(as_json(settings)))
    group: Any = SimpleNamespace(size=2)
    assert resumed(tmp_path, {}, None, group).exchange == "nccl"
    assert resumed(tmp_path, {"device": "cpu"}, None, group).exchange == ""
    assert resumed(tmp_path, {"device": "cpu", "exchange": "gloo"}, None, group).exchange == "gloo"
