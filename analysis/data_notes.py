"""What a reader must know of the data behind a study's figures: files that were ignored, and runs of other data."""

from __future__ import annotations

import json
from collections.abc import Sequence

from harness.analysis.runs import RunRecord
from harness.data.folder import listed


def data_sentence(runs: Sequence[RunRecord]) -> str:
    """Say which files of an image folder were ignored, and which runs were trained on other data than the others.

    Empty where nothing was ignored and all runs of one data set agree.
    """
    return " ".join([*_ignored(runs), *_other_data(runs)])


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
                names = ", ".join(f"{run.arm} r{run.replicate} ({run.run_key[:8]})" for run in members)
                sentences.append(
                    f"Not comparable: {names} had other data in {_path(members[0])} than the others "
                    f"(digest {digest[:12]}, not {usual[:12]})."
                )
    return sentences


def _path(run: RunRecord) -> str:
    data = run.spec.get("data") or {}
    return str(data.get("path") or data.get("name"))
