"""The arms of a study, and the study itself, as runs of MLflow beside the runs that were trained.

kind: run      what was trained (harness/tracking/sync.py)
kind: arm      the parent of an arm's replicates, with their mean (harness/tracking/arms.py)
kind: study    the study: its file, its tables and figures, and what they answer
kind: search   the parent of a search's trials, in place of arms and study (harness/tracking/searches.py)
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.records.directory import RunDirectory
from harness.records.layout import SEARCH
from harness.records.manifest import Manifest, Manifests
from harness.tracking.arms import (
    ARM,
    STUDY,
    Arm,
    Member,
    arm_run_id,
    order_text,
    set_run_status,
    started_ms,
    state_of,
    sync_arm,
)
from harness.tracking.experiment import sync_experiments
from harness.tracking.images import is_own_file
from harness.tracking.memberships import memberships_of
from harness.tracking.store import (
    MAX_TAG_CHARACTERS,
    experiment_of,
    import_mlflow,
    initialise_store,
    store_errors,
    tag_text,
)
from harness.tracking.study_cursor import StudyCursor
from harness.tracking.sync import file_stamp

logger = logging.getLogger(__name__)

FIGURES = "figures"
MAX_STUDY_FILE_BYTES = 1 << 20


def sync_arms(run_directories: Sequence[RunDirectory], *, tracking_uri: str | None = None) -> int:
    """Update the arms of some runs, looking at no other run of their studies; return how many were changed.

    Raises:
        TrackingError: the store cannot be reached or refuses; a repeat resumes from there.
        RecordError: another process works on the same study for longer than a minute.
    """
    uri, changed = initialise_store(tracking_uri), 0
    for runs_folder, directories in _by_folder(run_directories).items():
        manifests = Manifests(runs_folder)
        names: dict[str, set[str]] = {}
        for directory in directories:
            for study, membership in manifests.memberships(directory).items():
                names.setdefault(study, set()).add(str(membership.get("arm")))
        for study, of_study in names.items():
            if (manifest := manifests.of(study)) and not is_search(runs_folder, study):
                arms = {name: arm for name, arm in _arms(runs_folder, manifest).items() if name in of_study}
                changed += _StudySync(uri, runs_folder, study, manifest).update(arms)
    return changed


def sync_studies(
    run_directories: Sequence[RunDirectory], *, tracking_uri: str | None = None, ended_only: bool = False
) -> int:
    """Update all arms of the runs' studies, and the studies themselves; return how many of MLflow's runs were changed.

    Args:
        ended_only: leave out studies that have runs to do.

    Raises:
        TrackingError: the store cannot be reached or refuses; a repeat resumes from there.
        RecordError: another process works on the same study for longer than a minute.
    """
    uri, changed = initialise_store(tracking_uri), 0
    for runs_folder, directories in _by_folder(run_directories).items():
        manifests = Manifests(runs_folder)
        known = {directory.key: directory for directory in directories}  # their journals may have been read already
        studies = {
            membership.study for directory in directories for membership in memberships_of(directory, uri, manifests)
        }
        for study in sorted(studies):
            if is_search(runs_folder, study):
                continue
            arms = arms_of(manifests, study, known)
            members = [member for arm in arms.values() for member in arm.asked_for]
            if not (ended_only and any(member.status.state in ("new", "queued", "running") for member in members)):
                changed += _StudySync(uri, runs_folder, study, manifests.of(study)).update(arms, whole=True)
    sync_experiments(run_directories, tracking_uri=uri, training=ended_only)
    return changed


def is_search(runs_folder: Path, study: str) -> bool:
    return (runs_folder / SEARCH / study).is_dir()


def _by_folder(run_directories: Iterable[RunDirectory]) -> dict[Path, list[RunDirectory]]:
    folders: dict[Path, list[RunDirectory]] = {}
    for directory in run_directories:
        folders.setdefault(directory.path.parent, []).append(directory)
    return folders


def _arms(runs_folder: Path, manifest: Manifest) -> dict[str, Arm]:
    """Return the arms that a study asks for, without reading any of its runs."""
    return {
        name: Arm(
            name,
            [Member(RunDirectory(runs_folder / key), number, True) for key, number in runs.items()],
            order_text(manifest, name),
        )
        for name, runs in manifest.arms.items()
    }


def arms_of(manifests: Manifests, study: str, known: dict[str, RunDirectory]) -> dict[str, Arm]:
    """Return the arms that a study asks for or has asked for, in its order, with the runs that exist.

    Args:
        known: run directories by key, that are used where they are among them.
    """
    arms: dict[str, Arm] = {}
    for directory in (*manifests.runs(study), *manifests.earlier_runs(study)):
        directory = known.get(directory.key, directory)
        asked, earlier = manifests.split(directory)
        place = asked.get(study) or earlier.get(study) or {}
        name = str(place.get("arm", "run"))
        member = Member(directory, int(place.get("replicate", 0)), study in asked)
        if name not in arms:
            manifest = manifests.of(study)
            arms[name] = Arm(name, order=order_text(manifest, name) if manifest else None)
        arms[name].members.append(member)
    return arms


def asked_ms(manifest: Manifest | None) -> int:
    """Return since when a study asks for its runs; 0 if it always has."""
    return int(1000 * manifest.written_seconds) if manifest and manifest.generation > 1 else 0


def state_tags(study: str, arms: Iterable[Arm]) -> dict[str, str]:
    """Return the tags of a study's own run that say how far it is."""
    states = Counter(member.status.state for arm in arms for member in arm.asked_for)
    return {"kind": STUDY, "study": study, "state": state_of(states), "runs": str(sum(states.values()))}


