"""Shared by several verbs: options, and how a study or a run is named."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from harness.cli.study_files import choices, is_study_file
from harness.errors import CheckpointError, LaunchError, RecordError, SpecError

if TYPE_CHECKING:
    from harness.records.directory import RunDirectory
    from harness.slurm.profile import Profile
    from harness.spec.evaluation import AnySampler
    from harness.study.model import Study

MIN_PREFIX = 4


def default_runs() -> str:
    return os.environ.get("HARNESS_RUNS") or "runs"


@dataclass(frozen=True)
class Output:
    """Where a verb's result goes: with --json one JSON document on standard output, else only messages."""

    stdout: IO[str] | None = None

    @property
    def as_json(self) -> bool:
        return self.stdout is not None

    def document(self, value: Any) -> None:
        """Print the result of a verb if --json was given; a verb prints one document."""
        if self.stdout is not None:
            click.echo(json.dumps(_finite(value), indent=1, default=str, allow_nan=False), file=self.stdout)

    def refuse_with(self, option: str, given: bool) -> None:
        """Refuse --json together with an option that runs without end.

        Raises:
            LaunchError: both were given.
        """
        if self.as_json and given:
            raise LaunchError(f"--json prints one document, but {option} keeps printing; use one of them")


def _finite(value: Any) -> Any:
    """Return a document with null for numbers that JSON does not have: NaN and the infinities."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _redirect_messages(context: click.Context, _: click.Parameter, as_json: bool) -> Output:
    """With --json, redirect everything else that is printed to standard error."""
    if not as_json:
        return Output()
    output = Output(sys.stdout)
    context.with_resource(contextlib.redirect_stdout(sys.stderr))
    return output


json_option = click.option(
    "--json",
    "output",
    is_flag=True,
    callback=_redirect_messages,
    help="Print one JSON document; messages go to standard error.",
)


set_option = click.option(
    "--set", "sets", multiple=True, metavar="PATH=VALUE", help="Set any field once, e.g. --set train.steps=100."
)
runs_folder_option = click.option(
    "--runs",
    "runs_folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_runs,
    is_eager=True,  # before a study's name, which is looked up there
    show_default="HARNESS_RUNS, else ./runs",
    help="Folder of the run directories.",
)
profile_option = click.option(
    "--profile",
    type=click.Path(path_type=Path),
    metavar="NAME|FILE",
    help="Profile of the SLURM cluster: a file, or a name in slurm/clusters.",
)


def cost_options(command: Callable) -> Callable:
    """Add the options that say where a study's cost is asked for, and how it is shown."""
    for option in (
        click.option("--markdown", "as_markdown", is_flag=True, help="The cost as a Markdown table, for a proposal."),
        click.option(
            "--utilisation",
            type=click.FloatRange(0, 1, min_open=True),
            help="Share of the card's peak that is assumed.  [default: 0.5 in fp32, 0.3 in tf32, 0.2 in bf16]",
        ),
        click.option(
            "--parallel", type=click.IntRange(1), help="Jobs at a time.  [default: max_parallel of the profile, else 1]"
        ),
        click.option("--card", help="GPU that the cost is asked for, such as h100.  [default: as the profile says]"),
    ):
        command = option(command)
    return command


new_code_option = click.option(
    "--new-code", is_flag=True, help="Use the current code, not the snapshot that a run started with."
)
no_sync_option = click.option(
    "--no-sync", is_flag=True, help="Don't upload records to MLflow; `harness sync` does it later."
)


def read_profile(profile: Path | None, cluster: str = "slurm") -> Profile | None:
    """Read the profile of a cluster; the name `mine` means slurm/clusters/mine.yaml.

    Raises:
        LaunchError: the file cannot be read or is wrong, or the runs would not go to a SLURM cluster.
    """
    from harness.slurm.profile import load_profile

    if profile is None:
        return None
    if cluster != "slurm":
        raise LaunchError("--profile describes a SLURM cluster; add --cluster slurm")
    named = Path("slurm", "clusters", f"{profile}.yaml")
    if profile.exists() or profile.suffix or len(profile.parts) > 1:
        return load_profile(profile)
    if not named.exists():
        names = sorted(path.stem for path in named.parent.glob("*.yaml"))
        raise LaunchError(
            f"no profile {str(profile)!r} in slurm/clusters; {choices(names, 'it has none')}; or give a file"
        )
    return load_profile(named)


