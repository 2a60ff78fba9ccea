"""evaluate, score: measure runs whose training has ended, and images from elsewhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.common import (
    Output,
    checkpoint_option,
    checkpoint_step,
    find_run,
    has_inception,
    is_run_name,
    json_option,
    members,
    no_sync_option,
    runs_folder_option,
    runs_named,
    sampler_named,
)
from harness.cli.study_files import is_study_file
from harness.errors import HarnessError, LaunchError

if TYPE_CHECKING:
    from harness.records.directory import RunDirectory
    from harness.spec.base import SpecModel
    from harness.spec.evaluation import Evaluation

_CHECKPOINT = re.compile(r"step-([0-9]{8,})-[0-9a-f]{64}\.pt")


class Counts(click.ParamType):
    """Numbers of sampling steps, with commas between them."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):  # the default
            return value
        words = str(value).split(",")
        if not all(re.fullmatch("[1-9][0-9]{0,6}", word) for word in words):
            self.fail(f"{value!r}: numbers of steps with commas between them are needed, such as 50,100,250")
        return tuple(dict.fromkeys(map(int, words)))


@click.command()
@click.argument("name", metavar="RUN|STUDY|CHECKPOINT")
@click.option("--sampler", help="Also measure samples of this one: ancestral, ddim, dpmpp_2m, or of a plugin.")
@click.option("--num-steps", type=Counts(), default=(), help="Also measure samples of so many steps, such as 50,100.")
@click.option("--num-samples", type=click.IntRange(16), help="Of that many samples.  [default: as the study has it]")
@click.option("--protocol", help="Also measure samples as ddpm, iddpm, adm or laptop does.")
@checkpoint_option
@no_sync_option
@json_option
@runs_folder_option
def evaluate(
    name: str,
    sampler: str | None,
    num_steps: tuple[int, ...],
    num_samples: int | None,
    protocol: str | None,
    checkpoint: str | None,
    no_sync: bool,
    output: Output,
    runs_folder: Path,
) -> None:
    """Measure runs whose training has ended.

    Whatever their studies ask for and they lack, on this machine, one run after the other. --sampler, --num-steps and
    --num-samples add measurements of samples, each with all else as in the study's first evaluation with fidelity, and
    --protocol adds one as a paper defines it; the study asks for them until it is submitted again without them. What
    was measured is not measured again, and features that were kept are not sampled again.

    A CHECKPOINT is a file in a run's folder of checkpoints, or a RUN with --checkpoint; its results are printed and not
    recorded, since the records of a run are of its last weights.

    With --json: [{"run_key", "arm", "replicate", "step", "state", "metrics": {NAME: number}}]; without options that
    add some, the metrics are all of the evaluations that are asked for.
    """
    from harness.job import added
    from harness.records.manifest import Manifests

    if protocol and (sampler or num_steps or num_samples):
        raise LaunchError(f"protocol {protocol} says how samples are drawn and how many: leave out the other options")
    study, directories, step = _chosen(name, checkpoint, runs_folder)
    options: dict[str, list[Evaluation]] = {}
    if sampler or num_steps or num_samples or protocol or step is not None:
        for directory in directories:
            chosen = sampler_named(sampler, directory) if sampler else None
            options[directory.key] = added.fidelity_protocols(
                directory, chosen, num_steps, num_samples, protocol=protocol, inception=has_inception()
            )
    if step is not None:
        [directory] = directories
        output.document([_measure_checkpoint(directory, step, options[directory.key], output)])
        return
    ready = _trained(directories, only=len(directories) == 1)
    manifests = Manifests(runs_folder)
    by_study: dict[str, dict[str, list[Evaluation]]] = {}
    for directory in ready if options else ():
        studies = list(manifests.memberships_by_joining(directory)) or [""]
        asking = study if study in studies else studies[-1]
        if not asking:
            raise LaunchError(f"run {directory.key} belongs to no study, so nothing could ask for its measurement")
        by_study.setdefault(asking, {})[directory.key] = options[directory.key]
    for asking, evaluations in by_study.items():
        added.ask_for(runs_folder, asking, evaluations)
        _say_what_to_write(asking, next(iter(evaluations.values())))
    results, states = [], []
    for directory in ready:
        state = _run(directory, no_sync)
        result = _result(directory, manifests, options.get(directory.key), state)
        results.append(result)
        states.append(state)
        _show(result, output)
        if state == "interrupted":
            break
    output.document(results)
    if set(states) - {"done"}:
        sys.exit(130 if "interrupted" in states else 1)


