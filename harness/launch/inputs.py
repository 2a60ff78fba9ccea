"""What a plan's runs read from outside, data sets and weights: accounted for, and checked before anything is queued."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from harness.data.base import root_folder
from harness.data.folder import TooManyFiles, contents, describe
from harness.errors import DataError, HarnessError
from harness.launch.planning import Plan, PlannedRun
from harness.metrics.weights import INCEPTION_VARIABLE, inception_weights
from harness.records.data_digest import changed_data
from harness.spec.evaluation import extractor_name
from harness.spec.run import DataModel, ImageFolder

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
            yield f"data {data.path}: more than {MOST_ENTRIES} files; `harness doctor {plan.study.path}` counts them"
        except DataError as error:
            yield f"data {data.path}: submit will refuse it: {error}"
        else:
            yield f"data {data.path}: {describe(found.account())}"


def extractor_notes(runs: Iterable[PlannedRun]) -> Iterator[str]:
    """Name the extractor of each evaluation that compares features, where it is not the one of published FIDs."""
    evaluations: dict[str, dict[str, None]] = {}
    for extractor, planned, name in _extractors(runs):
        if extractor == "classifier":
            evaluations.setdefault(extractor_name(extractor, planned.run.spec.data.name), {})[name] = None
    why = "" if inception_weights() else f", and {INCEPTION_VARIABLE} is not set"
    for network, names in evaluations.items():
        yield (
            f"features of {', '.join(names)}: {network}, a classifier that is trained on the data's own labels; "
            f"only inception gives FID as published{why}"
        )


def _extractors(runs: Iterable[PlannedRun]) -> Iterator[tuple[str, PlannedRun, str]]:
    """Iterate over the resolved extractors of evaluations: name, run, evaluation's name."""
    for planned in runs:
        for evaluation in planned.run.evaluations:
            for part in ("fidelity", "sweep", "skip"):
                if settings := getattr(evaluation, part):
                    yield settings.extractor, planned, evaluation.name


def uses_inception(runs: Iterable[PlannedRun]) -> bool:
    return any(extractor == "inception" for extractor, _, _ in _extractors(runs))


def require_inputs(runs: Sequence[PlannedRun]) -> Datasets:
    """Load each data set and the weights of Inception once, so that what is wrong is found before anything is queued.

    Raises:
        DataError: data or weights are missing, damaged or refused.
    """
    datasets: Datasets = {}
    keys = {(planned.run.spec.data, planned.run.data_root) for planned in runs}
    if keys:
        from harness.registry import make_dataset

        datasets = {(data, root): make_dataset(data, root) for data, root in keys}
    if uses_inception(runs):
        from harness.metrics.features import read_inception_weights

        if (path := inception_weights()) is None:
            raise DataError(f"evaluations use Inception, but {INCEPTION_VARIABLE} is not set")
        read_inception_weights(path)
    return datasets


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
