"""A run's sample grids as MLflow's images, which its image grid shows side by side, with a slider over steps.

MLflow names an image by its key, step and time and a random UUID. Here the time is that of the measurement and the UUID
a function of run, key and step: an image that is sent again replaces itself.
"""

from __future__ import annotations

import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.records.directory import RunDirectory

IMAGES = "images"
LOGGED_IMAGES_TAG = "mlflow.loggedImages"  # without it MLflow's pages offer no image charts
_NAMESPACE = uuid.UUID("6f2f0b3e-3a5f-5c3a-9a41-1d2f6f0c8f10")
_MAX_WIDTH = 256  # of the preview, as MLflow makes it


@dataclass(frozen=True)
class SampleImage:
    """A picture of a run, with the step of the weights that drew it and the time of its measurement.

    Attributes:
        key: MLflow's name of it, the same in every run: eval_samples.
    """

    path: Path
    key: str
    step: int
    time_ms: int

    def name(self, owner: str) -> str:
        """Return the file's name in MLflow, without its ending.

        Args:
            owner: the run_key, or another name of what the picture belongs to.
        """
        identity = uuid.uuid5(_NAMESPACE, f"{owner} {self.key} {self.step}")
        return f"{self.key}+step+{self.step}+timestamp+{self.time_ms}+{identity}"


def sample_images(run_directory: RunDirectory) -> list[SampleImage]:
    """Return the pictures of a run's recorded evaluations, in the order of their names."""
    paths = [path for path in sorted(run_directory.samples_folder.glob("[!.]*.png")) if is_own_file(path)]
    events = [event for event in run_directory.events("evaluation") if not event.superseded] if paths else []
    images = []
    for path in paths:
        # The longest prefix: eval_ddim_samples is of eval_ddim, and not of eval.
        of_path = [event for event in events if path.stem.startswith(f"{event.fields.get('prefix')}_")]
        if of_path:
            event = max(of_path, key=lambda event: (len(event.fields["prefix"]), event.fields.get("step", 0)))
            images.append(SampleImage(path, path.stem, int(event.fields.get("step", 0)), event.time_ms))
    return images


def is_own_file(path: Path) -> bool:
    """Return whether a path is a file itself: a link could publish any file of this machine."""
    return path.is_file() and not path.is_symlink()


def upload_image(client: Any, run_id: str, image: SampleImage, owner: str) -> None:
    """Upload a picture and its preview, under names that depend on their owner, key and step alone.

    Raises:
        RecordError: the file is no picture.
    """
    name = image.name(owner)
    with tempfile.TemporaryDirectory() as folder:
        _write_both(image.path, Path(folder), name)
        client.log_artifacts(run_id, folder, IMAGES)
    client.set_tag(run_id, LOGGED_IMAGES_TAG, "True")


def _write_both(path: Path, folder: Path, name: str) -> None:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.save(folder / f"{name}.png")
            scale = _MAX_WIDTH / max(picture.size)
            size = (max(1, int(picture.width * scale)), max(1, int(picture.height * scale)))
            picture.convert("RGB").resize(size).save(folder / f"{name}+compressed.webp")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RecordError(f"{path.parent.name}/{path.name}: is no picture: {error}") from error
