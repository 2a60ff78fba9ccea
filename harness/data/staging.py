"""Staging: what training reads from a file at random is copied to a disk of the node first.

Only arrays that are mapped into memory are staged: small data sets are read whole at the start. Every process of a job
on a node maps the same copy, which the first of them makes. The job's batch script names the folder, which is the job's
own, and removes it at the end (harness/slurm/profile.py).
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from harness.data.base import Concatenation, Dataset, Split
from harness.data.cache import publish
from harness.errors import DataError

logger = logging.getLogger(__name__)

STAGE_VARIABLE = "HARNESS_STAGE"


def staged(dataset: Dataset) -> Dataset:
    """Return a data set whose mapped arrays are read from HARNESS_STAGE, if a job's script has set it.

    A node without room for them is no reason to end a run: then it reads them from where they are.
    """
    folder = os.environ.get(STAGE_VARIABLE)
    if not folder:
        return dataset
    try:
        train, test = (_staged_split(split, Path(folder)) for split in (dataset.train, dataset.test))
    except (DataError, OSError) as error:
        logger.warning(f"the data are not staged on this node and are read from where they are: {error}")
        return dataset
    return replace(dataset, train=train, test=test)


def _staged_split(split: Split, folder: Path) -> Split:
    if isinstance(split.images, Concatenation):
        return replace(split, images=Concatenation([_staged_array(part, folder) for part in split.images.parts]))
    return replace(split, images=_staged_array(split.images, folder))


def _staged_array(array: np.ndarray, folder: Path) -> np.ndarray:
    """Map a copy of the file that an array is a view of; an array in memory is returned as it is."""
    whole: np.ndarray | None = array
    while whole is not None and not (isinstance(whole, np.memmap) and not isinstance(whole.base, np.ndarray)):
        whole = whole.base if isinstance(whole.base, np.ndarray) else None
    if not isinstance(whole, np.memmap) or whole.filename is None or not array.flags.c_contiguous:
        return array
    source = Path(whole.filename)
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"{hashlib.sha256(os.fsencode(source)).hexdigest()[:16]}-{source.name}"
    if not copy.exists():
        with publish(copy) as temporary:
            shutil.copyfile(source, temporary)
    skipped = array.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    return np.memmap(copy, array.dtype, "c", whole.offset + skipped, array.shape)
