"""A small life of a study in working folders whose names other languages would read something into.

Planned, submitted, synced, drawn and exported, it gives what it gives in any other folder, and nothing outside of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness import PACKAGE_ROOT
from harness.cli import cli
from harness.records.directory import RunDirectory
from harness.testing import TINY_STUDY
from harness.tracking.store import initialise_store

STUDY = TINY_STUDY + "evaluate: [{nll: {estimator: full, num_images: 4}}]\n"
ODD_NAMES = ("-rf [a]* 100%20x", 'it\'s "q" x\\j q?x#y', "ünïcode\nnew line")


@pytest.fixture(scope="module")
def fresh_database(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    initialise_store(f"sqlite:///{path}")
    return path


@pytest.fixture
def odd_folder(tmp_path, fresh_database, monkeypatch, request) -> Path:
    folder = tmp_path / "above" / request.param
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(STUDY)
    shutil.copy(fresh_database, folder / "mlflow.db")
    for name in ("MLFLOW_TRACKING_URI", "HARNESS_RUNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)
    return folder


def harness(*words: str) -> str:
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, f"{words}: {done.exception!r} {done.output}"
    return done.output


def results(runs: Path) -> dict[str, str]:
    """Return a digest of each run's results, timings left out."""
    digests = {}
    for path in sorted(runs.glob("[!.]*/spec.json")):
        rows = [
            (row.key, row.x, row.value)
            for row in RunDirectory(path.parent).rows()
            if not row.key.startswith(("perf/", "system/"))
        ]
        digests[path.parent.name] = hashlib.sha256(repr(sorted(rows)).encode()).hexdigest()
    return digests


@pytest.fixture(scope="module")
def of_a_plain_folder() -> dict[str, dict[str, str]]:
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("odd_folder", ODD_NAMES, indirect=True, ids=ascii)
def test_a_study_lives_in_a_folder_of_any_name(odd_folder, of_a_plain_folder):
    assert "1 run" in harness("plan", "tiny.yaml")
    harness("submit", "tiny.yaml", "--cluster", "debug", "--no-sync")
    assert json.loads(harness("status", "tiny/base/0", "--json"))[0]["state"] == "done"
    harness("sync")
    with contextlib.closing(sqlite3.connect("mlflow.db")) as connection:
        [(count,)] = connection.execute("SELECT count(*) FROM metrics").fetchall()
    assert count > 20
    harness("sync", "--check")
    harness("figures", "tiny")
    assert Path("figures", "index.html").read_text()
    harness("export", "tiny")
    harness("import", "tiny.tar.gz", "--runs", "elsewhere")
    expected = of_a_plain_folder.setdefault("results", results(Path("runs")))
    assert results(Path("runs")) == results(Path("elsewhere")) == expected
    assert [path.name for path in odd_folder.parent.iterdir()] == [odd_folder.name]
    made = {"tiny.yaml", "mlflow.db", "mlflow.db.lock", "mlartifacts", "runs", "elsewhere", "figures", "tiny.tar.gz"}
    assert {path.name for path in odd_folder.iterdir()} <= made


SURROUNDINGS: dict[str, dict[str, str | None]] = {
    "no locale": {
        "LANG": "C",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
    },
    "POSIX": {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"},
    "no home": {"HOME": None, "XDG_CACHE_HOME": None, "MPLCONFIGDIR": None},
    "a home that is not there": {"HOME": "/nowhere/at/all"},
    "no temporary folder": {"TMPDIR": "/nowhere/at/all"},
    "a narrow terminal": {"COLUMNS": "0", "LINES": "0", "TERM": "dumb", "NO_COLOR": "1", "FORCE_COLOR": "1"},
    "a notebook": {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONSTARTUP": "/nowhere.py"},
    "warnings are errors": {"PYTHONWARNINGS": "error::DeprecationWarning"},
    "hashes": {"PYTHONHASHSEED": "7"},
    "another PYTHONPATH": {"PYTHONPATH": "/nowhere:a b:%20"},
    "within a job of SLURM's": {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SQUEUE_FORMAT": "%i"},
    "left by torchrun": {"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": "x"},
}


def run_process(folder: Path, variables: dict[str, str | None], *words: str, **options) -> subprocess.CompletedProcess:
    """Run the command line in a process with these variables; None removes one."""
    removed = {name for name, value in variables.items() if value is None}
    environment = {name: value for name, value in os.environ.items() if name not in removed}
    environment |= {name: value for name, value in variables.items() if value is not None}
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE_ROOT), variables.get("PYTHONPATH") or ""])
    command = [sys.executable, "-m", "harness.cli", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, check=False, timeout=300, **options
    )


@pytest.fixture
def named_study(tmp_path) -> Path:
    """Return a folder with a study whose arm and folder need more than ASCII."""
    folder = tmp_path / "ünïcode ± folder"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(STUDY + 'arms: {"größer ± 1": {}}\n', encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("variables", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_the_surroundings_of_a_process_change_neither_a_plan_nor_a_status(named_study, variables):
    plain = run_process(named_study, {}, "plan", "tiny.yaml", "--json")
    odd = run_process(named_study, variables, "plan", "tiny.yaml", "--json")
    assert (odd.returncode, odd.stdout) == (0, plain.stdout), odd.stderr
    for verb in (("plan", "tiny.yaml"), ("status",), ("list",)):
        done = run_process(named_study, variables, *verb)
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
    assert sorted(path.name for path in named_study.iterdir()) == ["tiny.yaml"]


@pytest.mark.slow
def test_jobs_give_the_same_results_whatever_their_submitter_had_set(named_study, tmp_path):
    plain, odd = tmp_path / "plain", named_study / "runs"
    submit = ("submit", "tiny.yaml", "--no-sync", "--runs")
    assert run_process(named_study, {}, *submit, str(plain)).returncode == 0
    together: dict[str, str | None] = {}
    for variables in SURROUNDINGS.values():
        together |= variables
    done = run_process(named_study, together, *submit, str(odd), umask=0o777)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(odd) == results(plain) != {}
    assert all(path.stat().st_mode & 0o600 == 0o600 for path in odd.glob("*/*.json*"))


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_whose_streams_are_closed_ends_as_with_open_ones(named_study, closed):
    for verb, code in (
        ("status", 0),
        ("plan tiny.yaml", 0),
        ("plan nothing", 2),
        ("submit tiny.yaml --cluster nowhere", 2),
    ):
        program = f'exec "$0" -m harness.cli {verb} {closed}'
        environment = os.environ | {"PYTHONPATH": str(PACKAGE_ROOT)}
        done = subprocess.run(
            ["sh", "-c", program, sys.executable], cwd=named_study, env=environment, capture_output=True, check=False
        )
        assert done.returncode == code, (verb, done.stderr)
        assert b"Traceback" not in done.stderr
