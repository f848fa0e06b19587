"""Options of several commands are one definition; records of options, and what commands get of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
import typer

from tcomp.cli.command import Given, Options, command
from tcomp.cli.limits import Range, parse_memory
from tcomp.cli.main import COMMANDS, command_line
from tcomp.cli.options import DeviceOptions, StepOptions
from tcomp.cli.settings import TrainSettings
from tcomp.errors import UserError
from tcomp.model.request import StepRequest
from tests.cli.support import Tcomp, refused

SHARED: dict[str, set[str]] = {
    "--config": {"train"}, "--batch": {"eval"}, "--length": {"eval"}, "--accumulation": set(),
    "--dim": {"show", "check", "import"},
    "--precision": set(), "--memory": set(), "--deterministic": set(), "--lock": {"tune"}, "--threads": set(),
    "--device": {"roofline", "tune"}, "--gpu": {"build", "show", "roofline", "tune"}, "--graph": {"show"},
    "--target": set(), "--json": set(), "--dtype": {"bench"}, "--data": {"eval"},
}  # fmt: skip
"""Options of several commands, and the commands with which they say something else."""


def test_an_option_has_one_help_whatever_the_command() -> None:
    helps: dict[str, dict[str, str]] = {flag: {} for flag in SHARED}
    for name in COMMANDS:
        group: Any = command_line(name)
        for p in group.commands[name].params:
            if name not in SHARED.get(p.opts[0], COMMANDS):
                helps[p.opts[0]][name] = p.help
    assert len(helps["--threads"]) > 8 and len(helps["--precision"]) > 5
    for flag, by_command in helps.items():
        assert len(set(by_command.values())) == 1, (flag, by_command)


@dataclass(frozen=True)
class Sizes(Options):
    width: Annotated[int, typer.Option(help="Columns."), Range(1, 8)] = 2
    names: Annotated[list[str], typer.Option(help="Of rows.")] = field(default_factory=list)
    hidden: int = 7


def run(function: Any, *arguments: str) -> None:
    app = typer.Typer()
    app.command()(command(function))
    typer.main.get_command(app).main(list(arguments), standalone_mode=False)


def test_a_command_gets_its_records() -> None:
    found: list[Sizes] = []

    def keep(sizes: Sizes) -> None:
        found.append(sizes)

    keep.__annotations__ = {"sizes": Sizes}
    run(keep)
    run(keep, "--width", "5", "--names", "a", "--names", "b")
    assert found == [Sizes(), Sizes(5, ["a", "b"])]
    with pytest.raises(UserError, match=r"width = 9: must be at most 8\n  help: give --width a number from 1 to 8"):
        run(keep, "--width", "9")
    with pytest.raises(Exception, match="No such option"):
        run(keep, "--hidden", "1")


def test_given_are_the_options_of_the_command_line_alone() -> None:
    found: list[dict[str, Any]] = []

    def keep(given: Given[Sizes]) -> None:
        found.append(dict(given))

    keep.__annotations__ = {"given": Given[Sizes]}
    run(keep)
    run(keep, "--width", "2")
    assert found == [{}, {"width": 2}]


def test_what_is_asked_for_is_one_request() -> None:
    wanted = StepRequest("gpt2", "tiny", {"B": 4, "T": 64}, {"L": 2}, "bf16", 3, memory_limit=10**9, recompute="to fit")
    flags = StepOptions("tiny", 4, 64, 3, "bf16", "1GB", dim=["L=2"])
    settings = TrainSettings("tiny", 4, 64, 3, "bf16", "1GB", dims={"L": 2})
    assert flags.request() == settings.request() == wanted
    assert [parse_memory(m) for m in ("", "unlimited")] == [(None, "cheap"), (None, "never")]


def test_records_are_checked_when_they_are_made() -> None:
    with pytest.raises(UserError, match="there is no precision 'f31'"):
        StepOptions(precision="f31")
    with pytest.raises(UserError, match="--gpu h100 is for --device virtual"):
        DeviceOptions("cpu", "h100")


def test_every_command_that_takes_a_budget_refuses_nonsense_before_work(tcomp: Tcomp) -> None:
    for name in ("build", "plan", "show", "bench", "roofline", "train"):
        refused(
            tcomp(name, "gpt2", "--memory", "much", *(["--plan"] if name == "show" else [])), "--memory much: not an"
        )


def test_sizes_are_told_in_fitting_units(tcomp: Tcomp) -> None:
    forward = tcomp("plan", "gpt2", "-B", "1", "-T", "8", "--memory", "1KB", "--inference")
    refused(forward, "the limit is 1000 B", "or a higher limit")
    assert "--memory" not in forward.error, "there is nothing to compute again"


@pytest.mark.parametrize(
    "flags",
    ["--accumulation 2 --tile", "--memory 1GB --tile", "--lock none --graph", "--nondeterministic --schedule"],
)
def test_show_refuses_what_would_change_nothing_that_it_shows(flags: str, tcomp: Tcomp) -> None:
    refused(tcomp("show", "gpt2", "linear", *flags.split()), flags.split()[0], "show --plan or --launches")
