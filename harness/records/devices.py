"""Which devices runs were computed on, and where replicates of one arm differ in it."""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import RecordError
from harness.records.directory import RunDirectory
from harness.records.manifest import Manifests


def devices_of(directory: RunDirectory) -> tuple[str, ...]:
    """Return the devices of a run's attempts, each once: a GPU's name, or cpu; none if they are not known."""
    try:
        environments = directory.environments()
    except RecordError:  # `status` says what is wrong with it
        return ()
    return tuple(dict.fromkeys(environment["device"] for environment in environments if environment.get("device")))


def mixed_devices(directories: Sequence[RunDirectory], study: str | None = None) -> list[str]:
    """Return a note for each arm whose replicates ran on different devices: their times are not comparable.

    Args:
        directories: of runs in one folder.
        study: whose arms are meant; None: the first that each run belongs to.
    """
    if not directories:
        return []
    manifests = Manifests(directories[0].path.parent)
    arms: dict[str, dict[str, list[int]]] = {}
    for directory in directories:
        memberships = manifests.memberships(directory)
        membership = memberships.get(study or "", next(iter(memberships.values()), {}))
        for device in devices_of(directory):
            replicates = arms.setdefault(membership.get("arm", ""), {}).setdefault(device, [])
            replicates.append(membership.get("replicate", 0))
    return [
        f"{arm}: its replicates ran on different devices: "
        + ", ".join(f"{device} ({', '.join(map(str, sorted(replicates)))})" for device, replicates in devices.items())
        + "; their times are not comparable, and their last bits may differ"
        for arm, devices in arms.items()
        if len(devices) > 1
    ]