def _chosen(name: str, checkpoint: str | None, runs_folder: Path) -> tuple[str, list[RunDirectory], int | None]:
    """Return the study or "", its runs, and the step of a checkpoint if one was named."""
    from harness.records.directory import RunDirectory

    path = Path(name)
    if match := _CHECKPOINT.fullmatch(path.name):
        if not path.is_file():
            raise LaunchError(f"no checkpoint {name}")
        return "", [RunDirectory(path.absolute().parents[1])], int(match[1])
    if checkpoint is not None:
        directory = find_run(name, runs_folder)
        return "", [directory], checkpoint_step(directory, checkpoint)
    if is_run_name(name):
        return *runs_named(name, runs_folder), None
    try:
        study, directories = members(name, runs_folder)
        return str(study), directories, None
    except LaunchError as no_study:
        if is_study_file(name):
            raise
        try:
            return "", [find_run(name, runs_folder)], None
        except LaunchError:
            raise no_study from None


def _trained(directories: Sequence[RunDirectory], *, only: bool) -> list[RunDirectory]:
    """Return the runs that can be evaluated, and say why the others cannot; of a single one that is an error."""
    from harness.job.added import require_trained
    from harness.text import printable

    ready = []
    for directory in directories:
        try:
            require_trained(directory)
        except HarnessError as error:
            if only:
                raise
            click.echo(printable(f"left out: {error}"))
        else:
            ready.append(directory)
    return ready


def _say_what_to_write(study: str, evaluations: Sequence[Evaluation]) -> None:
    """Print the lines that keep the evaluations asked for when the study is submitted again."""
    import yaml

    entries = [_without_defaults(evaluation) for evaluation in evaluations]
    text = yaml.safe_dump({"evaluate": entries}, sort_keys=False, allow_unicode=True, default_flow_style=None)
    click.echo(f"study {study} asks for these until it is submitted without them; to keep them, add to its file:")
    click.echo("".join(f"  {line}\n" for line in text.splitlines()), nl=False)


def _without_defaults(part: SpecModel) -> dict[str, Any]:
    """Return the fields of a part that differ from their defaults, and its name, which chooses its class."""
    from harness.spec.base import SpecModel

    fields = part.model_dump(mode="json", exclude_defaults=True)
    parts = {name: _without_defaults(value) for name, value in part if name in fields and isinstance(value, SpecModel)}
    return ({"name": part.name} if hasattr(part, "name") else {}) | fields | parts


def _run(directory: RunDirectory, no_sync: bool) -> str:
    from harness.job.job import run_job

    return run_job(directory.path, sync=not no_sync)


def _result(
    directory: RunDirectory, manifests: Any, evaluations: Sequence[Evaluation] | None, state: str
) -> dict[str, Any]:
    """Return a run's metrics of some evaluations, or of all that are asked for."""
    from harness.job.request import RunRequest

    keys = {evaluation.key for evaluation in evaluations or RunRequest.of(directory).evaluations}
    events = [event for event in directory.events("evaluation") if not event.superseded]
    prefixes = {event.fields["prefix"] for event in events if event.fields["key"] in keys}
    rows = [row for row in directory.rows() if row.key.split("/")[0] in prefixes and row.x == row.train_step]
    place: dict[str, Any] = next(iter(manifests.memberships(directory).values()), {})
    return {
        "run_key": directory.key,
        "arm": place.get("arm"),
        "replicate": place.get("replicate"),
        "step": directory.durable_step(),
        "state": state,
        "metrics": {row.key: row.value for row in rows if row.train_step == directory.training_size()[0]},
    }


def _measure_checkpoint(
    directory: RunDirectory, step: int, evaluations: Sequence[Evaluation], output: Output
) -> dict[str, Any]:
    from harness.job.added import evaluate_checkpoint
    from harness.progress import Progress
    from harness.records.manifest import Manifests

    with Progress(f"evaluate {directory.key[:8]}") as progress:
        metrics = evaluate_checkpoint(
            directory,
            step,
            evaluations,
            on_progress=lambda task, done, total: progress.update(done, total, task),
        )
    place: dict[str, Any] = next(iter(Manifests(directory.path.parent).memberships(directory).values()), {})
    names = {"arm": place.get("arm"), "replicate": place.get("replicate")}
    result = {"run_key": directory.key, **names, "step": step, "state": "", "metrics": metrics}
    _show(result, output)
    return result


