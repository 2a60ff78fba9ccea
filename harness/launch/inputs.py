"""What a plan's runs read from outside, data sets and weights: accounted for, and checked before anything is queued."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from harness.data.base import root_folder
from harness.data.folder import TooManyFiles, contents, describe
from harness.errors import DataError, HarnessError
from harness.launch.planning import Plan, PlannedRun
from harness.metrics.weights import WEIGHTS, require_weights_file, weights_file
from harness.records.data_digest import changed_data
from harness.spec.evaluation import WITH_FEATURES, extractor_name
from harness.spec.run import DataModel, ImageFolder
from harness.text import count, harness_command

if TYPE_CHECKING:
    from harness.data.base import Dataset

MOST_ENTRIES = 20_000
"""Of a folder, counted by `plan`: a fraction of a second on a local disk."""

Datasets = dict[tuple[DataModel, str | None], "Dataset"]


def data_notes(plan: Plan) -> Iterator[str]:
    """Account for the image folders of a plan, a line each, without opening an image."""
    for data, root in dict.fromkeys((planned.run.spec.data, planned.run.data_root) for planned in plan.runs):
        if not isinstance(data, ImageFolder):
            continue
        options = {"test_fraction": data.test_fraction, "seed": data.seed, "test_path": data.test_path}
        try:
            found = contents(root_folder(root), data.path, **options, limit=MOST_ENTRIES)  # type: ignore[arg-type]
        except TooManyFiles:
            doctor = harness_command("doctor", plan.study.path)
            yield f"data {data.path}: more than {MOST_ENTRIES} files; `{doctor}` counts them"
        except DataError as error:
            yield f"data {data.path}: submit will refuse it: {error}"
        else:
            yield f"data {data.path}: {describe(found.account())}"


def extractor_notes(runs: Iterable[PlannedRun]) -> Iterator[str]:
    """Name the extractor of each evaluation that compares features, where it is not the one of published numbers.

    Those whose weights are missing are named too, because `submit` will refuse them.
    """
    evaluations: dict[tuple[str, str], dict[str, None]] = {}
    for extractor, planned, name in _extractors(runs):
        network = extractor_name(extractor, planned.run.spec.data.name)
        evaluations.setdefault((extractor, network), {})[name] = None
    why = "" if weights_file("inception") else f", and {WEIGHTS['inception'].variable} is not set"
    for (extractor, network), names in evaluations.items():
        features = f"features of {', '.join(names)}: {network}"
        if extractor in _WHAT_IT_IS:
            yield f"{features}, {_WHAT_IT_IS[extractor]}; only inception gives FID as published{why}"
        elif extractor in WEIGHTS and extractor != "inception" and weights_file(extractor) is None:
            yield f"{features}; submit will refuse it: {WEIGHTS[extractor].variable} is not set"


_WHAT_IT_IS = {
    "classifier": "a classifier that is trained on the data's own labels",
    "random_features": "fixed random convolutions, which see texture and contrast but nothing of what a picture shows",
}


def _extractors(runs: Iterable[PlannedRun]) -> Iterator[tuple[str, PlannedRun, str]]:
    """Iterate over the resolved extractors of evaluations: name, run, evaluation's name."""
    for planned in runs:
        for evaluation in planned.run.evaluations:
            for part in WITH_FEATURES:
                if settings := getattr(evaluation, part):
                    yield settings.extractor, planned, evaluation.name


def extractors_with_weights(runs: Iterable[PlannedRun]) -> set[str]:
    """Return the extractors of a plan whose weights come from a file."""
    return {extractor for extractor, _, _ in _extractors(runs)} & set(WEIGHTS)


def require_inputs(runs: Sequence[PlannedRun]) -> Datasets:
    """Load each data set and each extractor's weights once, so that what is wrong is found before anything is queued.

    Raises:
        DataError: data or weights are missing, damaged or refused.
    """
    datasets: Datasets = {}
    keys = {(planned.run.spec.data, planned.run.data_root) for planned in runs}
    if keys:
        from harness.datasets import make_dataset

        datasets = {(data, root): make_dataset(data, root) for data, root in keys}
    if extractors := extractors_with_weights(runs):
        from harness.metrics.features import READERS

        for extractor in sorted(extractors):
            READERS[extractor](require_weights_file(extractor))
    return datasets


def other_data_notes(plan: Plan, datasets: Datasets) -> list[str]:
    """Name the runs of a plan that are done and whose recorded data are not those that its next runs will have."""
    odd = [
        run_key
        for source, by_digest in _recorded_digests(plan).items()
        for digest, run_keys in by_digest.items()
        if source in datasets and digest != datasets[source].digest
        for run_key in run_keys
    ]
    if not odd:
        return []
    return [
        f"{len(odd)} of the study's runs that are done had other data ({_first(odd)}): figures and tables name them as "
        "not comparable with the runs that begin now"
    ]


def recorded_data_notes(plan: Plan) -> Iterator[str]:
    """Name the data that the done runs of a plan recorded: one digest, or several with the runs of each."""
    for (data, _), by_digest in _recorded_digests(plan).items():
        if len(by_digest) > 1:
            runs = "; ".join(f"{digest[:12]}: {_first(run_keys)}" for digest, run_keys in by_digest.items())
            yield f"data {_name(data)}: the runs that are done had different data, so they are not comparable ({runs})"
        elif isinstance(data, ImageFolder):
            [(digest, run_keys)] = by_digest.items()
            yield f"data {_name(data)}: digest {digest[:12]} in {count(len(run_keys), 'run')} that {_is(run_keys)} done"


def _recorded_digests(plan: Plan) -> dict[tuple[DataModel, str | None], dict[str, list[str]]]:
    """Return the done runs of each data set by the digest that they recorded."""
    recorded: dict[tuple[DataModel, str | None], dict[str, list[str]]] = {}
    for planned in plan.runs:
        if planned.state not in ("done", "evaluate"):
            continue
        try:
            digest = (planned.directory.environments() or [{}])[-1].get("data_digest")
        except (HarnessError, ValueError, AttributeError):  # odd records are reported where they are needed
            continue
        if isinstance(digest, str):
            by_digest = recorded.setdefault((planned.run.spec.data, planned.run.data_root), {})
            by_digest.setdefault(digest, []).append(planned.run_key)
    return recorded


def _name(data: DataModel) -> str:
    return data.path if isinstance(data, ImageFolder) else data.name


def _is(runs: Sequence[str]) -> str:
    return "is" if len(runs) == 1 else "are"


def _first(run_keys: Sequence[str]) -> str:
    more = f" and {len(run_keys) - 5} more" if len(run_keys) > 5 else ""
    return f"{', '.join(run_keys[:5])}{more}"


def require_same_data(
    runs: Sequence[PlannedRun], datasets: Datasets, has_own_code: Callable[[PlannedRun], bool]
) -> list[str]:
    """Refuse runs that were trained on other data than there are now.

    Args:
        has_own_code: whether a run goes on with the code of its first start; that code may read the same files
            otherwise, so its run is named in a note instead.

    Returns:
        the notes.

    Raises:
        DataError: names each such run.
    """
    problems, notes = [], []
    for planned in runs:
        digest = datasets[planned.run.spec.data, planned.run.data_root].digest
        try:
            problem = changed_data(planned.directory, digest)
        except HarnessError:  # records that cannot be read are reported where they are needed
            continue
        if problem and has_own_code(planned):
            notes.append(
                f"run {planned.run_key} resumes with the code of its first start; by today's code its data differ from "
                "those that it was trained on"
            )
        elif problem:
            problems.append(problem)
    if problems:
        raise DataError("\n".join(problems))
    return notes
