"""A search in MLflow: its trials nested beneath one parent run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.records.directory import RunDirectory
from harness.records.files import replace_file
from harness.records.layout import SEARCH
from harness.records.lock import FolderLock
from harness.tracking.store import (
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_CHARACTERS,
    MAX_PARAMS_PER_BATCH,
    MLFLOW_STATUS,
    active_run,
    experiment_id_of,
    import_mlflow,
    initialise_store,
    read_cursor,
    store_digest,
    store_errors,
)


def sync_search(
    folder: Path,
    *,
    params: dict[str, str],
    tags: dict[str, str],
    best_so_far: Sequence[tuple[int, dict[str, float]]],
    state: str,
    tracking_uri: str | None = None,
) -> str:
    """Update the parent run of a search, under which MLflow shows its trials; return its run_id.

    Args:
        folder: the search's own, runs/.search/<name>; the pictures in its `figures` become artifacts.
        params: the space and the budget; sent once, since MLflow's params cannot change.
        tags: what changes: the progress, the best trial.
        bests: for each finished trial, in their order: Unix time in ms, and the best values so far by metric.
        state: running, interrupted or done.

    Raises:
        TrackingError: the store cannot be reached or refuses; a repeat resumes from there.
    """
    uri = initialise_store(tracking_uri)
    mlflow = import_mlflow()
    with store_errors(uri):
        from mlflow.entities import Metric, Param, RunTag

        client = mlflow.MlflowClient(tracking_uri=uri)
        run_id = _search_run_id(client, uri, folder)
        path = _search_cursor(folder, uri)
        cursor = read_cursor(path)
        if not cursor.get("params_sent"):
            sent = [Param(name, text[:MAX_PARAM_CHARACTERS]) for name, text in params.items()]
            for start in range(0, len(sent), MAX_PARAMS_PER_BATCH):
                client.log_batch(run_id, params=sent[start : start + MAX_PARAMS_PER_BATCH])
        rows = [
            Metric(key, value, time_ms, step)
            for step, (time_ms, values) in enumerate(best_so_far, 1)
            if step > cursor.get("bests_sent", 0)
            for key, value in values.items()
        ]
        for start in range(0, len(rows), MAX_METRICS_PER_BATCH):
            client.log_batch(run_id, metrics=rows[start : start + MAX_METRICS_PER_BATCH])
        texts = tags | {"kind": "search", "state": state}
        client.log_batch(run_id, tags=[RunTag(name, text[:5000]) for name, text in texts.items()])
        for picture in sorted((folder / "figures").glob("*.png")):
            client.log_artifact(run_id, str(picture), "figures")
        client.update_run(run_id, status=MLFLOW_STATUS[state])
        cursor = {"run_id": run_id, "params_sent": True, "bests_sent": len(best_so_far)}
        replace_file(path, json.dumps(cursor), durable=False)
    return run_id


def parent_run_id(client: Any, uri: str, run_directory: RunDirectory, study: str) -> str | None:
    """Return the run of the search if this study is one, else None."""
    folder = run_directory.path.parent / SEARCH / study
    return _search_run_id(client, uri, folder) if folder.is_dir() else None


def _search_run_id(client: Any, uri: str, folder: Path) -> str:
    """Return the search's run in this store; the first caller makes it, also where it was deleted."""
    path = _search_cursor(folder, uri)
    if not _is_in_store(client, path):
        lock = FolderLock(folder / "tracking", f"the MLflow record of search {folder.name}")
        lock.acquire(60.0)
        try:
            if not _is_in_store(client, path):
                experiment_id = experiment_id_of(client, uri, folder.name)
                runs = client.search_runs([experiment_id], f"tags.search = '{folder.name}'")
                tags = {"kind": "search", "search": folder.name, "study": folder.name}
                run = runs[0] if runs else client.create_run(experiment_id, None, tags, f"search {folder.name}")
                replace_file(path, json.dumps({"run_id": run.info.run_id}), durable=False)
        finally:
            lock.release()
    return read_cursor(path)["run_id"]


def _is_in_store(client: Any, path: Path) -> bool:
    cursor = read_cursor(path)
    return "run_id" in cursor and active_run(client, cursor["run_id"]) is not None


def _search_cursor(folder: Path, uri: str) -> Path:
    return folder / f"tracking-{store_digest(uri)}.json"