def load(study: Path, sets: Sequence[str] = ()) -> Study:
    from harness.study.expand import load_study

    return load_study(study, sets=sets, inception=has_inception())


def has_inception() -> bool:
    """Return whether Inception's weights are named; a named file that cannot be one of weights is a DataError."""
    from harness.metrics.weights import weights_file

    return weights_file("inception") is not None


checkpoint_option = click.option(
    "--checkpoint",
    metavar="STEP|best",
    help="A kept checkpoint's step, or the best by records.best.  [default: the newest]",
)


def weights_option(*choices: str) -> Callable:
    return click.option(
        "--weights", type=click.Choice(choices), default=choices[0], show_default=True, help="Which weights."
    )


def checkpoint_step(directory: RunDirectory, checkpoint: str | None) -> int | None:
    """Return the step that `--checkpoint` selects; None means the newest checkpoint.

    Raises:
        CheckpointError: it is neither a step nor `best`, or no checkpoint of the run has been scored.
    """
    if checkpoint is None:
        return None
    if checkpoint != "best":
        if not checkpoint.isdecimal():
            raise CheckpointError(f"--checkpoint {checkpoint}: give a number of steps, or best")
        return int(checkpoint)
    from harness.records.disk import best_step

    step = best_step(directory.checkpoints_folder)
    if step is None:
        raise CheckpointError(f"run {directory.key} has no best checkpoint: its studies name no metric in records.best")
    return step


def sampler_named(name: str, directory: RunDirectory) -> AnySampler:
    """Return a sampler with its default parameters, one of the run's plugins included.

    Raises:
        SpecError: there is none of that name, or one of its parameters has no default.
    """
    from harness.records.plugins import plugins_of_run
    from harness.spec.evaluation import Sampler
    from harness.spec.parts import active
    from harness.spec.parts import choices as names_of
    from harness.text import did_you_mean

    known = names_of(Sampler)
    if name not in known:
        with active(plugins_of_run(directory)):
            known = names_of(Sampler)
    if name not in known:
        raise SpecError(f"--sampler {name}: unknown; {did_you_mean(name, list(known))}")
    if needed := [field for field, facts in known[name].model_fields.items() if facts.is_required()]:
        raise SpecError(f"--sampler {name}: has parameters without a default: {', '.join(needed)}; give them one")
    return known[name]()  # type: ignore[return-value]


def same_runs(runs_folder: Path) -> str:
    """Return the options that a suggested command needs to address the same runs."""
    return "" if runs_folder == Path(default_runs()) else f" --runs {shlex.quote(str(runs_folder))}"


def all_runs(runs_folder: Path) -> list[RunDirectory]:
    """Return all runs: those that studies ask for by study and in its order, then the others by their keys."""
    from harness.records.directory import RunDirectory
    from harness.records.layout import run_paths
    from harness.records.manifest import Manifests

    keys = [path.name for path in run_paths(runs_folder)]
    order = {key: place for place, key in enumerate(Manifests(runs_folder).run_keys())}
    return [RunDirectory(runs_folder / key) for key in sorted(keys, key=lambda key: (order.get(key, len(order)), key))]


def show_damage(runs_folder: Path, directories: Sequence[RunDirectory] = ()) -> None:
    """Print what looks like a run and is not read as one, and what cannot be read of the given runs."""
    from harness.records.layout import folders_that_are_no_runs
    from harness.text import printable

    for name, reason in folders_that_are_no_runs(runs_folder).items():
        click.echo(printable(f"left out: {runs_folder / name}: {reason}"))
    for directory in directories:
        for problem in directory.damage():
            click.echo(printable(f"{directory.key}: {problem}"))


