"""The experiment of a study in MLflow: its description, its kind and its views.

All of it is computed from the records. What is written is compared with what is there, so that a repeated sync writes
nothing, and a store that was deleted gets the same again. The tag `harness.stamp` says of which records a description
was made, so that nothing is computed for runs that still train.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.records.directory import RunDirectory
from harness.records.layout import StudyLayout
from harness.records.lock import FolderLock
from harness.records.manifest import Manifests
from harness.text import markdown
from harness.tracking.store import experiment_of, import_mlflow, initialise_store, sqlite_path, store_errors, store_uri
from harness.tracking.views import NAMES, PAGE_RUNS, VIEW_TAG, Contents, View, page_address, views_of

if TYPE_CHECKING:
    from harness.analysis.runs import RunRecord

logger = logging.getLogger(__name__)

DESCRIPTION_TAG = "mlflow.note.content"
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
"""Of a training, not of an LLM agent. MLflow 3.17 goes by its pages' address instead (`page_address`)."""
STAMP_TAG = "harness.stamp"
VERSION = 2  # of what is written; another one writes it again
MAX_DESCRIPTION_CHARACTERS = 20_000  # MLflow refuses a longer tag of an experiment
WRITTEN_BY = "*`harness sync` writes this description anew whenever a run ends.*"
"""Its last line. A description without it is somebody's own, and is left alone."""

TRAIN_LOSS = "train/loss"
MAX_RUNS_IN_TRAINING = 50
LOCK_WAIT_SECONDS = 60.0
_TO_DO = ("new", "queued", "running")

DEFAULT_SERVER = "http://127.0.0.1:5000"
"""Where `make ui` serves a local store."""


@dataclass(frozen=True)
class ViewAddress:
    """Where a view is opened: its name in MLflow's menu, and its address."""

    name: str
    address: str


@dataclass(frozen=True)
class ExperimentPage:
    """What an experiment's page shows of a study."""

    description: str
    views: Sequence[View]

    def tags(self) -> dict[str, str]:
        """Return the experiment's tags."""
        views = {view.tag: view.tag_value for view in self.views}
        return {KIND_TAG: KIND, DESCRIPTION_TAG: self.description, **views}

    @classmethod
    def first(cls) -> ExperimentPage:
        """Return the page of a study of which nothing has been read yet."""
        return cls(WRITTEN_BY, views_of(Contents(learning=[TRAIN_LOSS])))


def sync_experiments(
    run_directories: Iterable[RunDirectory], *, tracking_uri: str | None = None, training: bool = False
) -> int:
    """Bring the experiments of some runs' studies up to date; return how many were changed.

    Args:
        training: leave out large studies that have runs to do, but for their first views: to read all of their records
            whenever one run of them ends would be too much beside a training.

    Raises:
        TrackingError: the store cannot be reached or refuses.
        RecordError: another process works on the same study for longer than a minute.
    """
    uri, changed = initialise_store(tracking_uri), 0
    with store_errors(uri):
        client = import_mlflow().MlflowClient(tracking_uri=uri)
        for runs_folder, study in _studies_of(run_directories):
            lock = FolderLock(StudyLayout(runs_folder, study).tracking_folder / "page", f"the MLflow page of {study}")
            lock.acquire(LOCK_WAIT_SECONDS)  # else an older page could be written after a newer one
            try:
                changed += _sync_experiment(client, runs_folder, study, training)
            finally:
                lock.release()
    return changed


def _sync_experiment(client: Any, runs_folder: Path, study: str, training: bool) -> bool:
    """Write what has changed of a study's description and views; return whether anything has."""
    experiment = experiment_of(client, study)
    if experiment is None or experiment.lifecycle_stage != "active":
        return False
    stored = dict(experiment.tags)
    states = [directory.status().state for directory in Manifests(runs_folder).runs(study)]
    if training and len(states) > MAX_RUNS_IN_TRAINING and any(state in _TO_DO for state in states):
        tags = {} if any(name.startswith(VIEW_TAG) for name in stored) else ExperimentPage.first().tags()
        stamp = stored.get(STAMP_TAG, "")
    else:
        stamp = _stamp(runs_folder, study)
        tags = {} if stored.get(STAMP_TAG) == stamp else _tags(runs_folder, study)
    if not tags:
        return False
    if WRITTEN_BY not in stored.get(DESCRIPTION_TAG, WRITTEN_BY):
        del tags[DESCRIPTION_TAG]
    for name in {VIEW_TAG + view_id for view_id in NAMES} & stored.keys() - tags.keys():
        client.delete_experiment_tag(experiment.experiment_id, name)
    for name, text in {**tags, STAMP_TAG: stamp}.items():  # the stamp last: a pass that was killed is repeated
        if stored.get(name, "") != text:
            client.set_experiment_tag(experiment.experiment_id, name, text)
    return True


