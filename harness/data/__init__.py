"""The data sets: one file per source, on a common base (`base.py`); their facts are declared in `facts.py`.

Submodules load lazily, so that the declared facts can be read without NumPy or torch.
"""

from importlib import import_module
from typing import Any

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
