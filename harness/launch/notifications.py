"""Run a user's command when the runs of a submission have ended, and when the first of them fails."""

from __future__ import annotations

import logging
import os
import subprocess

from harness.launch.claims import is_cancelled, read_submission
from harness.records.directory import RunDirectory
from harness.records.layout import SubmissionLayout
from harness.text import harness_command

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 60.0
ENDED = ("done", "failed", "pruned")


def notify_once(submission: SubmissionLayout, command: str) -> None:
    """Run a command of shell for each event that is new: `failed`, and `ended` when no run is left to do.

    Its environment has HARNESS_EVENT, HARNESS_STUDY and HARNESS_MESSAGE. What goes wrong is logged and ends no job.
    """
    runs_folder = submission.runs_folder
    keys = read_submission(submission.folder).get("runs", ())
    states = {key: RunDirectory(runs_folder / key).status().state for key in keys}
    failed = [key for key, state in states.items() if state == "failed"]
    num_ended = sum(
        state in ENDED or is_cancelled(submission.folder, runs_folder / key) for key, state in states.items()
    )
    if failed:
        why = harness_command("why", failed[0], runs_folder=runs_folder)
        _notify(submission, command, "failed", f"run {failed[0]} failed: `{why}`")
    if num_ended == len(states):
        all_runs = "the only run has" if len(states) == 1 else f"all {len(states)} runs have"
        _notify(submission, command, "ended", f"{all_runs} ended, {len(failed)} failed")


def _notify(submission: SubmissionLayout, command: str, event: str, message: str) -> None:
    try:
        (submission.folder / f"notified-{event}").touch(exist_ok=False)  # the jobs of an array end at once
    except FileExistsError:
        return
    study = submission.folder.parent.name
    said = {"HARNESS_EVENT": event, "HARNESS_STUDY": study, "HARNESS_MESSAGE": f"{study}: {message}"}
    try:
        subprocess.run(["bash", "-c", command], env=os.environ | said, timeout=TIMEOUT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning(f"notify: {command}: {error}")