def _show(result: dict[str, Any], output: Output) -> None:
    from harness.cli.tables import Table
    from harness.text import printable

    arm = f" {result['arm']} r{result['replicate']}" if result["arm"] is not None else ""
    state = f": {result['state']}" if result["state"] else ""
    click.echo(printable(f"{result['run_key']}{arm}, step {result['step']}{state}"))
    if result["metrics"] and not output.as_json:
        Table(("metric", "value"), [(name, f"{value:.6g}") for name, value in result["metrics"].items()]).show()


@click.command()
@click.argument("images", type=click.Path(path_type=Path), metavar="FOLDER|NPZ")
@click.option("--data", help="The data that they are compared with: cifar10, or {name: image_folder, path: ...}.")
@click.option("--study", help="Measure as this study measures, on its data.")
@click.option("--protocol", help="As ddpm, iddpm, adm or laptop; of a study, that one of its measurements.")
@click.option("--as", "arm", metavar="ARM", help="Put them beside the study's arms under this name.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder of the data sets.  [HARNESS_DATA]")
@json_option
@runs_folder_option
def score(
    images: Path,
    data: str | None,
    study: str | None,
    protocol: str | None,
    arm: str | None,
    data_root: Path | None,
    output: Output,
    runs_folder: Path,
) -> None:
    """Measure images from elsewhere.

    As a fidelity part measures a run's samples, by the same extractor, reference and metrics. FOLDER has PNG or JPEG
    files; NPZ has arr_0, uint8 [N, H, W, C], and arr_1, classes, if any, as openai/guided-diffusion and `harness sample
    --out` write it. They must have the size of the data: nothing is scaled, since FID depends on how.

    With --study the settings are those of its first evaluation with fidelity, or of the one by --protocol. With --as
    the result is stored, if there are as many images as the study measures samples: its results table shows them as an
    arm that is not ours.

    With --json: {"metrics": {KIND: number}, "num_images", "images_sha256", "source", "data", "data_digest",
    "extractor", "fidelity", "harness"}, stored also "study" and "arm".
    """
    from harness.cli.tables import Table
    from harness.errors import SpecError
    from harness.evaluation.scoring import read_images, read_labels
    from harness.evaluation.scoring import score as score_images
    from harness.job import added
    from harness.job.environment import choose_device, code_version
    from harness.records.scored import write_scored
    from harness.study.named_data import data_named
    from harness.text import harness_command, printable

    if arm is not None and study is None:
        raise SpecError("--as puts images beside the arms of a study: name it with --study")
    root, named = str(data_root) if data_root else None, data_named(data) if data is not None else None
    if study:
        name, dataset, part, arms = added.study_protocol(*members(study, runs_folder), root, protocol)
    elif named is not None:
        name, dataset, part, arms = added.protocol_of(named, root, protocol)
    else:
        raise SpecError("what are the images compared with? Give --data NAME, or --study STUDY")
    if named is not None and dataset.name != named.name:
        raise SpecError(f"--data {data}: study {name} is of {dataset.name}")
    if arm is not None and arm in arms:
        raise SpecError(f"--as {arm}: study {name} has an arm of that name; give another")
    given = read_images(images, dataset)
    if study and len(given) != part.num_samples:
        counts = f"these are {len(given)} images, and the study measures {part.num_samples} samples"
        why = "FID depends on the number"
        if arm is not None:
            raise SpecError(f"--as {arm}: {counts}: {why}. Score {part.num_samples} images, or leave out --as")
        click.echo(f"{counts}: {why}, so they are not comparable")
    labels = read_labels(images, dataset, len(given)) if "class_fid" in part.metrics else None
    result = score_images(given, dataset, part, choose_device("auto"), labels)
    result |= {"source": printable(str(images)), "harness": code_version()}
    if not output.as_json:
        Table(("metric", "value"), [(kind, f"{value:.6g}") for kind, value in result["metrics"].items()]).show()
    click.echo(_compared(result))
    if arm is not None:
        write_scored(runs_folder, name, arm, result)
        figures = harness_command("figures", name, runs_folder=runs_folder)
        click.echo(f"stored as arm {arm} of study {name}, not ours; to see it: {figures}")
        result |= {"study": name, "arm": arm}
    output.document(result)


def _compared(result: dict[str, Any]) -> str:
    """Say what a score compares with what, and how."""
    extractor, protocol = result["extractor"], result["fidelity"]
    accuracy = f", accuracy {right:.1%}" if (right := extractor.get("test_accuracy")) is not None else ""
    split = f"images of the {protocol['reference']} split"
    reference = split if protocol["reference"] in ("train", "test") else f"images of {protocol['reference']}"
    return (
        f"{result['num_images']} images against {protocol['reference_images']} {reference} of {result['data']}, "
        f"features of {extractor['name']}{accuracy}"
    )