class _StudySync:
    """One pass over a study's own runs in one store."""

    def __init__(self, uri: str, runs_folder: Path, study: str, manifest: Manifest | None):
        self.uri, self.runs_folder, self.study, self.manifest = uri, runs_folder, study, manifest
        self.cursor = StudyCursor(runs_folder, study, uri)
        self.asked_ms = asked_ms(manifest)

    def update(self, arms: dict[str, Arm], *, whole: bool = False) -> int:
        """Send what has changed of these arms, and with `whole` of the study; return the number of changed runs."""
        arms = {name: arm for name, arm in arms.items() if any(member.began for member in arm.members)}
        lock = self.cursor.begin_pass(60.0)
        try:
            with store_errors(self.uri):
                client = import_mlflow().MlflowClient(tracking_uri=self.uri)
                present = self._present(client) if whole else None
                changed = sum(self._update_arm(client, arm, present) for arm in arms.values())
                if whole:
                    changed += sum(self._retire(client, name) for name in self.cursor.known(ARM).keys() - arms.keys())
                    if arms:
                        changed += self._update_study(client, list(arms.values()))
                return changed
        finally:
            lock.release()

    def _present(self, client: Any) -> set[str]:
        """Return the arms' runs that the store has, in one question."""
        experiment = experiment_of(client, self.study)
        return set(self.cursor.search(client, experiment.experiment_id, ARM).values()) if experiment else set()

    def _update_arm(self, client: Any, arm: Arm, present: set[str] | None) -> bool:
        stamp, sent = [self.asked_ms, *arm.stamp()], self.cursor.sent()
        run_id = self.cursor.known(ARM).get(arm.name, "")
        if sent.get(run_id, {}).get("stamp") == stamp and (present is None or run_id in present):
            return False
        run_id = arm_run_id(client, self.cursor, arm.name, [member.directory for member in arm.members])
        sync_arm(client, run_id, arm, self.study, self.asked_ms)
        self.cursor.save_sent({**sent, run_id: {"stamp": stamp}})
        return True

    def _retire(self, client: Any, name: str) -> bool:
        """Mark an arm of which no run is left in the study, such as one that was renamed."""
        run_id, sent = self.cursor.known(ARM)[name], self.cursor.sent()
        if sent.get(run_id) == {"stamp": []}:
            return False
        run_id = arm_run_id(client, self.cursor, name, [])
        sync_arm(client, run_id, Arm(name), self.study, self.asked_ms)
        self.cursor.save_sent({**sent, run_id: {"stamp": []}})
        return True

    # -- the study

    def _update_study(self, client: Any, arms: list[Arm]) -> bool:
        """Update the study's own run: its state, and its files where they have other contents than those sent."""
        from mlflow.entities import RunTag

        members = [member for arm in arms for member in arm.members]
        run_id = self.cursor.run_id(
            client,
            STUDY,
            self.study,
            lambda: {"kind": STUDY, "study": self.study},
            lambda: started_ms(member.directory for member in members),
        )
        drawn = self.runs_folder.absolute().parent / FIGURES / self.study
        figures = [path for path in sorted(drawn.glob("[!.]*")) if is_own_file(path)]
        stamp = [arm.stamp() for arm in arms] + [[path.name, *file_stamp(path)] for path in figures]
        stamp.append([self.manifest.written_seconds if self.manifest else 0])
        sent = self.cursor.sent()
        own = sent.get(run_id, {})
        if own.get("stamp") == stamp:
            return False
        states = Counter(member.status.state for member in members if member.asked_for)
        tags = state_tags(self.study, arms)
        files = own.get("files", {})
        with tempfile.TemporaryDirectory() as folder:
            tags |= self._write_files(Path(folder))
            texts = {name: tag_text(text)[:MAX_TAG_CHARACTERS] for name, text in tags.items() if text}
            client.log_batch(run_id, tags=[RunTag(name, text) for name, text in texts.items()])
            paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
            places = {str(path.relative_to(folder)): path for path in paths}
            for name, path in {**places, **{f"{FIGURES}/{path.name}": path for path in figures}}.items():
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                if files.get(name) != digest:
                    client.log_artifact(run_id, str(path), str(Path(name).parent) if "/" in name else None)
                    files = {**files, name: digest}
                    self.cursor.save_sent({**sent, run_id: {"files": files}})
        ends = [_last_time_ms(member.directory) for member in members if member.asked_for]
        set_run_status(client, run_id, self.study, states, [end for end in ends if end is not None])
        self.cursor.save_sent({**sent, run_id: {"files": files, "stamp": stamp}})
        return True

    def _write_files(self, folder: Path) -> dict[str, str]:
        """Write the study's file, its tables and its comparison; return what is a tag."""
        path = Path(self.manifest.file) if self.manifest and self.manifest.file else None
        if path and is_own_file(path) and path.stat().st_size <= MAX_STUDY_FILE_BYTES:
            (folder / f"study{path.suffix}").write_bytes(path.read_bytes())
        try:
            return _write_tables(self.runs_folder, self.study, folder / "tables")
        except Exception as error:  # whatever an odd record causes in a table that expects a right one
            logger.warning(f"study {self.study}: its tables are not in MLflow: {type(error).__name__}: {error}")
            return {}


