"""reference, probe-extractor: statistics of real images' features, and what an extractor's metrics see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.common import Output, json_option
from harness.data.facts import EXTRACTORS

if TYPE_CHECKING:
    from harness.data.base import Dataset
    from harness.metrics.extractors.base import Extractor

DATA_HELP = "The data: cifar10, or {name: image_folder, path: ...}."


def of_data(command: Callable) -> Callable:
    """Add the options that name an extractor and where the data are."""
    for option in (
        click.option("--data-root", type=click.Path(path_type=Path), help="Folder of the data sets.  [HARNESS_DATA]"),
        click.option(
            "--extractor", type=click.Choice(EXTRACTORS), default="auto", show_default=True, help="Whose features."
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--data", help=f"{DATA_HELP} Without it FILE is read.")
@click.option("--split", type=click.Choice(["train", "test"]), default="train", show_default=True, help="Which images.")
@click.option("--num-images", type=click.IntRange(2), help="How many of them.  [default: all]")
@click.option("--statistics-only", is_flag=True, help="Leave the features out: smaller, and enough for FID alone.")
@of_data
@json_option
def reference(
    file: Path,
    data: str | None,
    split: str,
    num_images: int | None,
    statistics_only: bool,
    extractor: str,
    data_root: Path | None,
    output: Output,
) -> None:
    """Write or read reference statistics.

    With --data, FILE (an npz) gets mean, covariance and features of real images, which `reference: FILE` of a fidelity
    part compares samples with. Without it, the facts of a FILE are shown, be it ours, ADM's or pytorch-fid's.

    With --json: {"file", "sha256", "num_features", "has_features", "facts": {NAME: VALUE}}.
    """
    from dataclasses import replace

    from harness.cli.tables import Table
    from harness.metrics.reference import read_reference, reference_of, write_reference

    if data is not None:
        dataset, network = _load(data, data_root, extractor)
        statistics = reference_of(network, dataset, split, num_images)
        write_reference(file, replace(statistics, features=None) if statistics_only else statistics)
    written = read_reference(file)
    has_features = written.features is not None
    if not output.as_json:
        lines = {"sha256": written.sha256, "features": str(len(written.mu)), "kept": "yes" if has_features else "no"}
        Table(("fact", "value"), [*lines.items(), *((name, str(fact)) for name, fact in written.facts.items())]).show()
    output.document(
        {
            "file": str(file),
            "sha256": written.sha256,
            "num_features": len(written.mu),
            "has_features": has_features,
            "facts": dict(written.facts),
        }
    )


@click.command("probe-extractor")
@click.argument("data")
@click.option("--num-images", type=click.IntRange(50), default=2000, show_default=True, help="At most, of each kind.")
@of_data
@json_option
def probe_extractor(data: str, num_images: int, extractor: str, data_root: Path | None, output: Output) -> None:
    """Show what an extractor sees and misses.

    Test images of DATA (cifar10, or {name: image_folder, path: ...}) are measured as if they were samples: unchanged,
    and blurred, noisy, compressed, resized, of fewer classes and copied from the training images, each at three
    strengths.

    With --json: {"extractor": {...}, "data", "data_digest", "num_images", "rows": [{"probe", "strength", METRIC:
    number}]}.
    """
    from harness.metrics.probe import as_markdown, probe

    dataset, network = _load(data, data_root, extractor)
    result = probe(network, dataset, num_images)
    click.echo(as_markdown(result))
    output.document(
        {
            "extractor": network.description,
            "data": dataset.name,
            "data_digest": dataset.digest,
            "num_images": result.num_samples,
            "rows": [{"probe": row.probe, "strength": row.strength, **row.values} for row in result.rows],
        }
    )


def _load(data: str, root: Path | None, name: str) -> tuple[Dataset, Extractor]:
    from harness.datasets import make_dataset
    from harness.metrics.features import load_extractor
    from harness.spec.evaluation import extractor_name
    from harness.study.named_data import data_named

    dataset = make_dataset(data_named(data), str(root) if root else None)
    chosen = None if name == "auto" else extractor_name(name, dataset.name, dataset.digest)
    return dataset, load_extractor(chosen, dataset)
