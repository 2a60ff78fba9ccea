"""What the command line shows: tables on a terminal, aligned plain lines elsewhere; the same words in both.

Rich is imported only when something is drawn on a terminal: it costs more than everything else that `plan` does. Names
and reasons come from files, so they are stripped of control characters and never read as markup.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness import launch
from harness.cluster import JobFacts, read_queue
from harness.errors import LaunchError
from harness.launch import Plan, PlannedRun
from harness.progress import duration
from harness.records import Event, RunDirectory

STATE_ORDER = ("new", "queued", "running", "evaluate", "interrupted", "failed", "pruned", "done")
_STATE_COLOURS = {"running": "cyan", "evaluate": "cyan", "done": "green", "failed": "red", "interrupted": "yellow"}
NEWS_EVERY_SECONDS = 60.0


# -------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Table:
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]

    def plain(self) -> str:
        """Align the columns by spaces."""
        lines = [[printable(cell) for cell in row] for row in (self.headers, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = (zip(line, widths, strict=True) for line in lines)
        return "\n".join("  ".join(cell.ljust(width) for cell, width in line).rstrip() for line in padded)

    def rich(self) -> Any:
        """Return the table as rich draws it, states in colour."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for header in self.headers:
            table.add_column(header, no_wrap=header in ("run", "state"))
        for row in self.rows:
            table.add_row(*[Text(printable(cell), _STATE_COLOURS.get(cell, "")) for cell in row])
        return table

    def show(self) -> None:
        """Print to standard output in the way that fits it."""
        if sys.stdout.isatty():
            from rich.console import Console

            Console().print(self.rich())
        else:
            print(self.plain())


def printable(text: object) -> str:
    """Return one line without control characters, which could move the cursor or forge lines."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def size(num_bytes: float) -> str:
    """Spell a size in binary units, the way disks are compared."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def device_hours(hours: float) -> str:
    return f"{hours:.3g}" if hours >= 0.001 else "<0.001"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def state_counts(states: Iterable[str]) -> str:
    """Say `3 done, 1 running`, in the order in which states follow each other."""
    found = Counter(states)
    return ", ".join(f"{found[state]} {state}" for state in STATE_ORDER if found[state])


# ---------------------------------------------------------------------------------------------------------------- plan


def show_plan(plan: Plan, *, limit: int | None = 40) -> None:
    """Print a plan: a summary by arm, the runs (the first `limit`), the warnings and what it costs."""
    print(f"study {plan.study.name}: {count(len(plan.runs), 'run')}, {state_counts(p.state for p in plan.runs)}\n")
    _arms(plan).show()
    print()
    _runs(plan, plan.runs[:limit]).show()
    if limit is not None and len(plan.runs) > limit:
        print(f"... and {len(plan.runs) - limit} more (--all shows them)")
    print()
    for warning in plan.study.warnings():
        print(f"warning: {printable(warning)}")
    print(_total_cost(plan))


def _arms(plan: Plan) -> Table:
    arms: dict[str, list[PlannedRun]] = {}
    for planned in plan.runs:
        arms.setdefault(planned.run.arm, []).append(planned)
    rows = [
        (arm, str(len(members)), state_counts(p.state for p in members), *_cost(plan, members))
        for arm, members in arms.items()
    ]
    return Table(("arm", "runs", "state", *_COST_HEADERS), rows)


def _runs(plan: Plan, shown: Sequence[PlannedRun]) -> Table:
    rows = [
        (p.run_key, p.run.arm, str(p.run.replicate), _overrides(p.run.overrides), p.state, *_cost(plan, [p]))
        for p in shown
    ]
    return Table(("run", "arm", "replicate", "what differs", "state", *_COST_HEADERS), rows)


def _overrides(overrides: Mapping[str, Any]) -> str:
    return " ".join(f"{path}={_brief(value)}" for path, value in overrides.items()) or "-"


def _brief(value: Any) -> str:
    if isinstance(value, dict) and "name" in value:
        rest = ",".join(f"{key}={_brief(one)}" for key, one in value.items() if key != "name")
        return f"{value['name']}({rest})" if rest else str(value["name"])
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


_COST_HEADERS = ("training left", "device hours", "checkpoints")


def _cost(plan: Plan, members: Sequence[PlannedRun]) -> tuple[str, str, str]:
    return (
        _sum_known([plan.training_seconds(planned) for planned in members], duration),
        _sum_known([plan.device_hours(planned) for planned in members], device_hours),
        _sum_known([plan.checkpoint_bytes(planned) for planned in members], size),
    )


def _sum_known(amounts: Sequence[float | None], spell: Callable[[float], str]) -> str:
    """Spell a sum, with `?` for what nobody has measured: 40 min, ?, 40 min + ?, - for nothing."""
    known = sum(one for one in amounts if one is not None)
    parts = [spell(known)] if known else []
    return " + ".join(parts + ["?"] * (None in amounts)) or "-"


