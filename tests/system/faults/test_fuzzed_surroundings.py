"""Environment variables and working folders of any kind: each has no effect, or is refused in words.

A case is a folder whose name other languages would read something into (a URL, a shell, a glob, a pattern of SLURM's),
a few variables with values as people and programs leave them, and one verb. It ends, or a HarnessError says why not;
there is no traceback, and nothing is written outside the folder. HARNESS_FUZZ_CASES sets how many cases are tried.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli import cli
from harness.data.cache import cache_root
from harness.errors import HarnessError
from harness.records.status import Status
from harness.slurm import commands
from harness.testing import tiny_study, write_finished_run, write_run

CASES = int(os.environ.get("HARNESS_FUZZ_CASES", "500"))

ODD_NAMES = (
    *("a b", "100%20x", "a%2Fb", "50%", "q?x#y", "[a]*", "{b,c}", "x\\j", "%j", "%A_%a", "ünïcode", "日本"),
    *('it\'s "q"', "-rf", "--help", "new\nline", "a;b", "a&b=c", "a@b", "a:b", "~", "$HOME", "$(id)", "`id`", "!x"),
    *("tab\there", "esc\x1b[31m", "x" * 200, " lead", "trail ", "..x", "a=b", "^a.b$", "(a|b)+", "sqlite:", "%00"),
    os.fsdecode(b"\xff\xfe"),
)
VALUES = (
    "",
    " ",
    "0",
    "-1",
    "1",
    "maybe",
    "true",
    "nowhere",
    "/nowhere/at/all",
    "/proc",
    "a b",
    "é",
    "x" * 5000,
    "\x1b[31m",
)
NAMES = (
    *("HARNESS_RUNS", "HARNESS_DATA", "HARNESS_CACHE", "HARNESS_INCEPTION_WEIGHTS", "HARNESS_SNAPSHOT"),
    *("HOME", "USER", "LOGNAME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "PATH", "PWD", "SHELL"),
    *("PYTHONPATH", "PYTHONSTARTUP", "PYTHONHASHSEED", "PYTHONWARNINGS", "PYTHONIOENCODING", "PYTHONUTF8"),
    *("LANG", "LC_ALL", "LC_CTYPE", "TZ", "COLUMNS", "LINES", "TERM", "NO_COLOR", "FORCE_COLOR", "CLICOLOR"),
    *("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "MLFLOW_ENABLE_ASYNC_LOGGING"),
    *("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
    *("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_ARRAY_JOB_ID", "SLURM_CONF"),
    *("SQUEUE_FORMAT", "SQUEUE_STATES", "SBATCH_EXPORT", "SBATCH_PARTITION", "SACCT_FORMAT", "SCANCEL_STATE"),
    *("MPLBACKEND", "MPLCONFIGDIR", "GIT_DIR", "GIT_WORK_TREE", "GIT_CONFIG_COUNT", "SUBMITIT_EXECUTOR"),
)
VERBS = (
    *(("plan", "tiny.yaml"), ("plan", "tiny.yaml", "--json"), ("plan", "tiny")),
    *(("status",), ("status", "tiny"), ("status", "tiny.yaml", "--json"), ("status", "tiny/base/0")),
    *(("list",), ("list", "tiny"), ("list", "--json")),
    *(("why", "tiny/base/0"), ("why", "tiny/base/1"), ("logs", "tiny/base/1"), ("clean",), ("cancel", "tiny")),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Return a folder with a study and its runs: one done, one queued on a SLURM that is not here, one new."""
    folder = tmp_path_factory.mktemp("home")
    done, queued, new = tiny_study(folder, "replicates: 3\nevaluate: [{nll: {num_images: 16}}]\n")
    write_finished_run(done, folder / "runs")
    write_run(queued, folder / "runs").set_status(Status("queued"))
    write_run(new, folder / "runs")
    claims = folder / "runs" / ".jobs" / "tiny" / "20260101" / "claims"
    claims.mkdir(parents=True)
    (claims / queued.run_key).write_text("7_0")
    (claims.parent / "submission.json").write_text('{"cluster": "slurm", "runs": [], "profile": {}}')
    return folder


def _name(random_source: random.Random) -> str:
    """Return an odd name, or two of them in one."""
    pieces = random_source.sample(ODD_NAMES, random_source.choice((1, 1, 2)))
    name = "".join(pieces).replace("/", "_")[:120].strip()
    return "odd" if name in ("", ".", "..") else name


def _variables(random_source: random.Random) -> dict[str, str | None]:
    """Return one to four variables; None unsets one."""
    values = (None, *VALUES, *ODD_NAMES[:-1])
    return {name: random_source.choice(values) for name in random_source.sample(NAMES, random_source.randint(1, 4))}


@contextlib.contextmanager
def surroundings(folder: Path, variables: dict[str, str | None]) -> Iterator[None]:
    before, environment = Path.cwd(), dict(os.environ)
    os.chdir(folder)
    os.environ["HOME"] = str(folder)
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(before)


def _cache() -> Path | None:
    """Return the folder that the surroundings give the cache, which is made and has SLURM's answers."""
    try:
        return cache_root()
    except HarnessError:
        return None


@pytest.fixture
def programs(tmp_path_factory, monkeypatch) -> None:
    """Let SLURM be down: a program of it that does not answer, and git."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "squeue").write_text("#!/bin/sh\nexit 1\n")
    (folder / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(commands, "PAUSES_SECONDS", ())


@pytest.mark.slow
def test_any_surroundings_have_no_effect_or_are_refused_in_words(tmp_path, home, programs, writes_only_below):
    ends: Counter[str] = Counter()
    for case in range(CASES):
        source = random.Random(case)
        folder = tmp_path / _name(source)
        variables, verb = _variables(source), source.choice(VERBS)
        shutil.copytree(home, folder, dirs_exist_ok=True)
        with surroundings(folder, variables), writes_only_below(folder, _cache()):
            result = CliRunner().invoke(cli, list(verb))
        error = result.exception
        about = f"case {case}: {folder.name!a}, {variables!a}, {verb}: {error!r}\n{result.output[-300:]}"
        assert error is None or isinstance(error, HarnessError | SystemExit), about
        assert "Traceback" not in result.output, about
        if isinstance(error, HarnessError):
            assert str(error).strip(), about
        ends["refused" if error else "done"] += 1
        shutil.rmtree(folder)
        shutil.rmtree("/nowhere", ignore_errors=True)  # the cache of some
    assert [path.name for path in tmp_path.iterdir()] == []
    assert ends["done"] > CASES / 3 and ends["refused"] > CASES / 50, ends
    print(f"{CASES} surroundings: {dict(ends)}", file=sys.stderr)
