"""Run directories and archives damaged by a fuzzer: the damaged run is named, all others read as before.

Each case changes up to three files of one run, and at times what its study's manifest says of it: bytes flipped, lost
or doubled, values of JSON replaced by others (in a journal with a checksum that fits again), files replaced by folders,
links and pipes. Then all readers read the folder. An archive is damaged in the same way, and in its members' names and
kinds; it is imported or refused.

HARNESS_FUZZ_CASES=20000 tries that many cases instead of 2,200. A case is a function of its number, which a failure
names.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import random
import shutil
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.analysis.report import report
from harness.analysis.runs import load_records, unreadable_runs
from harness.cli import listing, status_view, timeline
from harness.cli.common import all_runs, members
from harness.errors import HarnessError
from harness.records import disk
from harness.records.archive import export_study, import_study
from harness.records.directory import RunDirectory
from harness.records.layout import StudyLayout
from harness.records.manifest import ask_for
from harness.spec.presentation import Presentation
from harness.testing import tiny_study, write_finished_run

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("HARNESS_FUZZ_CASES", 2200))
STUDY = "replicates: 2\nevaluate: [{name: eval, nll: {num_images: 16}, grid: 4}]\n"
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 7, 10**18, 10**400, -(10**30), 0.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", "x", "a/b", "../../x", "/etc/passwd", "<script>alert(1)</script>", "\x1b[2J", "\x00", "\ud800", "\u202e"),
    *("$x^{", "=1+1", "x" * 5000, [], [1], [[]], {}, {"name": 1}, [{}], "done", "eval", "1", "NaN"),
]
FILES = ("spec.json", "status.json", "environment.json", "journal-0001.jsonl", "studies/tiny.json", "evaluations")
NAMES = ("../x.json", "/tmp/x.json", "runs/../x.json", "a\\b.json", "runs/x", "\ud800.json", "figures/../../x.png")


# ------------------------------------------------------------------------------------------------------------- damages


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Return the paths of all values in a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


def with_odd_value(value: Any, rng: random.Random) -> Any:
    """Return a JSON value with one of its values replaced, removed, or put under another name."""
    value = copy.deepcopy(value)
    path = rng.choice(places(value))
    if not path:
        return rng.choice(ODD)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    what = rng.random()
    if what < 0.7:
        parent[path[-1]] = rng.choice(ODD)
    else:
        old = parent.pop(path[-1])
        if what < 0.85 and isinstance(parent, dict):
            parent[rng.choice(("x", "../x", "<b>", "", "arm", "seq", "step"))] = old
    return value


def changed_json(data: bytes, rng: random.Random) -> bytes:
    return json.dumps(with_odd_value(json.loads(data), rng)).encode()


def changed_journal(data: bytes, rng: random.Random) -> bytes:
    """Change an entry of a journal, and give it a checksum that fits."""
    lines = data.splitlines()
    index = rng.randrange(len(lines))
    body = changed_json(lines[index][9:], rng)
    lines[index] = b"%08x %s" % (zlib.crc32(body), body)
    return b"\n".join(lines) + b"\n"


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return rng.choice(
        (
            data[:at],
            data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :],
            data[:at] + rng.randbytes(rng.randrange(1, 30)) + data[at:],
            data[at:],
            data + data,
            b"",
            bytes(len(data)),
            b"[" * 50_000,
        )
    )


def changed(name: str, data: bytes, rng: random.Random) -> bytes:
    """Return other content for a file of a run."""
    change = {".jsonl": changed_journal, ".json": changed_json}.get(Path(name).suffix, changed_bytes)
    if data and rng.random() < 0.7:
        with contextlib.suppress(ValueError, IndexError, RecursionError):  # it is damaged already
            return change(data, rng)
    return changed_bytes(data, rng)


def changed_manifest(data: bytes, run_key: str, rng: random.Random) -> bytes:
    """Cut a manifest off, or change what it says of one run; whatever it says of another would be meant."""
    if rng.random() < 0.3:
        return data[: rng.randrange(len(data))]
    stored = json.loads(data)
    stored["runs"][run_key] = with_odd_value(stored["runs"][run_key], rng)
    return json.dumps(stored).encode()


def replace(path: Path, rng: random.Random) -> None:
    """Put something else where a file is."""
    path.unlink()
    kind = rng.randrange(5)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to("/etc/passwd")
    elif kind == 3:
        path.symlink_to(path)


def damage(run: Path, rng: random.Random) -> None:
    """Damage up to three files of a run."""
    for _ in range(rng.randrange(1, 4)):
        paths = [path for path in sorted(run.rglob("*")) if path.is_file() and not path.is_symlink()]
        likely = [path for path in paths if path.relative_to(run).as_posix().startswith(FILES)]
        path = rng.choice(likely if likely and rng.random() < 0.8 else paths)
        if rng.random() < 0.85:
            path.write_bytes(changed(path.name, path.read_bytes(), rng))
        else:
            replace(path, rng)


def restore(run: Path, original: dict[Path, bytes]) -> None:
    """Undo the damage of a run; a copy of the whole would take most of the time of a case."""
    for path in run.rglob("*"):
        if path not in original and not (path.is_dir() and not path.is_symlink()):
            path.unlink()
    for path, data in original.items():
        if path.is_symlink() or not path.is_file() or path.read_bytes() != data:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
            path.write_bytes(data)


# --------------------------------------------------------------------------------------------------------------- cases


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("intact")
    for run in tiny_study(folder, STUDY):
        write_finished_run(run, folder / "runs")
    ask_for(folder / "runs", "tiny", {run.key: run.studies()["tiny"] for run in all_runs(folder / "runs")})
    return folder / "runs"


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def attempt(case: int, read: Callable[[], Any]) -> Any:
    """Return what a reader of all runs returns; no run may make it fail."""
    try:
        return read()
    except Exception as error:
        raise AssertionError(f"case {case}: {type(error).__name__}: {error}") from error


READERS: tuple[Callable[[list[RunDirectory]], Any], ...] = (
    lambda directories: listing._studies(directories, directories[0].path.parent),
    lambda directories: listing._runs(directories, "tiny"),
    lambda directories: map(disk.removable, directories),
)


def test_every_reader_reads_the_other_runs_whatever_is_done_to_one(intact, tmp_path):
    runs = tmp_path / "home" / "runs"
    other, victim = (run.key for run in all_runs(intact))
    shutil.copytree(intact, runs)
    manifest = StudyLayout(runs, "tiny").manifest_path
    asked = manifest.read_bytes()
    original = {path: path.read_bytes() for path in (runs / victim).rglob("*") if path.is_file()}
    [expected] = [row for row in status_view.status_rows(all_runs(runs), "tiny") if row.run_key == other]
    outcomes = Counter()
    for case in range(CASES * 7 // 8):
        rng = random.Random(case)
        restore(runs / victim, original)
        damage(runs / victim, rng)
        manifest.write_bytes(changed_manifest(asked, victim, rng) if rng.random() < 0.2 else asked)
        directories = attempt(case, lambda: members("tiny", runs)[1])
        rows = attempt(case, lambda directories=directories: status_view.status_rows(directories, "tiny"))
        attempt(case, lambda rows=rows: status_view.status_table(rows).plain())
        [row] = [row for row in rows if row.run_key == other]
        assert row == expected, case
        for read in READERS:
            attempt(case, lambda read=read, directories=directories: list(read(directories)))
        records = attempt(case, lambda: load_records(runs, "tiny"))
        reasons = attempt(case, lambda: unreadable_runs(runs, "tiny"))
        assert other in {record.run_key for record in records}, case
        assert (
            victim in reasons
            or victim in {record.run_key for record in records}
            or not (runs / victim / "studies" / "tiny.json").is_file()
        ), case
        if case % 40 == 0:
            usable, data, _ = attempt(case, lambda records=records: report._read(records, Presentation()))
            assert other in {record.run_key for record in usable}, case
            assert not [outcome for outcome in data.values() if isinstance(outcome, Exception)], case
        try:
            timeline.timeline(RunDirectory(runs / victim))
            outcomes["read"] += 1
        except HarnessError:
            outcomes["refused"] += 1
    assert contents(tmp_path / "home") - {"runs"} == {name for name in contents(tmp_path / "home") if "runs/" in name}
    print(f"{sum(outcomes.values())} damaged runs: {dict(outcomes)}; the other run read as before", file=sys.stderr)
    assert min(outcomes[outcome] for outcome in ("read", "refused")) > CASES // 50


def packed(files: dict[str, bytes], rng: random.Random) -> bytes:
    """Return an archive of files, some of whose members or names are odd."""
    entries = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    keys = {name.split("/")[1] for name in files if name.startswith("runs/")}
    manifest: Any = {"format": 1, "study": "tiny", "harness": "0", "checkpoints": "none", "counts": {}}
    manifest |= {"files": entries, "runs": {key: ["tiny"] for key in keys}}
    if rng.random() < 0.15:
        manifest = with_odd_value(manifest, rng)
    text = json.dumps(manifest).encode()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in {"manifest.json": text, **files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if rng.random() < 0.01:
                member.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE))
                member.linkname = rng.choice(("/etc/passwd", "../../x", "runs"))
            tar.addfile(member, io.BytesIO(data))
    content = stream.getvalue()
    return changed_bytes(content, rng) if rng.random() < 0.1 else content


def test_a_damaged_archive_is_refused_or_imported_and_writes_nothing_elsewhere(intact, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    export_study("tiny", all_runs(intact), tmp_path / "tiny.tar")
    with tarfile.open(tmp_path / "tiny.tar") as tar:
        original = {member.name: tar.extractfile(member).read() for member in tar if member.name != "manifest.json"}
    outcomes = Counter()
    for case in range(CASES // 8):
        rng = random.Random(case)
        files = dict(original)
        for _ in range(rng.randrange(0, 3)):
            name = rng.choice(sorted(files))
            files[name] = changed(name, files[name], rng)
        if rng.random() < 0.2:
            files[rng.choice(NAMES)] = files.pop(rng.choice(sorted(files)))
        path, runs = tmp_path / "x.tar", home / "runs"
        try:
            path.write_bytes(packed(files, rng))
        except (UnicodeError, ValueError, TypeError):
            continue  # no such archive can be written
        try:
            import_study(path, runs, figures=home / "figures")
        except HarnessError:
            outcomes["refused"] += 1
            assert list(runs.iterdir()) == [], case
        except Exception as error:
            raise AssertionError(f"case {case}: {type(error).__name__}: {error}") from error
        else:
            outcomes["imported"] += 1
            directories = all_runs(runs)
            assert {row.state for row in status_view.status_rows(directories)} <= {"done", "interrupted", "failed"}
            for directory in directories:
                assert (not directory.damage() and not directory.problems()) or directory.attempts(), case
            attempt(case, lambda runs=runs: load_records(runs))
        assert {path.name for path in home.iterdir()} <= {"runs", "figures"}, case
        assert {path.name for path in tmp_path.iterdir()} == {"home", "tiny.tar", "x.tar"}, case
        shutil.rmtree(home / "runs")
        shutil.rmtree(home / "figures", ignore_errors=True)
    print(f"{sum(outcomes.values())} damaged archives: {dict(outcomes)}; nothing written elsewhere", file=sys.stderr)
    assert min(outcomes[outcome] for outcome in ("imported", "refused")) > CASES // 100
