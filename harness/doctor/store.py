"""Examine whether MLflow's store or server can be reached, and who would write it."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.doctor.findings import Finding, ok, problem, warning
from harness.doctor.machine import SHARED_FILE_SYSTEMS, file_system, nearest_folder
from harness.errors import HarnessError
from harness.slurm.profile import Profile
from harness.tracking.store import is_sqlite, sqlite_path, store_uri, without_password

SERVER_SECONDS = 5.0


def check_store(profile: Profile, uri: str, file_system: Callable[[Path], str] = file_system) -> Iterator[Finding]:
    """Check that MLflow's store suits its writers: jobs never write SQLite over a shared file system."""
    if uri.startswith(("http://", "https://")):
        error = server_error(uri)
        if error:
            yield problem(
                f"the tracking server {uri} does not answer from here ({error}): start it, or correct tracking_uri"
            )
        else:
            yield ok(f"the tracking server {uri} answers")
        return
    if not is_sqlite(uri):
        yield warning(
            f"store {without_password(uri)}: not a server; only compute nodes that reach its database can write it"
        )
        return
    if profile.compute_nodes_reach_server:
        yield problem(
            f"profile and store do not match: jobs would write {uri} from the compute nodes, which corrupts SQLite; "
            "set tracking_uri to a server, or set compute_nodes_reach_server: false and run "
            "`harness sync --watch` here"
        )
        return
    kind = file_system(sqlite_path(uri) or Path())
    if kind in SHARED_FILE_SYSTEMS:
        yield warning(
            f"store {uri} lies on a shared file system ({kind}), where SQLite's locks may fail: write it from this "
            "node alone (`harness sync --watch`), or move it to a local disk by MLFLOW_TRACKING_URI, or start a server"
        )
    else:
        yield ok(f"store {uri}: jobs do not write it, `harness sync --watch` on this node uploads their records")


def server_error(uri: str) -> str:
    """Query a tracking server's health; return what is wrong, empty if it is healthy."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SERVER_SECONDS) as response:
            return "" if response.status == 200 else f"status {response.status}"
    except (OSError, ValueError) as error:
        return without_password(str(getattr(error, "reason", None) or error))


def check_local_store() -> Iterator[Finding]:
    """Check that this machine can write the store that `harness sync` would use."""
    try:
        uri = store_uri()
    except HarnessError as error:
        yield problem(str(error))
        return
    if uri.startswith(("http://", "https://")):
        yield from check_store(Profile(), uri)
        return
    path = sqlite_path(uri)
    if path is None or os.access(path if path.exists() else nearest_folder(path.parent), os.W_OK):
        yield ok(f"MLflow's store: {without_password(uri)}")
    else:
        yield problem(
            f"MLflow's store {path} cannot be written; choose another by MLFLOW_TRACKING_URI=sqlite:///PATH.db"
        )
