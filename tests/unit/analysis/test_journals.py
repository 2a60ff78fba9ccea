"""What figures read of journals is kept by their content: the same numbers, and none of another journal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.analysis import journals
from harness.analysis.journals import read_journals
from harness.records.directory import RunDirectory

NUM_LINES = 600


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "journals"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The key of each run whose journals were parsed."""
    keys, parse = [], journals._parsed

    def noted(directory: RunDirectory) -> journals.Journals:
        keys.append(directory.key)
        return parse(directory)

    monkeypatch.setattr(journals, "_parsed", noted)
    return keys


def write_attempt(directory: RunDirectory, num_lines: int = NUM_LINES, loss: float = 0.5) -> None:
    with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
        for step in range(1, num_lines + 1):
            journal.metrics(step, {"train/loss": loss + 1 / step, "train/mse": float("nan")})
        for t in (3, 1, 2):
            journal.metrics(t, {"eval/L_t_bpd": t / 7}, train_step=num_lines)
        journal.event("evaluation", key="a" * 16, prefix="eval", step=num_lines)
        journal.event("collapse", sign="modes_lost", of=25, values={"eval/modes": 7.0}, step=num_lines)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "runs" / ("0" * 16)).create({"seed": 0}, 1)
    write_attempt(directory)
    return directory


def assert_same(ours: journals.Journals, other: journals.Journals) -> None:
    assert (ours.prefixes, ours.collapses, ours.problems) == (other.prefixes, other.collapses, other.problems)
    assert list(ours.curves) == list(other.curves) and ours.over_training == other.over_training
    for key, arrays in ours.curves.items():
        for own, others in zip(arrays, other.curves[key], strict=True):
            assert own.dtype == others.dtype and own.tobytes() == others.tobytes()


def again(directory: RunDirectory) -> RunDirectory:
    return RunDirectory(directory.path)


def test_journals_are_parsed_once_and_say_the_same_afterwards(directory, parsed, cache):
    first, second = read_journals(directory), read_journals(again(directory))
    assert parsed == [directory.key]
    assert_same(second, first)
    assert set(first.curves) == {"train/loss", "train/mse", "eval/L_t_bpd"}
    assert first.over_training == {"train/loss", "train/mse"} and first.prefixes == {"a" * 16: "eval"}
    assert len(first.collapses) == 1 and np.isnan(second.curves["train/mse"][1]).all()
    second.curves["train/loss"][1][0] = 0.0  # arrays of one's own, as those that were parsed


def test_another_attempt_is_read_and_replaces_what_was_kept(directory, parsed, cache):
    read_journals(directory)
    write_attempt(directory, loss=0.7)
    newer = read_journals(again(directory))
    assert len(parsed) == 2 and newer.curves["train/loss"][1][-1] != 0.5 + 1 / NUM_LINES
    assert_same(read_journals(again(directory)), newer)
    assert len(parsed) == 2 and len(list(cache.iterdir())) == 1


def test_one_other_byte_is_another_journal_and_the_time_of_the_file_is_nothing(directory, parsed):
    read_journals(directory)
    (path,) = directory.journal_paths()
    content = path.read_bytes()
    path.write_bytes(content)
    read_journals(again(directory))
    assert len(parsed) == 1
    path.write_bytes(content.replace(b'"train/loss": 1.5', b'"train/loss": 1.6', 1))
    assert read_journals(again(directory)).problems and len(parsed) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "text", "header"])
def test_a_damaged_file_of_the_cache_is_made_anew(directory, parsed, cache, damage):
    first = read_journals(directory)
    (kept,) = cache.iterdir()
    content = kept.read_bytes()
    kept.write_bytes(
        {
            "cut": content[:-8],
            "empty": b"",
            "bit": content[:-1] + bytes([content[-1] ^ 1]),
            "text": b"{}\n",
            "header": content.replace(b'"curves": [[', b'"curves": [[[', 1),
        }[damage]
    )
    assert_same(read_journals(again(directory)), first)
    assert len(parsed) == 2 and kept.read_bytes() == content


def test_a_run_that_is_written_or_torn_or_short_is_not_kept(directory, parsed, cache, tmp_path):
    with directory.lock():
        read_journals(again(directory))
    (path,) = directory.journal_paths()
    path.write_bytes(path.read_bytes()[:-3])
    assert "torn" in read_journals(again(directory)).problems[0]
    short = RunDirectory(tmp_path / "runs" / ("1" * 16)).create({"seed": 1}, 1)
    write_attempt(short, num_lines=3)
    read_journals(short)
    assert len(parsed) == 3 and not list(cache.glob("*"))


def test_without_a_folder_for_the_cache_journals_are_read_each_time(directory, parsed, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", "/proc/nowhere")
    assert_same(read_journals(directory), read_journals(again(directory)))
    assert len(parsed) == 2
