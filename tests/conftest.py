"""What several tests need: small real runs on the embedded digits, and a live SLURM."""

from __future__ import annotations

import contextlib
import gc
import getpass
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

# One thread, so that tests of equal bits do not depend on the machine; set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

MEMORY = "/dev/shm"
ROOM_BYTES = 6 << 30  # several times what all tests leave there


def _has_room(folder: str) -> bool:
    """Return whether a file system in memory is here, programs may be started from it, and there is memory for it."""
    try:
        file_system = os.statvfs(folder)
    except OSError:
        return False
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    given = limit.read_text().strip() if limit.exists() else "max"
    memory = psutil.virtual_memory().available if given == "max" else int(given) // 2
    room = min(memory, file_system.f_bavail * file_system.f_frsize)
    return room >= ROOM_BYTES and not file_system.f_flag & os.ST_NOEXEC and os.access(folder, os.W_OK)


# The harness flushes to disk what has to survive a power failure, and on a busy disk the tests mostly wait for that.
if _has_room(MEMORY):
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)


def pytest_collection_finish() -> None:
    """Leave what is imported and collected out of the search for garbage: that took 6 % of the unit tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """Give each test the harness's log as it is at first: commands and workers add handlers of their own."""
    logger = logging.getLogger("harness")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.fixture
def tiny_study(tmp_path: Path) -> Callable[..., list]:
    """Return a function that plans the tiny study with extra lines of YAML and `--set`s."""
    from harness import testing

    def plan(extra: str = "", *sets: str) -> list:
        return testing.tiny_study(tmp_path, extra, sets)

    return plan


@pytest.fixture
def tiny_run(tmp_path: Path, tiny_study: Callable[..., list]) -> Callable[..., Path]:
    """Return a function that writes the run directory of the tiny study's first run and returns its path."""
    from harness.testing import write_run

    def make(extra: str = "", *sets: str, folder: str = "runs") -> Path:
        return write_run(tiny_study(extra, *sets)[0], tmp_path / folder).path

    return make


SMALL_STUDY = """
study: small
data: digits
diffusion: {num_timesteps: 50}
model: {channels: 8, channel_mult: [1], num_res_blocks: 1, attention_resolutions: [], num_heads: 1}
train: {steps: 100, batch_size: 4, ema_rate: 0.9}
"""

# What these tests say -> the kind of metric.
KINDS = {"nll": "nll_bpd", "ancestral": "fid_ancestral", "ddim": "fid_ddim", "compute": "train_multiply_adds"}


class StudyRuns:
    """Writes a study's runs with given numbers into a folder."""

    def __init__(self, home: Path):
        self.home = home

    def __call__(self, extra: str, numbers: Callable[[Any], dict], folder: str = "runs") -> Path:
        """Return the folder of the runs.

        `numbers(run)` may give nll, fid, precision, recall, ancestral, ddim, compute, and a state; a run that is not
        done is left without measurements.
        """
        from harness.testing import tiny_study, write_finished_run

        for run in tiny_study(self.home, extra, study=SMALL_STUDY):
            values: dict[str, Any] = {"state": "done"} | numbers(run)
            state = values.pop("state")
            measured = {KINDS.get(name, name): value for name, value in values.items()}
            write_finished_run(run, self.home / folder, measured, state=state)
        return self.home / folder


@pytest.fixture
def study_runs(tmp_path: Path) -> StudyRuns:
    return StudyRuns(tmp_path)


@pytest.fixture(scope="module")
def study_runs_of_module(tmp_path_factory: pytest.TempPathFactory) -> StudyRuns:
    return StudyRuns(tmp_path_factory.mktemp("study"))


