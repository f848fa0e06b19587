"""Data: what is read, how it is split and shuffled, and what is said about bad data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tcomp.errors import UserError
from tcomp.runtime.batches import Batches, Segment, permuted, split
from tcomp.runtime.data import open_data
from tcomp.runtime.text_source import byte_tokens, standard_library_files, text_files
from tcomp.runtime.token_file import MAGIC, open_token_file, write_tokens


def bin_file(path: Path, tokens: list[int], magic: int = MAGIC, version: int = 1, count: int | None = None) -> Path:
    """A token file written by hand, as llm.c does."""
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    path.write_bytes(header.tobytes() + np.array(tokens, "<u2").tobytes())
    return path


@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
def test_permutation_visits_every_number_once(count: int, key: int) -> None:
    assert sorted(permuted(i, count, key) for i in range(count)) == list(range(count))


def test_permutation_depends_on_its_key() -> None:
    assert [permuted(i, 100, 1) for i in range(100)] != [permuted(i, 100, 2) for i in range(100)]


@given(st.integers(5, 200), st.integers(1, 9), st.integers(1, 4))
def test_an_epoch_shows_every_window_once_and_targets_follow_inputs(size: int, length: int, rows: int) -> None:
    if size < length + 1:
        return
    batches = Batches([Segment(np.arange(size, dtype=np.uint16), 0, size)], length, seed=3)
    windows = batches.count
    tokens, targets = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
    seen = []
    for _ in range(windows):
        batches.fill({"tokens": tokens, "targets": targets})
        assert (targets == tokens + 1).all()
        seen.append(int(tokens[0, 0]))
    assert sorted(seen) == [i * length for i in range(windows)]


def test_the_stream_goes_on_from_its_state() -> None:
    def stream() -> Batches:
        return Batches([Segment(np.arange(500, dtype=np.uint16), 0, 500)], 8, seed=5)

    whole, part = stream(), stream()
    first, second = np.zeros((2, 3, 8), np.int32), np.zeros((2, 3, 8), np.int32)
    for _ in range(45):  # more than two epochs
        whole.fill({"tokens": first[0], "targets": first[1]})
    part.state = whole.state
    for _ in range(30):
        whole.fill({"tokens": first[0], "targets": first[1]})
        part.fill({"tokens": second[0], "targets": second[1]})
        assert (first == second).all()
    assert whole.state[0] >= 2


def test_epochs_and_seeds_differ() -> None:
    def draw(seed: int, epoch: int) -> list[int]:
        batches = Batches([Segment(np.arange(400, dtype=np.uint16), 0, 400)], 8, seed)
        batches.state = (epoch, 0)
        tokens = np.zeros((10, 8), np.int32)
        batches.fill({"tokens": tokens, "targets": tokens.copy()})
        return [int(v) for v in tokens[:, 0]]

    assert len({tuple(draw(s, e)) for s in (1, 2) for e in (0, 1, 2)}) == 6


def test_training_and_validation_do_not_overlap() -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    first, last = split(tokens, 16)
    assert first.stop == last.start and last.stop == 1000 and first.start == 0
    assert last.stop - last.start == 50


def test_standard_library_is_the_default_text() -> None:
    data = open_data([], 64, 256)
    assert data.text and len(data.train[0].tokens) > 1_000_000
    files = standard_library_files()
    assert sum(f.stat().st_size for f in files) <= 8_000_000
    assert files == standard_library_files()
    assert not any({"test", "tests", "site-packages"} & set(f.parts) for f in files)


def test_text_is_tokenised_once(text: Path, cache: Path) -> None:
    first = byte_tokens([text])
    made = first.path.stat().st_mtime_ns
    assert bytes(np.asarray(first.tokens, np.uint8)) == text.read_bytes()
    assert byte_tokens([text]).path.stat().st_mtime_ns == made
    text.write_text("changed " * 100)
    assert byte_tokens([text]).path != first.path


def test_a_damaged_cache_file_is_made_again(text: Path) -> None:
    made = byte_tokens([text])
    whole = made.path.read_bytes()
    made.path.write_bytes(whole[:-10])
    assert byte_tokens([text]).path.read_bytes() == whole


def test_folders_are_walked_and_undecodable_files_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("aaaa")
    (folder / "deep" / "b.txt").write_text("bbbb")
    (folder / "bad.dat").write_bytes(b"\xff\xfe\x00")
    (folder / ".hidden").write_text("hhhh")
    tokens = byte_tokens(text_files([folder])).tokens
    assert sorted(bytes(np.asarray(tokens, np.uint8)).split()) == [b"aaaa", b"bbbb"]
    told = "10 bytes of {}, files that are no UTF-8 text left out"
    assert open_data([folder], 1, 256).description == told.format(folder)
    assert open_data([folder / "deep"], 1, 256).description == f"5 bytes of {folder / 'deep'}"


def test_token_files_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "t.bin"
    write_tokens(path, [np.array([1, 2, 60000], np.uint16), np.array([7], np.uint16)])
    found = open_token_file(path)
    assert found.tokens.tolist() == [1, 2, 60000, 7] and found.bound == 60001


def test_llm_c_files_with_a_validation_file(tmp_path: Path) -> None:
    train = bin_file(tmp_path / "x_train.bin", list(range(100)))
    held_out = bin_file(tmp_path / "x_val.bin", list(range(200, 240)))
    data = open_data([train, held_out], 8, 300)
    assert [len(s.tokens) for s in data.train] == [100] and [len(s.tokens) for s in data.validation] == [40]
    assert open_data([tmp_path], 8, 300).fingerprint == data.fingerprint, "their folder stands for them"


def test_a_validation_file_by_itself_is_measured_whole(tmp_path: Path) -> None:
    """Unless there is to be something to train on."""
    held_out = bin_file(tmp_path / "x_val.bin", list(range(100, 200)))
    other = bin_file(tmp_path / "x.bin", list(range(100)))
    read = [
        [s.stop - s.start for s in open_data([path], 8, 300, to_train=trained).validation]
        for path, trained in ((held_out, False), (held_out, True), (other, False))
    ]
    assert read == [[100], [9], [9]]


BAD = {
    "no such": (lambda p: p / "missing.txt", "no such file or folder"),
    "empty": (lambda p: _write(p / "e.txt", b""), "no text in it"),
    "empty folder": (lambda p: _folder(p / "f"), "holds no files"),
    "short": (lambda p: _write(p / "s.txt", b"too short"), "has 10 tokens; T = 16 needs at least 34"),
    "not text": (lambda p: _write(p / "n.txt", b"\xff\xfe" * 100), "not UTF-8 text"),
    "zero bytes": (lambda p: _write(p / "z.txt", b"a\0" * 100), "zero bytes"),
    "magic": (lambda p: bin_file(p / "m.bin", [1] * 50, magic=7), f"starts with 7, not {MAGIC}"),
    "version": (lambda p: bin_file(p / "v.bin", [1] * 50, version=9), "version 9"),
    "truncated": (lambda p: bin_file(p / "t.bin", [1] * 50, count=60), "truncated: the header promises 60"),
    "too long": (lambda p: bin_file(p / "l.bin", [1] * 50, count=40), "too long"),
    "no header": (lambda p: _write(p / "h.bin", b"abc"), "shorter than the 1024-byte header"),
    "no tokens": (lambda p: bin_file(p / "0.bin", []), "holds no tokens"),
    "short bin": (lambda p: bin_file(p / "sb.bin", [1] * 33), "needs at least 34"),
    "vocabulary": (lambda p: bin_file(p / "big.bin", [5] * 70 + [900] + [5] * 29), "token 900 at position 70"),
}


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_named_and_explained(case: str, tmp_path: Path) -> None:
    make, message = BAD[case]
    path = make(tmp_path)
    with pytest.raises(UserError) as e:
        open_data([path], 16, 256)
    assert (message in str(e.value) and str(path) in str(e.value)) or case.startswith("short")
    assert message in str(e.value)


def test_text_and_token_files_are_not_mixed(tmp_path: Path, text: Path) -> None:
    with pytest.raises(UserError, match="cannot be mixed"):
        open_data([text, bin_file(tmp_path / "t.bin", [1] * 99)], 16, 256)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file(text: Path) -> None:
    text.chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        open_data([text], 16, 256)


def test_unwritable_cache_folder(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCOMP_CACHE", str(text / "below-a-file"))
    with pytest.raises(UserError, match=r"cache folder .* cannot be written") as e:
        open_data([text], 16, 256)
    assert "TCOMP_CACHE" in e.value.hint


@pytest.mark.parametrize("bound", [10, -10, 1 << 30])
def test_what_a_header_says_of_its_tokens_is_not_believed(tmp_path: Path, bound: int) -> None:
    """Tokens beyond the vocabulary would be looked up beyond the embedding."""
    path = tmp_path / "lies.bin"
    write_tokens(path, [np.full(5000, 60000, np.uint16)])
    content = bytearray(path.read_bytes())
    content[12:16] = np.array([bound], "<i4").tobytes()
    path.write_bytes(content)
    for _ in range(2):  # the second time, what was found the first time is known
        with pytest.raises(UserError, match=r"lies\.bin: damaged"):
            open_data([path], 16, 256)


def test_tokens_that_have_changed_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "t.bin"
    write_tokens(path, [np.arange(5000, dtype=np.uint16) % 200])
    open_data([path], 16, 256)
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"t\.bin: damaged"):
        open_data([path], 16, 256)


@pytest.mark.parametrize("harm", ["flip", "cut", "folder"])
def test_kept_text_that_is_damaged_is_made_again(tmp_path: Path, harm: str) -> None:
    text = tmp_path / "a.txt"
    text.write_text("hello world\n" * 100)
    kept = byte_tokens([text]).path
    content = kept.read_bytes()
    kept.unlink()
    if harm == "folder":
        kept.mkdir()
    else:
        kept.write_bytes(content[:-100] if harm == "cut" else content[:-100] + b"\xff" * 100)
    assert byte_tokens([text]).tokens.tolist() == list(text.read_bytes()) and kept.read_bytes() == content


def test_pipes_and_devices_are_no_text(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match="not a regular file"):
            text_files([path])


def test_text_for_a_smaller_vocabulary_is_refused_by_its_own_name(text: Path) -> None:
    with pytest.raises(
        UserError, match=r"text\.txt: token 97 at position 2 is outside the model's vocabulary of 80"
    ) as e:
        open_data([text], 8, 80)
    assert "V=256" in e.value.hint


def test_a_prepared_folder_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    """What is left of it would be taken for the data: the other files, or the manifest as a text."""
    files = [bin_file(tmp_path / f"{part}-00000.bin", list(range(90))) for part in ("train", "val")]
    listed = [{"file": f.name, "bytes": f.stat().st_size} for f in files]
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "files": listed}) + " " * 100)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert open_data([tmp_path], 8, 256).description == "180 tokens of 2 token files"
    for name in ("val-00000.bin", "train-00000.bin"):
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match="the manifest names it, but it is not there") as refused:
            open_data([tmp_path], 8, 256)
        assert "-00000.bin" in str(refused.value) and "prepare the data again" in refused.value.hint
    for file in files:
        bin_file(file, list(range(80)))
    with pytest.raises(UserError, match=r"train-00000\.bin: damaged: its size is not the manifest's"):
        open_data([tmp_path], 8, 256)
    assert "name the .bin files" in refused.value.hint and open_data(files, 8, 256).description.startswith("160")
    (tmp_path / "manifest.json").write_text("{}")  # somebody else's
    assert open_data([tmp_path], 8, 256).description == "160 tokens of 2 token files"


@pytest.mark.parametrize("text", ["", '{"format": 1, "fil', '{"format": 1, "files": [{"file": "a"}]}', "\0" * 64])
def test_so_is_one_whose_manifest_is_damaged(text: str, tmp_path: Path) -> None:
    """Nothing says whether the token files beside it are whole."""
    file = bin_file(tmp_path / "train-00000.bin", list(range(90)))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: damaged") as refused:
        open_data([tmp_path], 8, 256)
    assert "prepare the data again" in refused.value.hint and open_data([file], 8, 256)


@pytest.mark.parametrize("shards", [0, 1])
def test_a_folder_whose_preparation_was_stopped_is_refused(shards: int, tmp_path: Path) -> None:
    """Its tokenizer and plan would be taken for a text, or the shards that there are for all."""
    for name in ("plan.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}" + " " * 100)
    (tmp_path / ".parts").mkdir()
    if shards:
        bin_file(tmp_path / "train-00000.bin", list(range(90)))
    with pytest.raises(UserError, match="their preparation was stopped") as refused:
        open_data([tmp_path], 8, 256)
    assert "tcomp data prepare" in refused.value.hint
