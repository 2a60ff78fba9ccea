"""What a reader must know of the data behind a study's figures: files that were ignored, and runs of other data."""

from __future__ import annotations

import json
from collections.abc import Sequence

from harness.analysis.runs import RunRecord
from harness.data.folder import listed
from harness.records.devices import differing
from harness.spec.metrics import classifier_is_poor
from harness.text import printable


def data_sentence(runs: Sequence[RunRecord]) -> str:
    """Say which files of an image folder were ignored, which runs had other data or extractors than the others, and
    whose replicates ran on different devices.

    Empty where nothing was ignored and all runs agree.
    """
    return " ".join(
        [*_ignored(runs), *_other_data(runs), *_other_weights(runs), *_poor_classifiers(runs), *_other_devices(runs)]
    )


def _other_devices(runs: Sequence[RunRecord]) -> list[str]:
    """Name the devices that replicates of one arm ran on, where they are several."""
    different = differing((run.arm, run.replicate, run.devices) for run in runs)
    arms: dict[str, list[str]] = {}
    for arm, devices in different.items():
        arms.setdefault(printable(", ".join(sorted(devices))), []).append(arm)
    return [
        f"Replicates of {', '.join(names)} ran on different devices ({devices}), so their times are not comparable."
        for devices, names in arms.items()
    ]


def _ignored(runs: Sequence[RunRecord]) -> list[str]:
    sentences: dict[str, None] = {}
    for run in runs:
        account = run.environment.get("data_account")
        if not isinstance(account, dict):
            continue
        ignored = account.get("ignored")
        if ignored and isinstance(ignored, dict) and all(isinstance(number, int) for number in ignored.values()):
            number = sum(ignored.values())
            verb = "was" if number == 1 else "were"
            sentence = f"Of the {account.get('seen')} files in {_path(run)}, {number} {verb} ignored"
            sentences[f"{sentence} ({listed(ignored)})."] = None
    return list(sentences)


def _other_data(runs: Sequence[RunRecord]) -> list[str]:
    """Name the runs whose digest is not that of the most runs with the same data in their spec."""
    groups: dict[str, dict[str, list[RunRecord]]] = {}
    for run in runs:
        if digest := run.environment.get("data_digest"):
            data = json.dumps(run.spec.get("data"), sort_keys=True)
            groups.setdefault(data, {}).setdefault(str(digest), []).append(run)
    sentences = []
    for by_digest in groups.values():
        usual = max(by_digest, key=lambda digest: (len(by_digest[digest]), digest))
        for digest, members in by_digest.items():
            if digest != usual:
                names = ", ".join(map(_name, members))
                sentences.append(
                    f"Not comparable: {names} had other data in {_path(members[0])} than the others "
                    f"(digest {digest[:12]}, not {usual[:12]})."
                )
    return sentences


def _other_weights(runs: Sequence[RunRecord]) -> list[str]:
    """Name the runs whose FIDs stand on other weights of one extractor than those of the most runs.

    A classifier is trained on the data, so its weights are compared among runs of the same data alone.
    """
    groups: dict[tuple[str, str], dict[str, set[str]]] = {}
    for run in runs:
        for measurement in run.measurements:
            extractor = measurement.protocol.get("extractor")
            if isinstance(extractor, dict) and "weights_sha256" in extractor:
                name = str(extractor.get("name"))
                data = "" if name == "inception" else str(run.environment.get("data_digest"))
                by_weights = groups.setdefault((name, data), {})
                by_weights.setdefault(str(extractor["weights_sha256"]), set()).add(_name(run))
    sentences = []
    for (name, _), by_weights in groups.items():
        usual = max(by_weights, key=lambda digest: (len(by_weights[digest]), digest))
        for digest, names in by_weights.items():
            if digest != usual:
                sentences.append(
                    f"Not comparable: FID, precision and recall of {', '.join(sorted(names))} are by other weights of "
                    f"{name} than the others' (sha256 {digest[:12]}, not {usual[:12]})."
                )
    return sentences


def _poor_classifiers(runs: Sequence[RunRecord]) -> list[str]:
    """Warn of classifiers that label too few test images correctly for their features to be trusted."""
    accuracies: dict[str, list[float]] = {}
    for run in runs:
        for measurement in run.measurements:
            match measurement.protocol.get("extractor"):
                case {"name": str(name), "test_accuracy": float(accuracy), **rest}:
                    majority_share = rest.get("test_majority_share")
                    if classifier_is_poor(accuracy, majority_share if isinstance(majority_share, float) else 0.0):
                        accuracies.setdefault(name, []).append(accuracy)
    return [
        f"{name} labels only {100 * min(values):.1f} % of the test images correctly: its FID, precision and recall say "
        "little."
        for name, values in accuracies.items()
    ]


def _name(run: RunRecord) -> str:
    return f"{run.arm} r{run.replicate} ({run.run_key[:8]})"


def _path(run: RunRecord) -> str:
    data = run.spec.get("data") or {}
    return str(data.get("path") or data.get("name"))
