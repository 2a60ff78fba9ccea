"""Load the data set that a spec names; without torch, so that `submit` can check the files on a login node at once."""

from __future__ import annotations

from dataclasses import asdict

from harness.data.base import Dataset
from harness.data.folder import describe
from harness.data.sources import DATASETS
from harness.errors import DataError
from harness.spec.parts import plugin_implementation
from harness.spec.run import DataModel, ImageFolder


def make_dataset(data: DataModel, data_root: str | None = None) -> Dataset:
    """Load the data set that a spec names.

    Raises:
        DataError: its files are missing or damaged, or hold other data than the spec says.
    """
    read_elsewhere = {"horizontal_flip"} | ({"num_classes"} if isinstance(data, ImageFolder) else set())
    options = data.model_dump(exclude={"name", *read_elsewhere})
    dataset = (plugin_implementation(data) or DATASETS[data.name])(data_root, **options)
    facts = {"name": data.name, **asdict(data.facts)}
    del facts["licence"]  # which no file says
    for fact, declared in facts.items():
        actual = getattr(dataset, fact)
        left_open = declared is None and fact != "levels"
        if actual != declared and not left_open:
            account = f" ({describe(dataset.account)})" if isinstance(data, ImageFolder) else ""
            raise DataError(f"{data.name}: the spec says {fact} {declared}, the files have {actual}{account}")
    return dataset