@pytest.fixture
def without_closed_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let reports draw the figures of studies alone: those that need no runs take 3 s, and are the same each time."""
    monkeypatch.setattr("harness.analysis.report.report.WITHOUT_RUNS", {})


@pytest.fixture(scope="session")
def file_accesses() -> Callable[[], contextlib.AbstractContextManager[list[tuple]]]:
    """Return a context manager that lists what is opened and listed within it: (audit event, *arguments)."""
    watchers: list[list[tuple]] = []

    def hook(event: str, arguments: tuple) -> None:
        if event in ("open", "os.listdir", "os.scandir"):
            for accesses in watchers:
                accesses.append((event, *arguments))

    sys.addaudithook(hook)  # for as long as the interpreter lives

    @contextlib.contextmanager
    def watch() -> Iterator[list[tuple]]:
        watchers.append([])
        try:
            yield watchers[-1]
        finally:
            watchers.pop()

    return watch


DEVCLUSTER = Path(__file__).parents[1] / "slurm" / "devcluster" / "devcluster.sh"
SLURM_PROGRAMS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd", "sbatch")


class DevCluster:
    """A live SLURM of the tests' own, with its state in one folder."""

    def __init__(self, folder: Path, **knobs: object) -> None:
        self.folder = folder
        self.env = {"SLURM_CONF": str(folder / "etc" / "slurm.conf")}
        self._command("start", PORT=_free_neighbours(10), **knobs)

    def crash(self, node: str) -> None:
        """Let `node`, such as n2, die with its jobs; or slurmctld, so that SLURM does not answer."""
        self._command("crash", node)

    def revive(self, node: str) -> None:
        """Bring `node` back, and wait until it takes jobs; or slurmctld."""
        self._command("revive", node)

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Let SLURM answer nobody within a block; what runs goes on."""
        self.crash("slurmctld")
        try:
            yield
        finally:
            self.revive("slurmctld")

    def stop(self) -> None:
        """Cancel the jobs, end the daemons and delete the database, which is large."""
        self._command("stop")
        shutil.rmtree(self.folder / "database")

    def _command(self, verb: str, *arguments: str, **knobs: object) -> None:
        environment = os.environ | {name: str(value) for name, value in knobs.items()}
        done = subprocess.run(
            [DEVCLUSTER, verb, self.folder, *arguments], env=environment, stderr=subprocess.PIPE, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def _free_neighbours(count: int) -> int:
    """Return the first of `count` neighbouring free ports, below those that the kernel hands out by itself."""
    while True:
        # At random, so that sessions side by side do not look at the same ports at the same time.
        first = random.SystemRandom().randrange(20_000, 32_000, count)
        with contextlib.suppress(OSError), contextlib.ExitStack() as sockets:
            for port in range(first, first + count):
                sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], int]:
    """Return a function that gives the first of so many neighbouring ports of loopback on which nothing listens.

    A server that is started on one, or again after it was killed, does not find it taken by somebody's connection: the
    kernel hands out higher ones.
    """
    return _free_neighbours


@pytest.fixture(scope="session")
def start_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., DevCluster]]:
    """Return a function that starts a SLURM, with knobs such as MAXARRAY=21, which lives as long as the session."""
    path = os.environ["PATH"] + ":/usr/sbin"  # as the script does: the daemons' folder is not in every user's PATH
    missing = [name for name in SLURM_PROGRAMS if not shutil.which(name, path=path)]
    if missing:
        complain = pytest.fail if os.environ.get("HARNESS_REQUIRE_SLURM") == "1" else pytest.skip
        complain(
            f"no SLURM here: {', '.join(missing)} missing (slurm/devcluster/devcluster.sh start says what to install)"
        )
    with contextlib.ExitStack() as clusters:

        def start(**knobs: object) -> DevCluster:
            folder = Path(tempfile.mkdtemp(prefix="harness-slurm-"))  # other users do not come into pytest's
            folder.chmod(0o755)
            cluster = DevCluster(folder, **knobs)
            clusters.callback(shutil.rmtree, folder)
            clusters.callback(keep_logs, folder, tmp_path_factory.mktemp("slurm"))
            clusters.callback(cluster.stop)
            return cluster

        yield start


def keep_logs(cluster: Path, folder: Path) -> None:
    """Copy the logs of a cluster's daemons to where pytest keeps what failed tests leave."""
    for path in cluster.rglob("*.log"):
        shutil.copy(path, folder)


@pytest.fixture(scope="session")
def slurm(start_slurm: Callable[..., DevCluster]) -> Iterator[DevCluster]:
    """Start the SLURM of this session at the first test that wants it, and point everything at it.

    Its accounting refuses unknown accounts and wckeys, and jobs over a limit; `submit_limit` sets one.
    """
    cluster = start_slurm(ENFORCE="associations,limits,qos,wckeys")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.env.items():
            patch.setenv(name, value)
        yield cluster