def _tags(runs_folder: Path, study: str) -> dict[str, str]:
    """Return the tags of a study's page; none if it cannot be computed, which is logged."""
    try:
        return page_of(runs_folder, study).tags()
    except Exception as error:  # whatever an odd record causes in a table that expects a right one
        logger.warning(f"study {study}: its page in MLflow is not renewed: {type(error).__name__}: {error}")
        return {}


def view_addresses(
    run_directories: Iterable[RunDirectory], *, tracking_uri: str | None = None, server: str | None = None
) -> dict[str, list[ViewAddress]]:
    """Return where the views of some runs' studies are opened, by study; the first one first.

    Args:
        server: its address; by default the store's, or that of `make ui` where the store is a file.

    Raises:
        TrackingError: the store cannot be reached.
    """
    uri = store_uri(tracking_uri)
    server = re.sub(r"//[^/@]*@", "//", server or (uri if uri.startswith("http") else DEFAULT_SERVER))  # no password
    path = sqlite_path(uri)
    if path and not path.exists():
        return {}
    addresses = {}
    with store_errors(uri):
        client = import_mlflow().MlflowClient(tracking_uri=uri)
        for _, study in _studies_of(run_directories):
            experiment = experiment_of(client, study)
            if experiment is not None and experiment.lifecycle_stage == "active":
                addresses[study] = _addresses(experiment, server)
    return addresses


def _addresses(experiment: Any, server: str) -> list[ViewAddress]:
    """Return the addresses of the views that an experiment has, in the order of the menu."""
    names = {view_id: name for view_id, name in NAMES.items() if VIEW_TAG + view_id in experiment.tags}
    return [
        ViewAddress(name, page_address(server, experiment.experiment_id, view_id))
        for view_id, name in (names or {"": NAMES["runs"]}).items()
    ]


def _studies_of(run_directories: Iterable[RunDirectory]) -> list[tuple[Path, str]]:
    """Return each study of some runs, with its folder of runs."""
    manifests: dict[Path, Manifests] = {}
    studies: dict[tuple[Path, str], None] = {}
    for directory in run_directories:
        runs_folder = directory.path.parent
        known = manifests.setdefault(runs_folder, Manifests(runs_folder))
        studies |= dict.fromkeys((runs_folder, study) for study in known.memberships(directory))
    return list(studies)


def _stamp(runs_folder: Path, study: str) -> str:
    """Return what changes whenever the page is to change: ends of runs, evaluations, and how the study is compared."""
    from harness.analysis.presentation import presentation_of

    runs = []
    for directory in Manifests(runs_folder).runs(study):
        paths = [*directory.evaluations_folder.glob("*.json"), *directory.samples_folder.glob("*.png")]
        files = sorted((path.name, path.stat().st_size) for path in paths)
        state = directory.status().state
        runs.append((directory.key, "" if state in _TO_DO else state, files))
    document = [VERSION, presentation_of(runs_folder, study).model_dump(mode="json"), runs]
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()[:16]


# -- what the page shows


