"""How fast is a step beside those of an earlier commit: python -m benchmarks.earlier COMMIT [--rounds 12] [--write].

Both checkouts take turns, each candidate in a process of its own. The commit must have benchmarks/peers, whose first is
baca544; --write puts the tables into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks.peers import environment
from benchmarks.peers.settings import SAMPLING_STEPS, SETTINGS, Setting
from benchmarks.peers.tables import Table, replace_section
from benchmarks.peers.worker import table_of_networks

RESULTS = environment.ROOT / "benchmarks" / "RESULTS.md"
NAMES = ("ours, plain", "ours, default")
NOW = "ours, default"

# Runs within either checkout, so it asks no more of it than what the first commits of the bench have.
SERVE = """
import json, sys, time
from pathlib import Path
import torch
import harness
from benchmarks.peers.ours import OURS
assert Path(harness.__file__).parents[1] == Path.cwd(), f"{harness.__file__} is not of {Path.cwd()}"
from benchmarks.peers.settings import SETTINGS
name, index, steps, evaluations = json.loads(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(0)
candidate = OURS[name](SETTINGS[index])
work = {
    "training": lambda: [candidate.train() for _ in range(steps)],
    "sampling": lambda: candidate.sample(evaluations),
}
print(flush=True)
for line in sys.stdin:
    began = time.process_time(), time.perf_counter()
    work[line.strip()]()
    print(json.dumps([time.process_time() - began[0], time.perf_counter() - began[1]]), flush=True)
"""


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Check the commit out into a folder, and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix="harness-earlier-") as folder:
        path = Path(folder) / "checkout"
        git = ["git", "-C", str(environment.ROOT), "worktree"]
        if subprocess.run([*git, "add", "--quiet", "--detach", str(path), commit], check=False).returncode:
            raise SystemExit(f"{commit} cannot be checked out (see above): name a commit of this repository")
        try:
            yield path
        finally:
            subprocess.run([*git, "remove", "--force", str(path)], check=True)


@contextmanager
def candidate(root: Path, name: str, setting: Setting) -> Iterator[subprocess.Popen[str]]:
    """Start a process that works with one checkout's candidate, and end it afterwards."""
    what = json.dumps([name, SETTINGS.index(setting), setting.steps, SAMPLING_STEPS])
    with subprocess.Popen(
        [sys.executable, "-P", "-c", SERVE, what],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            if not process.stdout.readline():  # it says when it is ready
                raise SystemExit(f"{name!r} of {root} could not be started (see above)")
            yield process
        finally:
            assert process.stdin
            process.stdin.close()


def measure(process: subprocess.Popen[str], work: str) -> tuple[float, float]:
    """Have a piece of work done; return its seconds of processor and of wall time."""
    assert process.stdin and process.stdout
    print(work, file=process.stdin, flush=True)
    processor, wall = json.loads(process.stdout.readline())
    return processor, wall


def tables_of(setting: Setting, earlier: Path, commit: str, rounds: int) -> list[Table]:
    """Measure training and sampling of a setting with both checkouts."""
    of_then = {f"{name}, at {commit}": (earlier, name) for name in NAMES}
    of_now = {name: (environment.ROOT, name) for name in NAMES}
    with ExitStack() as stack:
        started = {label: stack.enter_context(candidate(*of, setting)) for label, of in (of_then | of_now).items()}
        return [
            table_of_networks(
                setting,
                work,
                {label: partial(measure, process, work) for label, process in started.items()},
                rounds=rounds,
                reference=NOW,
            )
            for work in ("training", "sampling")
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=12, help="each candidate is measured once a round (default 12)")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/RESULTS.md")
    options = parser.parse_args()
    with checkout(options.commit) as earlier:
        tables = [
            table for setting in SETTINGS for table in tables_of(setting, earlier, options.commit, options.rounds)
        ]
    machine = environment.describe_machine()
    lines = [
        f"## Beside commit {options.commit}",
        f"`python -m benchmarks.earlier {options.commit}`, {time.strftime('%Y-%m-%d')}: {machine['cpu']}, "
        f"{machine['cores']} cores, one thread each, load {machine['load']}, torch {machine['torch']}. Medians of "
        f"{options.rounds} interleaved rounds (lowest to highest); the last two columns are ratios to the row in bold "
        "within each round.",
    ]
    for table in tables:
        lines += [f"### {table.title}", table.markdown()]
    text = "\n\n".join(lines)
    print(text)
    if options.write:
        RESULTS.write_text(replace_section(RESULTS.read_text(), "earlier", text))


if __name__ == "__main__":
    main()