class MlflowServer:
    """MLflow's own server on a port of loopback, with one worker for requests and none for jobs.

    Args:
        folder: has its database, server.db, which it makes if it is not there, its artifacts and its log.
        admin_password: of the user admin; with one, nobody else is let in.
    """

    def __init__(self, folder: Path, port: int, admin_password: str = "") -> None:
        self.folder, self.port, self.admin_password = folder, port, admin_password
        self.uri = f"http://127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        self.begin()
        self.wait()

    def begin(self) -> None:
        """Start the process, which answers some seconds later."""
        arguments = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--workers", "1"]
        arguments += ["--artifacts-destination", f"{self.folder}/served", "--host", "127.0.0.1"]
        environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        if self.admin_password:
            arguments += ["--app-name", "basic-auth"]
            settings = self.folder / "users.ini"
            settings.write_text(
                f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{self.folder}/users.db\n"
                "admin_username = admin\nauth_cache_ttl_seconds = 600\n"  # a password takes 0.1 s to verify
                "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            )
            environment["MLFLOW_AUTH_CONFIG_PATH"] = str(settings)
            environment["MLFLOW_AUTH_ADMIN_PASSWORD"] = self.admin_password
            environment["MLFLOW_FLASK_SERVER_SECRET_KEY"] = "of these tests"
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *arguments, "--port", str(self.port)],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,  # so that its workers end with it
                env=environment,
            )

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1)
                return
            except OSError:
                running = self.process.poll() is None and time.monotonic() < deadline
                assert running, (self.folder / "server.log").read_text()
                time.sleep(0.2)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def start_server(free_ports: Callable[[int], int]) -> Iterator[Callable[..., MlflowServer]]:
    """Return a function that starts an MLflow server in a folder, which is killed when the test has ended."""
    with contextlib.ExitStack() as servers:

        def start(folder: Path, admin_password: str = "") -> MlflowServer:
            server = MlflowServer(folder, free_ports(1), admin_password)
            servers.callback(server.kill)
            return server

        yield start


@pytest.fixture
def submit_limit(slurm: DevCluster) -> Iterator[Callable[..., None]]:
    """Return a function that lets this user have only so many jobs in the queue, until the test ends.

    The limit is the user's own, or that of the account or the QOS of its jobs.
    """
    user = getpass.getuser()
    show = ["sacctmgr", "--noheader", "--parsable2", "show", "user", user, "format=defaultaccount"]
    account = subprocess.run(show, check=True, capture_output=True, text=True).stdout.strip()
    limits = {
        "user": ("user", user, "maxsubmitjobs"),
        "account": ("account", account, "grpsubmitjobs"),
        "qos": ("qos", "normal", "maxsubmitjobsperuser"),
    }
    holders = set()

    def limit(jobs: int, holder: str = "user") -> None:
        kind, name, setting = limits[holder]
        holders.add(holder)
        command = ["sacctmgr", "--immediate", "modify", kind, name, "set", f"{setting}={jobs}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    yield limit
    for holder in holders.copy():
        limit(-1, holder)


@pytest.fixture
def calls_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[], list[str]]]:
    """Return a function that puts a wrapper before programs, and returns one that lists their calls so far."""

    def wrap(*programs: str) -> Callable[[], list[str]]:
        folder = tmp_path / "wrappers"
        folder.mkdir()
        for name in programs:
            real = shutil.which(name)
            (folder / name).write_text(f'#!/bin/sh\necho {name} >>{folder}/calls\nexec {real} "$@"\n')
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return lambda: (folder / "calls").read_text().split() if (folder / "calls").exists() else []

    return wrap


@pytest.fixture(scope="session")
def browser_programs() -> dict[str, str | None]:
    """Return the paths of a browser and its driver; without them the test is skipped, or fails where they must be."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        complain = pytest.fail if os.environ.get("HARNESS_REQUIRE_BROWSER") == "1" else pytest.skip
        complain(f"no {' and no '.join(missing)} here (Debian's packages chromium and chromium-driver)")
    return programs