def members(study: str | None, runs_folder: Path) -> tuple[str | None, list[RunDirectory]]:
    """Return a study's name and the runs that it asks for in its order, given its file or name; all runs if None.

    What it asks for is what its file said when it was submitted last, and of a search its trials so far. STUDY/ARM and
    STUDY/ARM/REPLICATE give some of a study's runs.

    Raises:
        LaunchError: no run belongs to a study of that name.
    """
    from harness.records.directory import RunDirectory
    from harness.records.layout import study_names
    from harness.records.manifest import Manifests
    from harness.text import harness_command

    if study is None:
        return None, all_runs(runs_folder)
    if is_run_name(study):
        return runs_named(study, runs_folder)
    _require_possible_name(study, runs_folder)
    manifests = Manifests(runs_folder)
    name, loaded = _name_and_study(study)
    if loaded and not manifests.of(name):
        directories = [RunDirectory(runs_folder / run.run_key) for run in loaded.runs]
        directories = [directory for directory in directories if directory.spec_path.exists()]
    else:
        directories = manifests.runs(name)
        if not manifests.of(name):
            places = {run.key: run.studies().get(name, {}) for run in directories}
            directories.sort(key=lambda run: (places[run.key].get("arm", ""), places[run.key].get("replicate", 0)))
    if not directories and (loaded or manifests.of(name)):
        submit = harness_command("submit", study, runs_folder=runs_folder)
        raise LaunchError(f"study {name} has no runs in {runs_folder} yet: {submit}")
    if not directories:
        raise LaunchError(f"no study {name!r} in {runs_folder}; {choices(study_names(runs_folder), 'it is empty')}")
    return name, directories


def upload_left_over(directories: Sequence[RunDirectory]) -> None:
    """Upload runs that ended after their submitter was killed, in the background; nothing of a study without MLflow."""
    from harness.errors import TrackingError
    from harness.text import count, printable
    from harness.tracking.daemon import BackgroundSync
    from harness.tracking.sync import not_reported

    try:
        left_over = not_reported(directories)
        if not left_over:
            return
        log_folder = left_over[0].tracking_folder
        BackgroundSync(left_over, log_folder)  # makes its last pass when this command has ended
    except (TrackingError, OSError):
        return  # `sync` says what is wrong with the store
    runs = f"{count(len(left_over), 'run')} {'has' if len(left_over) == 1 else 'have'}"
    click.echo(printable(f"{runs} ended since the last upload to MLflow; uploading (log: {log_folder / 'sync.log'})"))


def study_name(study: str) -> str:
    """Return the name of a study that is given by file or name."""
    return _name_and_study(study)[0]


def _name_and_study(study: str) -> tuple[str, Study | None]:
    """Return the name of a study that is given by file or name; of a file of runs also its content."""
    from harness.study.expand import is_search

    if not is_study_file(study):
        return study, None
    if is_search(study):
        from harness.search.loading import load_search

        return load_search(study, inception=has_inception()).name, None
    loaded = load(Path(study))
    return loaded.name, loaded


def _require_possible_name(study: str, runs_folder: Path) -> None:
    """Raise LaunchError for a text that is no file and can be no study's name, since it could not be a file's."""
    from harness.records.files import safe_name
    from harness.records.layout import study_names

    try:
        if not is_study_file(study):
            safe_name(study)
    except RecordError:
        known = choices(study_names(runs_folder), "it is empty")
        raise LaunchError(f"no study {study[:100]!r} in {runs_folder}; {known}") from None


def studies_or_runs(names: Iterable[str], runs_folder: Path) -> list[RunDirectory]:
    """Return the runs of the named studies and the runs named by key, each once; all runs if no name is given.

    Those that a study no longer asks for are included.

    Raises:
        LaunchError: a name matches no study and no run.
    """
    names = list(names)
    if not names:
        return all_runs(runs_folder)
    return list({run.key: run for name in names for run in _study_or_run(name, runs_folder)}.values())


def _study_or_run(name: str, runs_folder: Path) -> list[RunDirectory]:
    from harness.records.manifest import Manifests

    if is_run_name(name):
        return runs_named(name, runs_folder)[1]
    try:
        study, directories = members(name, runs_folder)
        return [*directories, *Manifests(runs_folder).earlier_runs(str(study))]
    except LaunchError as no_study:
        try:
            return [find_run(name, runs_folder)]
        except LaunchError:
            raise no_study from None