def cost_sentence(plan: Plan, device: str | None = None) -> str:
    """Say what is left to train in device hours, by the device that each estimate was measured on."""
    hours: dict[tuple[str, str], float] = {}
    unknown = 0
    for planned in plan.runs:
        left, measured = plan.device_hours(planned, device), plan.measured(planned, device)
        if left is None:
            unknown += 1
        elif left and measured:
            where = (measured.device, measured.device_name)
            hours[where] = hours.get(where, 0.0) + left
    said = [
        f"{device_hours(amount)} {'GPU ' * (kind == 'cuda')}hours on {name}" for (kind, name), amount in hours.items()
    ]
    if unknown:
        said.append(f"an unknown time for {count(unknown, 'run')} (nothing alike has been measured yet)")
    return ", ".join(said)


def _total_cost(plan: Plan) -> str:
    budget = plan.study.budget_gpu_hours
    limit = f"; budget: {budget:g} GPU hours" if budget is not None else ""
    said = cost_sentence(plan)
    if not said:
        return f"training left: none{limit}"
    disk = _sum_known([plan.checkpoint_bytes(planned) for planned in plan.runs], size)
    hint = f"\nwhat is unknown: `harness calibrate {plan.study.path}` measures it" if "unknown" in said else ""
    return f"training left: {said}, without evaluations{limit}\ncheckpoints will take: {disk}{hint}"


# -------------------------------------------------------------------------------------------------------------- status


@dataclass(frozen=True)
class Standing:
    """One line of `status`."""

    run_key: str
    studies: tuple[str, ...]
    arm: str
    replicate: int
    state: str
    step: int
    num_steps: int
    steps_per_second: float | None
    eta_seconds: float | None
    loss: float | None
    nll_bpd: float | None  # of the last evaluation
    reason: str
    run_dir: str
    job: str = ""  # SLURM's, as squeue spells it
    node: str = ""

    def row(self, *, slurm: bool = False) -> tuple[str, ...]:
        """Return the cells of `status`; of SLURM's two only when they are asked for."""
        running = self.state == "running"
        return (
            self.run_key,
            f"{self.arm} r{self.replicate}",
            self.state,
            f"{self.step}/{self.num_steps}",
            f"{self.steps_per_second:.3g}" if running and self.steps_per_second else "-",
            duration(self.eta_seconds) if running and self.eta_seconds is not None else "-",
            "-" if self.loss is None else f"{self.loss:.4f}",
            "-" if self.nll_bpd is None else f"{self.nll_bpd:.4f}",
            *((self.job or "-", self.node or "-") if slurm else ()),
            self.reason,
        )


STANDING_HEADERS = ("run", "arm", "state", "step", "it/s", "ETA", "loss", "nll_bpd", "why")


def standings(directories: Sequence[RunDirectory], study: str | None = None) -> list[Standing]:
    """Gather what `status` says of runs; arm and replicate are those of `study`, else of a run's first study."""
    found = launch.look([directory.path for directory in directories])
    return [_standing(directory, study, found[directory.key]) for directory in directories]


def _standing(directory: RunDirectory, study: str | None, here: launch.Standing) -> Standing:
    status, job = here.status, here.job
    num_steps, batch_size = _size_of(directory.path)
    studies = directory.studies()
    facts = studies.get(study or next(iter(studies), ""), {})
    speed = status.images_per_second
    return Standing(
        run_key=directory.key,
        studies=tuple(studies),
        arm=facts.get("arm", "-"),
        replicate=facts.get("replicate", 0),
        state=status.state,
        step=status.step,
        num_steps=num_steps,
        steps_per_second=speed / batch_size if speed else None,
        eta_seconds=status.eta_seconds,
        loss=status.loss,
        nll_bpd=last_nll(directory.path) if status.attempt else None,
        reason=status.reason,
        run_dir=str(directory.path),
        job=job.job_id if job else "",
        node=job.node if job and job.live else "",
    )


@lru_cache(maxsize=100_000)
def _size_of(run_directory: Path) -> tuple[int, int]:
    train = RunDirectory(run_directory).spec()["train"]
    return train["steps"], train["batch_size"]


def last_nll(run_directory: Path) -> float | None:
    """Return the newest `eval/nll_bpd` in the journals, found from their ends without reading them as a whole."""
    for path in sorted(run_directory.glob("journal-*.jsonl"), reverse=True):
        data = path.read_bytes()
        at = data.rfind(b'"eval/nll_bpd": ')
        if at >= 0 and b"\n" in data[at:]:
            line = data[data.rfind(b"\n", 0, at) + 1 : data.find(b"\n", at)]
            values = json.loads(line[9:])["metrics"]
            return values["eval/nll_bpd"]
    return None


def status_table(found: Sequence[Standing]) -> Table:
    slurm = any(one.job for one in found)
    headers = [*STANDING_HEADERS[:-1], *(("job", "node") if slurm else ()), STANDING_HEADERS[-1]]
    return Table(headers, [one.row(slurm=slurm) for one in found])


def status_json(found: Sequence[Standing]) -> str:
    return json.dumps([asdict(one) for one in found], indent=1)


