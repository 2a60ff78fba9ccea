"""Plugins are stored with the runs that use them: `plugins/<sha256>/` in the run directory has exactly their files.

Commands that work on a run (job, sample, calibrate, verify) read its spec with these plugins. Listing, importing and
drawing only read records and execute nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import RecordError
from harness.records.files import sync_folder
from harness.records.manifest import Manifests
from harness.spec.evaluation import Evaluation
from harness.spec.parts import Plugin, active
from harness.spec.plugins import load_package_plugin, load_plugin, loaded_plugin
from harness.spec.run import RunSpec

if TYPE_CHECKING:
    from harness.records.directory import RunDirectory

FOLDER = "plugins"


def freeze(folder: Path, digests: Mapping[str, str]) -> None:
    """Write the files of plugins that this process has loaded below `folder`, atomically.

    Raises:
        RecordError: a plugin is neither stored nor loaded.
    """
    for name, digest in digests.items():
        place = folder / FOLDER / digest
        if place.is_dir() or not name.endswith(".py"):
            continue
        plugin = loaded_plugin(digest)
        if plugin is None:
            raise RecordError(f"plugin {name} with sha256 {digest[:16]} is not in {place.parent}")
        temporary = place.with_name(f".{digest}.{os.getpid()}")
        temporary.mkdir(parents=True, exist_ok=True)
        for file, content in plugin.files.items():
            (temporary / file).write_bytes(content)
        sync_folder(temporary)
        try:
            temporary.rename(place)
        except OSError:  # another process was faster
            shutil.rmtree(temporary)
            if not place.is_dir():
                raise


def frozen_plugins(folder: Path, digests: Mapping[str, str] | None) -> list[Plugin]:
    """Load plugins as they were stored below `folder`; those of packages as they are installed.

    Raises:
        RecordError: a plugin's files are missing; archives contain none.
        SpecError: the files do not match the digest, or fail.
    """
    plugins = []
    for name, digest in (digests or {}).items():
        if not name.endswith(".py"):
            plugins.append(load_package_plugin(name, digest))
            continue
        path = folder / FOLDER / digest / Path(name).name
        if not path.is_file():
            raise RecordError(f"plugin {name} is not in {path.parent}: put its files there (archives contain no code)")
        plugins.append(load_plugin(path, digest))
    return plugins


def plugins_of_run(directory: RunDirectory) -> list[Plugin]:
    """Load the plugins of a run and of the evaluations that are asked for; a newer study's version of a file wins."""
    digests = dict(directory.spec().get("plugins", {}))
    for study in Manifests(directory.path.parent).memberships_by_joining(directory).values():
        for evaluation in study.get("evaluations", ()):
            digests |= evaluation.get("plugins", {})
    return frozen_plugins(directory.path, digests)


def read_spec(folder: Path, stored: Mapping[str, Any]) -> RunSpec:
    """Return a stored spec, validated with the plugins that are stored below `folder`."""
    with active(frozen_plugins(folder, stored.get("plugins"))):
        return RunSpec.model_validate(stored)


def read_evaluation(folder: Path, stored: Mapping[str, Any]) -> Evaluation:
    """Return a stored protocol, validated with the plugins that are stored below `folder`."""
    with active(frozen_plugins(folder, stored.get("plugins"))):
        return Evaluation.model_validate(stored)
