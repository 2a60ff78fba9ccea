"""The probe table: damages are what they are called, and each metric answers to what it is made for."""

import numpy as np
import pytest
from torch import nn

from harness.data import load_dataset
from harness.errors import DataError
from harness.metrics import probe
from harness.metrics.extractors.base import Extractor


class Values(nn.Module):
    def forward(self, images):
        return (images.flatten(1).float() / 255,)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield probe.probe(Extractor("values", "none", 64, Values()), load_dataset("digits"), most_images=150)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16), dtype=np.uint8)


def test_a_table_has_three_strengths_of_each_damage_after_the_unchanged_images(table):
    names = [row.probe for row in table.rows]
    damages = ["blur", "noise", "JPEG", "resize", "fewer classes", "memorised"]
    assert names == ["unchanged"] + [name for name in damages for _ in range(3)]
    assert (table.num_samples, table.num_reference) == (150, 150)
    assert all(np.isfinite(list(row.values.values())).all() for row in table.rows)
    assert len({row.strength for row in table.rows}) == len(table.rows)


def of(table, name, metric):
    return [row.values[metric] for row in table.rows if row.probe == name]


@pytest.mark.parametrize("name", ["blur", "noise", "resize", "fewer classes"])
def test_frechets_distance_rises_with_the_damage(table, name):
    [unchanged], values = of(table, "unchanged", "FID"), of(table, name, "FID")
    assert values == sorted(values) and values[-1] > unchanged


def test_lost_classes_cost_recall_and_not_precision(table):
    assert of(table, "fewer classes", "recall")[-1] < 0.5 * of(table, "unchanged", "recall")[0]
    assert of(table, "fewer classes", "precision")[-1] > 0.8 * of(table, "unchanged", "precision")[0]


def test_copies_of_the_reference_are_seen_by_the_memorisation_test_alone(table):
    assert of(table, "memorised", "FID")[-1] < of(table, "unchanged", "FID")[0]
    assert of(table, "memorised", "precision")[-1] == 1
    assert of(table, "memorised", "memorisation AUC")[-1] == 1
    assert abs(of(table, "unchanged", "memorisation AUC")[0] - 0.5) < 0.1


def test_a_table_is_written_with_what_it_was_measured_on(table):
    lines = probe.as_markdown(table).splitlines()
    assert lines[0] == "values on digits: 150 test images against 150 training images, k = 3."
    assert len(lines) == 4 + len(table.rows)
    assert {line.count("|") for line in lines[2:]} == {len(probe.METRICS) + 3}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", probe.DAMAGES)
def test_a_damage_keeps_shape_and_mean_and_grows_with_its_strength(images, name, channels):
    images = images[:, :channels]
    damage, strengths, _ = probe.DAMAGES[name]
    errors = []
    for strength in strengths:
        damaged = damage(images, strength)
        assert (damaged.shape, damaged.dtype) == (images.shape, np.uint8)
        assert abs(damaged.astype(float).mean() - images.mean()) < 6
        errors.append(np.abs(damaged.astype(float) - images).mean())
    assert 0 < errors[0] < errors[1] < errors[2]


def test_blur_is_a_gaussian_of_the_given_width():
    image = np.zeros((1, 1, 41, 41), np.uint8)
    image[0, 0, 20, 20] = 255
    blurred = probe.blur(image, 2 / 41)[0, 0].astype(float)
    assert np.array_equal(blurred, blurred.T)
    assert blurred[20, 20] == round(255 / (2 * np.pi * 4))
    assert blurred[20, 22] == round(255 / (2 * np.pi * 4) * np.exp(-0.5))


def test_points_cannot_be_probed():
    with pytest.raises(DataError, match="mog has no images to damage"):
        probe.probe(Extractor("values", "none", 2, Values()), load_dataset("mog"))