def _last_time_ms(directory: RunDirectory) -> int | None:
    """Return when something happened last to a run; None if nothing did, or if its journals cannot be read."""
    try:
        return max((event.time_ms for event in directory.events()), default=None)
    except RecordError:
        return None


def _write_tables(runs_folder: Path, study: str, folder: Path) -> dict[str, str]:
    from harness.analysis.answers import results
    from harness.analysis.answers.contrasts import contrasts_of, deciding
    from harness.analysis.csv_files import write_csv
    from harness.analysis.presentation import presentation_of
    from harness.analysis.runs import load_records
    from harness.analysis.tables import tab_contrasts, tab_results

    presentation, runs = presentation_of(runs_folder, study), load_records(runs_folder, study)
    frame = results.data(runs)
    tags = {"question": presentation.question or ""}
    if not len(frame):
        return tags
    folder.mkdir()
    write_csv(frame, folder / "results.csv")
    (folder / "results.md").write_text(tab_results.markdown(frame), encoding="utf-8")
    (folder / "results.tex").write_text(tab_results.latex(frame), encoding="utf-8")
    if compared := contrasts_of(runs, presentation.compare):
        write_csv(tab_contrasts.data(compared), folder / "contrasts.csv")
        (folder / "contrasts.md").write_text(tab_contrasts.markdown(compared), encoding="utf-8")
        (folder / "contrasts.tex").write_text(tab_contrasts.latex(compared), encoding="utf-8")
        tags["answer"] = "\n".join(tab_contrasts.answers(deciding(compared, presentation.compare)))
    return tags
