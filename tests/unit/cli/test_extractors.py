"""reference and probe-extractor, as a user calls them."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from harness.cli import cli
from harness.errors import DataError, SpecError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HARNESS_INCEPTION_WEIGHTS", raising=False)


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_reference_writes_what_it_reads(tmp_path):
    arguments = ("--data", "digits", "--extractor", "random_features", "--split", "test", "--num-images", "40")
    written = invoke("reference", tmp_path / "digits.npz", *arguments, "--json")
    document = json.loads(written.stdout)
    assert (document["num_features"], document["has_features"]) == (384, True)
    assert (document["facts"]["num_images"], document["facts"]["split"]) == (40, "test")
    assert json.loads(invoke("reference", tmp_path / "digits.npz", "--json").stdout) == document
    assert "random_features" in invoke("reference", tmp_path / "digits.npz").output
    small = invoke("reference", tmp_path / "small.npz", *arguments, "--statistics-only", "--json")
    assert json.loads(small.stdout)["has_features"] is False
    assert np.load(tmp_path / "small.npz").files == [
        name for name in np.load(tmp_path / "digits.npz").files if name != "features"
    ]


def test_a_reference_that_is_missing_and_data_that_nobody_knows_are_refused(tmp_path):
    assert isinstance(invoke("reference", tmp_path / "none.npz").exception, DataError)
    refused = invoke("reference", tmp_path / "a.npz", "--data", "nowhere").exception
    assert isinstance(refused, SpecError) and "choices: digits, mnist" in str(refused)
    assert isinstance(invoke("probe-extractor", "[1").exception, SpecError)


@pytest.mark.slow
def test_probe_extractor_prints_a_table_and_its_document():
    arguments = ("probe-extractor", "digits", "--num-images", "50", "--extractor", "random_features")
    document = json.loads(invoke(*arguments, "--json").stdout)
    assert (document["data"], document["num_images"], len(document["rows"])) == ("digits", 50, 19)
    assert document["rows"][0]["probe"] == "unchanged" and document["extractor"]["name"] == "random_features"
    assert invoke(*arguments).stdout.startswith("random_features on digits: 50 test images against 50 training images")
