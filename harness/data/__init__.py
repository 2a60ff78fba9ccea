"""The data sets: one file per source, on a common base (`base.py`); their facts are declared in `facts.py`.

Submodules load lazily, so that the declared facts can be read without NumPy or torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.data.base import Dataset, Split, to_uint8
    from harness.data.facts import DATASET_FACTS, DatasetFacts
    from harness.data.sources import DATASETS, load_dataset

_HOMES = {
    "DATASET_FACTS": "facts",
    "DatasetFacts": "facts",
    "DATASETS": "sources",
    "load_dataset": "sources",
    "Dataset": "base",
    "Split": "base",
    "to_uint8": "base",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
