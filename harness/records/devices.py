"""Which devices runs were computed on, and where replicates of one arm differ in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.errors import RecordError
from harness.records.directory import RunDirectory
from harness.records.manifest import Manifests


def devices_in(environments: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the devices of a run's attempts, each once: a GPU's name, or cpu; none if they are not known."""
    return tuple(dict.fromkeys(str(one["device"]) for one in environments if one.get("device")))


def devices_of(directory: RunDirectory) -> tuple[str, ...]:
    """Return the devices of a run as `devices_in` does."""
    try:
        return devices_in(directory.environments())
    except RecordError:  # `status` says what is wrong with it
        return ()


def differing(runs: Iterable[tuple[str, int, Sequence[str]]]) -> dict[str, dict[str, list[int]]]:
    """Return arm -> device -> replicates, of the arms whose runs had more than one device.

    Args:
        runs: arm, replicate and devices of each.
    """
    arms: dict[str, dict[str, list[int]]] = {}
    for arm, replicate, devices in runs:
        for device in devices:
            arms.setdefault(arm, {}).setdefault(device, []).append(replicate)
    return {arm: devices for arm, devices in arms.items() if len(devices) > 1}


def mixed_devices(directories: Sequence[RunDirectory], study: str | None = None) -> list[str]:
    """Return a note for each arm whose replicates ran on different devices: their times are not comparable.

    Args:
        directories: of runs in one folder.
        study: whose arms are meant; None: the first that each run belongs to.
    """
    if not directories:
        return []
    manifests = Manifests(directories[0].path.parent)

    def place(directory: RunDirectory) -> tuple[str, int]:
        memberships = manifests.memberships(directory)
        membership = memberships.get(study or "", next(iter(memberships.values()), {}))
        return membership.get("arm", ""), membership.get("replicate", 0)

    return device_notes((*place(run), devices_of(run)) for run in directories)


def device_notes(runs: Iterable[tuple[str, int, Sequence[str]]]) -> list[str]:
    """Return the notes of `mixed_devices`; the argument is that of `differing`."""
    return [
        f"{arm}: its replicates ran on different devices: "
        + ", ".join(f"{device} ({', '.join(map(str, sorted(replicates)))})" for device, replicates in devices.items())
        + "; their times are not comparable, and their last bits may differ"
        for arm, devices in differing(runs).items()
    ]