class Follower:
    """Show runs while they are worked on: a live table on a terminal, elsewhere a line whenever a state changes.

    Args:
        gather: tells where every run stands now.
    """

    def __init__(self, gather: Callable[[], Sequence[Standing]]):
        self._gather = gather
        self._live: Any = None
        self._states: dict[str, str] = {}
        self._last_news = time.monotonic()

    def __enter__(self) -> Follower:
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(auto_refresh=False)
            self._live.start()
        else:
            self._states = {one.run_key: one.state for one in self._gather()}
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def tick(self) -> None:
        """Look again and show what is new."""
        found = self._gather()
        if self._live:
            self._live.update(self._picture(found), refresh=True)
            return
        for one in found:
            before = self._states[one.run_key]
            if one.state != before:
                self._states[one.run_key] = one.state
                self._say(one, f"{before} -> {one.state}")
        if time.monotonic() - self._last_news >= NEWS_EVERY_SECONDS:
            self._last_news = time.monotonic()
            for one in found:
                if one.state == "running":
                    self._say(one, "running")

    def _say(self, one: Standing, what: str) -> None:
        facts = [f"step {one.step}/{one.num_steps}"]
        if one.state == "running" and one.eta_seconds is not None:
            facts.append(f"{duration(one.eta_seconds)} left")
        if one.loss is not None:
            facts.append(f"loss {one.loss:.4f}")
        if one.state == "done" and one.nll_bpd is not None:
            facts.append(f"nll {one.nll_bpd:.4f} bits/dim")
        if one.reason:
            facts.append(one.reason)
        name = f"{one.run_key} {one.arm} r{one.replicate}"
        print(printable(f"{time.strftime('%H:%M:%S')} {name}: {what}; {', '.join(facts)}"), flush=True)

    def _picture(self, found: Sequence[Standing]) -> Any:
        """Draw as many runs as the terminal has lines for, those at work first, and count them all."""
        from rich.console import Group
        from rich.text import Text

        order = ("running", "failed", "interrupted", "queued", "evaluate", "new", "pruned", "done")
        room = max(4, self._live.console.height - 6)
        urgent = sorted(found, key=lambda one: order.index(one.state))[:room]
        return Group(
            status_table(urgent).rich(), Text(f"{count(len(found), 'run')}: {state_counts(s.state for s in found)}")
        )


# ----------------------------------------------------------------------------------------------------------------- why


def chain(directory: RunDirectory) -> list[str]:
    """Spell what happened to a run, as its journal and SLURM know it together, one line an event, oldest first.

    Of checkpoints in a row the last is told. Where SLURM is not, or has forgotten, the run directory alone tells.
    """
    events = directory.events()
    following = [*events, None][1:]
    told = [
        (event.time_ms / 1000, _event_line(event))
        for event, after in zip(events, following, strict=True)
        if event.name != "checkpoint" or after is None or after.name != "checkpoint"
    ]
    claims = launch.claims(directory.path.parent, [directory.key]).get(directory.key, [])
    try:
        jobs = read_queue(job for claim in claims if claim.on_slurm for job in claim.jobs)
    except LaunchError:
        jobs = {}
    for claim in claims:
        told.extend(_claim_lines(claim, jobs, directory.key))
    moments = sorted(told, key=lambda line: line[0])
    return [printable(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))}  {what}") for at, what in moments]


def _claim_lines(claim: launch.Claim, jobs: Mapping[str, JobFacts], run_key: str) -> Iterator[tuple[float, str]]:
    facts = claim.submission
    if not facts:
        return
    job = f", job {claim.jobs[0]}" if claim.on_slurm and claim.jobs else ""
    yield facts["time"], f"submitted by {facts['user']} ({facts['cluster']}{job})"
    for job_id in claim.jobs:
        lives = jobs[job_id].lives if job_id in jobs else ()
        for number, life in enumerate(lives):
            if life.start and life.node:
                again = "again " if number or job_id != claim.jobs[0] else ""
                yield _seconds(life.start), f"SLURM starts job {job_id} {again}on {life.node}"
            if life.end and life.state not in ("RUNNING", "PENDING"):
                by = f" by {jobs[job_id].user}" if life.state == "CANCELLED" and jobs[job_id].user else ""
                code = f", exit code {life.exit_code}" if life.exit_code not in ("", "0:0") else ""
                yield _seconds(life.end), f"SLURM ends job {job_id}: {life.state}{by}{code}"
    if who := claim.cancelled_by(run_key):
        yield (claim.folder / "cancelled" / run_key).stat().st_mtime, f"cancelled by {who}"


def _seconds(local: str) -> float:
    return time.mktime(time.strptime(local, "%Y-%m-%dT%H:%M:%S"))


def _event_line(event: Event) -> str:
    told = {key: value for key, value in event.facts.items() if key not in ("attempt", "traceback")}
    facts = " ".join(f"{key}={value}" for key, value in told.items() if value not in (None, ""))
    fenced = "  (made again later)" if event.fenced else ""
    if event.name == "started":
        begun = f"resumed at step {event.facts['resumed_from_step']}" if event.facts["resumed_from_step"] else "started"
        facts = f"on {event.facts['host']} (attempt {event.attempt}, process {event.facts['pid']})"
        return f"{begun} {facts}{fenced}"
    return f"{event.name}  {facts}".rstrip() + fenced
