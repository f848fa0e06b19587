"""Lockfiles: the same choices give the same text, what is stale is not used, what is corrupted is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from tcomp.autotune.apply import Applied, check
from tcomp.autotune.instances import instances_of, op_hash, parse_step, schedule_hash, step_text
from tcomp.autotune.lockfile import Entry, Lock, lock_text, read_lock, update_lock, with_entry
from tcomp.autotune.schedule_text import schedule_from, text_hash
from tcomp.errors import UserError
from tcomp.machine.cpu import detect
from tcomp.model.request import StepRequest
from tcomp.schedule.lower import lower
from tests.autotune.support import SCALE, SHAPE, gpt2, module_of, scale
from tests.cli.support import Tcomp, refused

HEAD = 'format = 1\nmodel = "m"\nmachine = "a"\nsteps = []\n'
TIMED = f'{HEAD}[op.x]\nbasis = "measured"\nvalues = {{}}\ndefault_us = 2.0\nus = 1.0\n'
numbers = st.one_of(st.integers(1, 4096), st.floats(0.25, 64, allow_nan=False))
times = st.floats(1e-6, 10).map(lambda x: round(x * 1e6, 2) * 1e-6)
text = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=8)
hashes = st.text("0123456789abcdef", min_size=12, max_size=12)
values = st.dictionaries(st.text("abcXY.", min_size=1), numbers, max_size=3)
entries = st.builds(
    Entry, hashes, hashes, values, st.sampled_from(["measured", "predicted"]), times, times,
    st.floats(0, 1).map(lambda x: round(x, 4)), text, text,
    st.lists(text, max_size=3).map(lambda lines: "".join(f"{line}\n" for line in lines)), hashes,
)  # fmt: skip
steps = st.lists(text, max_size=2, unique=True).map(lambda s: tuple(sorted(s)))
locks = st.builds(Lock, text, text, steps, st.dictionaries(text, entries, max_size=3))


@settings(derandomize=True, max_examples=60, deadline=None)
@given(locks)
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, lock: Lock) -> None:
    path = tmp_path_factory.getbasetemp() / "law.lock"
    path.write_text(lock_text(lock))
    read = read_lock(path)
    assert lock_text(read) == lock_text(lock)
    assert read.entries.keys() == lock.entries.keys()
    assert all(read.entries[k].values == e.values and read.entries[k].text == e.text for k, e in lock.entries.items())


def entry(values: dict[str, float], text: str = SCALE) -> tuple[Lock, Entry]:
    module, instance, _ = scale(text=text)
    e = Entry(
        op_hash(instance.op, module), schedule_hash(module.schedules["scale", "cpu"]), values, "measured", 2e-6, 1e-6
    )
    return with_entry(Lock("m", detect().name), instance.key, e, "tiny B=1 T=1"), e


def test_lowering_takes_the_lock_s_values() -> None:
    module, instance, _ = scale()
    lock, _ = entry({"A": 32, "U": 3})
    applied = Applied(lock, module, detect(), 1)
    tuned = applied.lower(instance.op, module, dict(instance.dims))
    assert tuned == lower(instance.op, module, dict(instance.dims), detect(), 1, {"A": 32, "U": 3})
    assert tuned != lower(instance.op, module, dict(instance.dims), detect(), 1)
    assert list(applied.used) == [instance.key] and not applied.stale


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("* 2.0", "* 3.0", "the op's text has changed"),
        ("unroll(U)", "unroll(2 * U)", "its schedule has changed"),
        ("from 4, 8, 16, 32", "from 4, 8, 16", "A = 32 is not among its choices 4, 8, 16"),
    ],
)
def test_a_stale_entry_is_said_and_not_used(before: str, after: str, reason: str) -> None:
    lock, _ = entry({"A": 32, "U": 3})
    text = SCALE.replace(before, after)
    module, instance, _ = scale(text=text)
    applied = Applied(lock, module, detect(), 1)
    assert applied.lower(instance.op, module, dict(instance.dims)) == lower(
        instance.op, module, dict(instance.dims), detect(), 1
    )
    assert applied.stale == {instance.key: reason}
    assert reason in "\n".join(applied.warnings(Path("x.lock")))
    assert check(lock, module, [instance], detect(), 1) == ([f"{instance.key}: {reason}"], [])


def test_a_lock_of_another_model_is_said_and_its_entries_hold_by_their_texts() -> None:
    module = gpt2()
    applied = Applied(Lock("llama", detect().name, (), {"x": entry({})[1]}), module, detect(), 1)
    said = applied.warnings(Path("x.lock"))
    assert said == ["x.lock: tuned for model llama, not gpt2", "  0 of its 1 entry are used here"]
    assert not Applied(Lock("gpt2", detect().name), module, detect(), 1).warnings(Path("x.lock"))


CARRIED = "schedule scale on cpu:\n  n -> seq(16) / vec\n  m -> core\n"


def carrying(text: str) -> Lock:
    lock, e = entry({})
    key = next(iter(lock.entries))
    return with_entry(lock, key, replace(e, text=text, text_hash=text_hash(text)), "tiny B=1 T=1")


def test_lowering_takes_a_schedule_that_the_lock_carries(tmp_path: Path) -> None:
    module, instance, _ = scale()
    (tmp_path / "m.lock").write_text(lock_text(carrying(CARRIED)))
    applied = Applied(read_lock(tmp_path / "m.lock"), module, detect(), 1)
    found = applied.lower(instance.op, module, dict(instance.dims))
    given = schedule_from(CARRIED, instance.op, module, detect())
    assert found == lower(instance.op, module, dict(instance.dims), detect(), 1, {}, given)
    assert found != lower(instance.op, module, dict(instance.dims), detect(), 1)
    assert list(applied.used) == [instance.key]


@pytest.mark.parametrize(
    ("lock", "reason"),
    [
        (lambda: edited(carrying(CARRIED)), "was edited, and has not been judged"),
        (lambda: carrying(CARRIED.replace("seq(16)", "unroll(40)").replace("m -> core", "k -> core")), "is refused"),
        (lambda: carrying(CARRIED.replace("scale", "other")), "is refused"),
    ],
)
def test_a_carried_schedule_that_does_not_hold_is_stale(lock: Callable[[], Lock], reason: str) -> None:
    module, instance, _ = scale()
    applied = Applied(lock(), module, detect(), 1)
    plain = lower(instance.op, module, dict(instance.dims), detect(), 1)
    assert applied.lower(instance.op, module, dict(instance.dims)) == plain
    assert reason in applied.stale[instance.key]


def edited(lock: Lock) -> Lock:
    """The lock with a carried text changed by hand: its hash stays."""
    ((key, e),) = lock.entries.items()
    return replace(lock, entries={key: replace(e, text=e.text.replace("seq(16)", "seq(32)"))})


def test_more_choices_or_another_default_make_nothing_stale() -> None:
    lock, _ = entry({"A": 32, "U": 3})
    text = SCALE.replace("A = 8 from 4, 8, 16, 32", "A = 4 from 4, 8, 16, 32, 64")
    module, instance, _ = scale(text=text)
    assert check(lock, module, [instance], detect(), 1) == ([], [])


def test_an_instance_without_an_entry_is_named() -> None:
    module, instance, _ = scale()
    assert check(Lock("m", detect().name), module, [instance], detect(), 1) == ([], [instance.key])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("format = 1\nmodel = ", "not a lockfile"),
        ("format = 7\n", "its format is 7, not 1"),
        ("format = 1.0\n", "its format is 1.0, not 1"),
        ("", "it has no `format`"),
        ("\x00\x01", "not a lockfile"),
        ("a = " + "[" * 100_000, "nested deeper"),
        ("format = " + "9" * 5000, "not a lockfile"),
        ('format = 1\nmodel = "m"\nmachine = "avx2"\n', "`steps` is missing"),
        (HEAD.replace("[]", "{}"), "`steps` is not a list"),
        (HEAD.replace("[]", "[1]"), "`steps` is not a list of texts"),
        (HEAD.replace('"m"', "3"), "`model` is not a text"),
        (f"{HEAD}op = 3\n", "`op` is not a table"),
        (f"{HEAD}op = {{x = 3}}\n", "the entry 'x' is not a table"),
        (f'{HEAD}[op.x]\nbasis = "guessed"\n', "`basis` of 'x' is 'guessed'"),
        *(
            (f'{HEAD}[op.x]\nbasis = "measured"\nvalues = {v}\n', "of 'x' is not a")
            for v in ("3", "[]", '{A = "8"}', "{A = true}", "{A = nan}", f"{{A = 0x{'f' * 1000}}}")
        ),
        (f"{TIMED}margin = 0\nop = [1]\n", "`op` of 'x' is not a text"),
        *((f"{TIMED}margin = {m}\n", "`margin` of 'x' is not a number") for m in ("nan", "inf", "-0.5", "'a'", "true")),
    ],
)
def test_a_corrupted_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "m.lock"
    path.write_text(text)
    with pytest.raises(UserError, match=r"m\.lock") as e:
        read_lock(path)
    assert words in str(e.value) and "tune again" in str(e.value)


def test_a_file_that_does_not_change_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "m.lock"
    lock, e = entry({"A": 4, "U": 1})
    update_lock(path, lambda _: lock, lock)
    before = path.stat().st_mtime_ns, path.read_text()
    update_lock(path, lambda old: old, lock)
    assert (path.stat().st_mtime_ns, path.read_text()) == before
    update_lock(path, lambda old: with_entry(old, "other", replace(e, values={}), "tiny B=1 T=1"), lock)
    assert len(read_lock(path).entries) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["m.lock"]


def test_a_step_s_name_is_read_again() -> None:
    large = StepRequest("gpt2", "124M", {"B": 4, "T": 64}, {"L": 2, "C": 64}, "bf16", 8)
    for step in (SHAPE, large, replace(large, precision="", accumulation=1)):
        assert parse_step(step_text(step), "gpt2") == step
    own = StepRequest("m", "one", {"B": 4, "R": 3}, {"C": 8})  # R is a size of the model's own, as --dim gives it
    assert step_text(own) == "one B=4 C=8 R=3" and parse_step("one B=4 C=8 R=3", "m").dims == {"C": 8, "R": 3}


@pytest.mark.parametrize(
    "text",
    ["", "tiny B", "tiny B=x T=8", "tiny B=inf T=8", "tiny B=0 T=8", "tiny B=1 T=-8", "tiny accumulation=0",
     "tiny B=1e30 T=8", "tiny L=1e30", "tiny L=-1", "tiny accumulation=1e30"],
)  # fmt: skip
def test_what_names_no_step_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_step(text, "gpt2")


def test_instances_are_distinct_and_counted() -> None:
    found = instances_of(gpt2(), StepRequest("gpt2", "tiny", {"B": 2, "T": 16}, {"L": 2}, accumulation=3), detect())
    keys = [i.key for i in found]
    assert len(keys) == len(set(keys))
    linear = next(i for i in found if i.op.name == "linear")
    assert linear.count == 2 * 3, "two layers, three micro-batches"
    assert any("+dW" in k for k in keys), "later micro-batches add to gradients"


def test_functions_count_in_an_op_s_hash() -> None:
    text = "fn twice(x) = 2.0 * x\n\n" + SCALE.replace("X[m, n] * 2.0", "twice(X[m, n])")
    one, two = module_of(text), module_of(text.replace("2.0 * x", "4.0 * x"))
    assert op_hash(one.ops["scale"], one) != op_hash(two.ops["scale"], two)


def test_what_is_shown_is_by_the_lockfile(tcomp: Tcomp, tmp_path: Path) -> None:
    (tmp_path / "scale.tc").write_text(SCALE)
    lock, _ = entry({"A": 32, "U": 3})
    (tmp_path / f"scale.{detect().name}.lock").write_text(lock_text(lock))
    _, instance, _ = scale()
    dims = [f"--dim={name}={extent}" for name, extent in instance.dims.items()]
    shown = ["show", "scale.tc", "scale", "--tile", "--threads", "1", *dims]
    tuned, plain = tcomp(*shown), tcomp(*shown, "--lock", "none")
    assert f"scale.{detect().name}.lock: A = 32, U = 3\n" in tuned.out, tuned
    assert "values of" not in plain.out and tuned.out.splitlines()[2:] != plain.out.splitlines()[1:]
    (tmp_path / "scale.tc").write_text(SCALE.replace("* 2.0", "* 3.0"))
    assert "the op's text has changed" in tcomp(*shown).error
    refused(tcomp(*shown, "--lock", "no.lock"), "no.lock: cannot read the lockfile", "--lock none")
