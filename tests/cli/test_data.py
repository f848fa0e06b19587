"""`tcomp data prepare` and `check`: every kind of input, restarts, and what is refused."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcomp.runtime.prepare import source, tokenise
from tcomp.runtime.token_file import open_token_file
from tests.cli.support import Tcomp, refused

tokenizers = pytest.importorskip("tokenizers")
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "again", "and", "again"]


def lines(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 12)) + " é" for _ in range(count)]


def jsonl(path: Path, texts: list[str], key: str = "text") -> None:
    path.write_text("".join(json.dumps({key: t, "n": 1}) + "\n" for t in texts))


def tokens(folder: Path, kind: str) -> np.ndarray:
    return np.concatenate([open_token_file(p).tokens for p in sorted(folder.glob(f"{kind}-*.bin"))])


def documents(folder: Path, kind: str) -> list[str]:
    """The texts of a prepared folder, cut at the end tokens."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id("<|endoftext|>")
    found: list[str] = []
    current: list[int] = []
    for t in tokens(folder, kind).tolist():
        if t == end:
            found.append(tokenizer.decode(current))
            current = []
        else:
            current.append(t)
    assert not current
    return found


def test_json_lines_come_back_as_documents(tcomp: Tcomp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In many parts and several shards: every document once, some held out, checksums right."""
    monkeypatch.setattr(source, "PART_BYTES", 3000)
    texts = lines(300)
    jsonl(tmp_path / "a.jsonl", texts)
    flags = ["--vocabulary", "300", "--validation", "0.1", "--workers", "1", "--shard-tokens", "1000"]
    result = tcomp("data", "prepare", "a.jsonl", "--out", "d", *flags)
    assert result.code == 0, result
    train, val = documents(tmp_path / "d", "train"), documents(tmp_path / "d", "val")
    assert sorted(train + val) == sorted(texts) and 10 < len(val) < 60
    assert len(list((tmp_path / "d").glob("train-*.bin"))) > 2
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
    assert sum(f["tokens"] for f in manifest["files"]) == len(tokens(tmp_path / "d", "train")) + len(
        tokens(tmp_path / "d", "val")
    )
    assert sorted(p.name for p in (tmp_path / "d").iterdir() if p.suffix != ".bin") == [
        "manifest.json",
        "tokenizer.json",
    ]
    assert tcomp("data", "check", "d").code == 0
    path = tmp_path / "d" / "train-00000.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    refused(tcomp("data", "check", "d"), "train-00000.bin: damaged")


def test_the_outcome_depends_neither_on_processes_nor_on_their_end(
    tcomp: Tcomp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "PART_BYTES", 20000)
    jsonl(tmp_path / "a.jsonl", lines(700))
    flags = ["--vocabulary", "300", "--validation", "0.1"]
    assert tcomp("data", "prepare", "a.jsonl", "--out", "one", *flags, "--workers", "1").code == 0
    wait = tokenise.wait

    def killing(running: Any, **kw: Any) -> Any:
        for child in multiprocessing.active_children():
            child.kill()
        return wait(running, **kw)

    with monkeypatch.context() as patched:
        patched.setattr(tokenise, "wait", killing)
        refused(tcomp("data", "prepare", "a.jsonl", "--out", "two", *flags, "--workers", "2"), "killed", "again")
    assert tcomp("data", "prepare", "a.jsonl", "--out", "two", *flags, "--workers", "2").code == 0
    for kind in ("train", "val"):
        np.testing.assert_array_equal(tokens(tmp_path / "one", kind), tokens(tmp_path / "two", kind))


def test_text_and_parquet_and_an_existing_tokenizer(tcomp: Tcomp, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    jsonl(tmp_path / "a.jsonl", lines(50))
    assert tcomp("data", "prepare", "a.jsonl", "--out", "a", "--vocabulary", "300", "--workers", "1").code == 0
    (tmp_path / "b.txt").write_text("\n".join(lines(400, 1)))
    given = ["--tokenizer", "a/tokenizer.json", "--workers", "1", "--validation", "0.2"]
    assert tcomp("data", "prepare", "b.txt", "--out", "b", *given).code == 0
    both = np.concatenate([tokens(tmp_path / "b", "train"), tokens(tmp_path / "b", "val")])
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "a" / "tokenizer.json"))
    assert tokenizer.decode(both.tolist()) == (tmp_path / "b.txt").read_text()
    assert abs(len(tokens(tmp_path / "b", "val")) / len(both) - 0.2) < 0.01
    texts = lines(90, 2)
    table = pyarrow.table({"body": texts, "n": list(range(90))})
    parquet.write_table(table, tmp_path / "c.parquet", row_group_size=40)
    assert tcomp("data", "prepare", "c.parquet", "--out", "c", "--key", "body", *given).code == 0
    assert sorted(documents(tmp_path / "c", "train") + documents(tmp_path / "c", "val")) == sorted(texts)
    refused(tcomp("data", "prepare", "c.parquet", "--out", "x", *given), "no column 'text'", "its columns: body, n")
    (tmp_path / "d.parquet").write_text("PAR1")
    refused(tcomp("data", "prepare", "d.parquet", "--out", "y", *given), "not a parquet file")


def test_a_stopped_run_goes_on(tcomp: Tcomp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PART_BYTES", 3000)
    jsonl(tmp_path / "a.jsonl", lines(200))
    flags = ["--vocabulary", "300", "--validation", "0.1", "--workers", "1"]
    assert tcomp("data", "prepare", "a.jsonl", "--out", "whole", *flags).code == 0
    made: list[int] = []
    real = tokenise.tokenise

    def stopping(number: int, *rest: Any) -> int:
        if number == 3 and 3 not in made:
            made.append(3)
            raise KeyboardInterrupt
        made.append(number)
        return real(number, *rest)

    monkeypatch.setattr(tokenise, "tokenise", stopping)
    result = tcomp("data", "prepare", "a.jsonl", "--out", "d", *flags)
    assert result.code == 130 and "goes on where it was" in result.error
    refused(
        tcomp("data", "prepare", "a.jsonl", "--out", "d", *flags, "--key", "n"), "begun with other files or settings"
    )
    (tmp_path / "d" / ".parts" / "000001.train.bin").write_bytes(b"torn")
    assert tcomp("data", "prepare", "a.jsonl", "--out", "d", *flags).code == 0
    assert made[:4] == [0, 1, 2, 3] and made[4:6] == [1, 3], "what was whole is not made again"
    for kind in ("train", "val"):
        np.testing.assert_array_equal(tokens(tmp_path / "whole", kind), tokens(tmp_path / "d", kind))
    refused(tcomp("data", "prepare", "a.jsonl", "--out", "d", *flags), "holds prepared data already")


def test_bad_input_is_named(tcomp: Tcomp, tmp_path: Path) -> None:
    flags = ["--vocabulary", "300", "--workers", "1", "--out"]
    for name, raw, words in (
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', ("a.jsonl: byte 14: 'text' is no text", "--key")),
        ("b.jsonl", b'{"other": "x"}\n', ("b.jsonl: byte 0: the line has no 'text'",)),
        ("c.jsonl", b"[1\n", ("c.jsonl: byte 0: not a line of JSON",)),
        ("s.jsonl", b'{"text": "\\ud800"}\n', ("s.jsonl: byte 0: 'text' has half of a surrogate pair",)),
        ("d.txt", b"ab\xff", ("d.txt: not UTF-8 text: byte 2",)),
        ("e.txt", b"", ("nothing to prepare",)),
    ):
        (tmp_path / name).write_bytes(raw)
        refused(tcomp("data", "prepare", name, *flags, f"out-{name}"), *words)
    jsonl(tmp_path / "b.jsonl", lines(60))  # mended; nothing of the failed attempt stands in the way
    assert tcomp("data", "prepare", "b.jsonl", *flags, "out-b.jsonl").code == 0
    (tmp_path / "t.json").write_text("{}")
    refused(tcomp("data", "prepare", "d.txt", "--tokenizer", "t.json", *flags, "z"), "t.json: not a tokenizer")
    nowhere = tcomp("data", "prepare", "nowhere", *flags, "z")
    refused(nowhere, "nowhere: no such file or folder")
    assert "--data" not in nowhere.error, "a remedy by an option of another command"
    refused(tcomp("data", "prepare", "d.txt", "--out", "z", "--validation", "0.9"), "validation = 0.9: must be at most")
    refused(tcomp("data", "check", "nowhere"), "no prepared data")
    assert not (tmp_path / "z").exists()


def test_wide_tokens_and_a_run_that_keeps_its_tokenizer(tcomp: Tcomp, tmp_path: Path) -> None:
    """Train on prepared data and generate text with its tokenizer."""
    jsonl(tmp_path / "a.jsonl", lines(300))
    assert tcomp("data", "prepare", "a.jsonl", "--out", "d", "--vocabulary", "300", "--workers", "1").code == 0
    small = [x for d in ("L=1", "H=2", "C=16", "V=300", "G=1", "D=8", "F=24") for x in ("--dim", d)]
    train = ["--steps", "2", "-B", "2", "-T", "16", "--threads", "1", "--sample", "0", "--eval-batches", "1"]
    result = tcomp("train", "llama", *small, *train, "--data", "d", "--run", "run")
    assert result.code == 0, result
    result = tcomp("generate", "run", "--prompt", "the quick", "-n", "5", "--threads", "1")
    assert result.code == 0 and result.out.startswith("the quick"), result
    from tcomp.runtime.token_file import check_vocabulary, write_tokens

    write_tokens(tmp_path / "wide.bin", [np.array([1, 70000, 3])], wide=True)
    file = open_token_file(tmp_path / "wide.bin")
    assert file.tokens.tolist() == [1, 70000, 3] and file.bound == 70001
    check_vocabulary(file, 70001)
    with pytest.raises(Exception, match="token 70000 at position 1 is outside"):
        check_vocabulary(file, 70000)


def test_a_folder_that_cannot_be_begun_leaves_nothing(
    tcomp: Tcomp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk when the plan is written: the next attempt finds nothing in its way."""
    jsonl(tmp_path / "a.jsonl", lines(60))
    (tmp_path / "file").write_text("")
    refused(tcomp("data", "prepare", "a.jsonl", "--out", "file"), "file: there is something of that name already")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("tcomp.runtime.cache.write_atomic", full)
        refused(tcomp("data", "prepare", "a.jsonl", "--out", "new/d"), "d: cannot write it: No space left", "make room")
    assert not (tmp_path / "new").exists()
