"""The data that a run was trained on, by the digest in its records: a run never goes on with others unnoticed."""

from __future__ import annotations

from harness.errors import DataError
from harness.records.directory import RunDirectory


def recorded_data_digest(directory: RunDirectory) -> str | None:
    """Return the digest of the data that a run's newest weights were trained on; None if it has no weights yet.

    Imported weights were trained elsewhere; for them it is the digest of the data that they were last measured on.
    """
    checkpoints = [event for event in directory.events("checkpoint") if not event.superseded]
    if not checkpoints:
        return None
    environments = directory.environments()
    of_weights = [entry for entry in environments if entry["attempt"] == checkpoints[-1].attempt]
    digests = [entry.get("data_digest") for entry in (*environments, *of_weights)]
    return next((digest for digest in reversed(digests) if digest), None)


def changed_data(directory: RunDirectory, digest: str) -> str:
    """Say that a run was trained on other data than those of `digest`, and what can be done; empty if it was not."""
    recorded = recorded_data_digest(directory)
    if recorded in (None, digest):
        return ""
    then = (directory.environments() or [{}])[-1].get("data_account") or {}
    name = directory.spec()["data"]["name"]
    counts = f" ({then['train']} images to train on and {then['test']} to test then)" if "train" in then else ""
    split = (
        " If no file changed: image folders are read and split otherwise since their account is recorded."
        if name == "image_folder" and not then
        else ""
    )
    return (
        f"run {directory.key} was trained on other data{counts}: the digest of {name} was {recorded[:12]} and is "
        f"{digest[:12]} now, so test images may be among those that it was trained on.{split} "
        f"Restore the files as they were; or move {directory.path} away and submit again, which trains it anew"
    )


def require_same_data(directory: RunDirectory, digest: str) -> None:
    """Raise DataError if a run was trained on other data than those of `digest`."""
    if problem := changed_data(directory, digest):
        raise DataError(problem)