def is_run_name(name: str) -> bool:
    """Return whether a name is STUDY/ARM or STUDY/ARM/REPLICATE, and no file's path."""
    return "/" in name and not is_study_file(name)


def runs_named(name: str, runs_folder: Path) -> tuple[str, list[RunDirectory]]:
    """Return a study's name and its runs that STUDY/ARM or STUDY/ARM/REPLICATE names, such as digits/cosine/0.

    The study may be left out where one study alone has such an arm: cosine/0.

    Raises:
        LaunchError: there is no such study, or no such run in it; the message lists those that there are.
    """
    from harness.records.layout import study_names
    from harness.records.manifest import Manifests

    given, _, place = name.partition("/")
    if given not in study_names(runs_folder) and not is_study_file(given):
        studies = _studies_with_arm(name, runs_folder)
        if len(studies) > 1:
            raise LaunchError(f"{name!r} is in {len(studies)} studies; {choices((f'{s}/{name}' for s in studies), '')}")
        given, place = (studies[0], name) if studies else (given, place)
    study, directories = members(given, runs_folder)
    manifests = Manifests(runs_folder)
    places = {directory.key: _place(manifests.memberships(directory).get(str(study), {})) for directory in directories}
    arm, _, replicate = place.rpartition("/")
    exact = (place, f"{arm}/{replicate.removeprefix('r')}")  # `status` writes r0 for a replicate
    matches = [directory for directory in directories if places[directory.key] in exact]
    matches = matches or [directory for directory in directories if places[directory.key].rpartition("/")[0] == place]
    if not matches:
        names = [f"{study}/{of_run}" for of_run in places.values()]
        raise LaunchError(f"no run {name!r} in {runs_folder}; {choices(names, 'it is empty')}")
    return str(study), matches


def _studies_with_arm(name: str, runs_folder: Path) -> list[str]:
    """Return the studies that ask for an arm, or for a run as ARM/REPLICATE."""
    from harness.records.layout import study_names
    from harness.records.manifest import Manifests

    arm, _, replicate = name.rpartition("/")
    exact = (arm, replicate.removeprefix("r"))
    manifests = Manifests(runs_folder)
    return [
        study
        for study in study_names(runs_folder)
        if (manifest := manifests.of(study))
        and any(
            (of_arm == exact[0] and exact[1] in map(str, runs.values())) or of_arm == name
            for of_arm, runs in manifest.arms.items()
        )
    ]


def _place(membership: Mapping[str, Any]) -> str:
    """Return ARM/REPLICATE of a run's membership in a study."""
    return f"{membership.get('arm')}/{membership.get('replicate')}"


def find_run(prefix: str, runs_folder: Path) -> RunDirectory:
    """Return the run whose key starts with `prefix`, or that STUDY/ARM/REPLICATE names.

    Raises:
        LaunchError: the prefix is too short, or matches no run or several; the message lists them.
    """
    if is_run_name(prefix):
        matches = runs_named(prefix, runs_folder)[1]
        if len(matches) > 1:
            raise LaunchError(f"{prefix!r} names {len(matches)} runs; {choices(map(_label, matches), '')}")
        return matches[0]
    if len(prefix) < MIN_PREFIX:
        raise LaunchError(f"{prefix!r} is too short: give at least {MIN_PREFIX} digits of the run's key")
    runs = all_runs(runs_folder)
    matches = [directory for directory in runs if directory.key.startswith(prefix)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise LaunchError(f"{prefix!r} matches {len(matches)} runs; {choices(map(_label, matches), '')}")
    raise LaunchError(f"no run {prefix!r} in {runs_folder}; {choices(map(_label, runs), 'it is empty')}")


def _label(directory: RunDirectory) -> str:
    arms = sorted(
        {f"{membership.get('arm')} r{membership.get('replicate')}" for membership in directory.studies().values()}
    )
    return f"{directory.key} ({', '.join(arms)})"