def page_of(runs_folder: Path, study: str) -> ExperimentPage:
    """Return the page of a study, as its records are now."""
    from harness.analysis.presentation import presentation_of
    from harness.analysis.runs import count_states, load_records

    presentation, runs = presentation_of(runs_folder, study), load_records(runs_folder, study)
    parts = [
        f"**{markdown(presentation.question)}**" if presentation.question else "",
        *_comparison(runs, presentation),
        f"MLflow's page begins with {PAGE_RUNS} runs; Load more is at the end of its list."
        if len(runs) > PAGE_RUNS
        else "",
        f"{count_states(runs)}. Figures, intervals and p-values: `figures/index.html` of `harness figures {study}`.",
    ]
    text = "\n\n".join(filter(None, parts))
    room = MAX_DESCRIPTION_CHARACTERS - len(WRITTEN_BY) - 100
    if len(text) > room:
        text = text[: text.rfind("\n", 0, room)] + "\n\n(The rest is in figures/index.html.)"
    return ExperimentPage(f"{text}\n\n{WRITTEN_BY}", views_of(contents_of(runs)))


def _comparison(runs: Sequence[RunRecord], presentation: Any) -> list[str]:
    """Return the answers and the results table in Markdown; nothing where nothing was measured."""
    from harness.analysis.answers import results
    from harness.analysis.answers.contrasts import contrasts_of, deciding
    from harness.analysis.tables import tab_contrasts, tab_results

    frame = results.data(runs)
    if frame.empty:
        return []
    compared = contrasts_of(runs, presentation.compare)
    answers = tab_contrasts.answers(deciding(compared, presentation.compare))
    return ["\n".join(f"- {markdown(answer)}" for answer in answers), tab_results.markdown(frame).rstrip()]


def contents_of(runs: Sequence[RunRecord]) -> Contents:
    """Return what the views of a study are chosen by: the names that its runs have recorded."""
    from harness.spec.metrics import TRAIN_COMPUTE

    evaluated = list(dict.fromkeys(f"{m.prefix}/" for run in runs for m in run.measurements if m.trained))
    recorded = list(dict.fromkeys(key for run in runs for key in run.curves))
    numbers = set().union(*(run.over_training for run in runs))
    results = [key for key in recorded if key in numbers and key.startswith(tuple(evaluated)) and _is_result(key)]
    space, target_names = _search(runs)
    return Contents(
        results=sorted(results, key=lambda key: evaluated.index(f"{key.rpartition('/')[0]}/")),
        terms_over_t=[key for key in recorded if key.endswith("/L_t_bpd")],
        sweeps=[key for key in recorded if key.startswith("sweep")],
        learning=[key for key in recorded if key in set(_terms(runs))] or [TRAIN_LOSS],
        speed=[key for key in recorded if key == "perf/images_per_second"],
        images=_images(runs),
        replicate=min((run.replicate for run in runs), default=0),
        compute=TRAIN_COMPUTE if _is_about_scale(runs) else "",
        space=space,
        targets=[key for key in results if any(key == name or key.startswith(f"{name}_") for name in target_names)],
        target_names=target_names,
        num_runs=len(runs),
        num_arms=len({run.arm for run in runs}),
    )


def _is_result(key: str) -> bool:
    from harness.spec.metrics import metric_kind

    return metric_kind(key).direction is not None and not key.endswith(("/L_0_bpd", "/L_t_bpd"))


def _terms(runs: Sequence[RunRecord]) -> Iterable[str]:
    return (term for run in runs for term in run.terms())


def _images(runs: Sequence[RunRecord]) -> dict[str, int]:
    """Return the sample grids by name, with the last step of the trainings that drew them."""
    images: dict[str, int] = {}
    for run in runs:
        for path in run.sample_pictures().values():
            images[path.stem] = max(images.get(path.stem, 0), run.spec["train"]["steps"])
    return images


def _is_about_scale(runs: Sequence[RunRecord]) -> bool:
    from harness.analysis.statistics.scaling_series import series_of

    return bool(series_of(runs))


def _search(runs: Sequence[RunRecord]) -> tuple[list[str], list[str]]:
    """Return the params that a search varies, and its names of what it optimises; empty for other studies."""
    from harness.analysis.search_records import is_search, trials

    frame = trials(runs) if is_search(runs) else None
    if frame is None or frame.empty:
        return [], []
    from harness.tracking.described import params_of

    params = dict.fromkeys(name for run in runs for name in params_of(run.spec))
    paths = list(dict.fromkeys(frame["parameter"]))
    space = [name for path in paths for name in params if name in (path, f"{path}.name")]
    return space, list(dict.fromkeys(frame["metric"]))
