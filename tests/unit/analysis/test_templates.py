"""The page's templates are part of the package, wherever it is installed or copied to."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import harness.analysis
from harness.records import snapshot

ROOT = Path(__file__).parents[3]
TEMPLATES = (
    "report.html",
    "report.css",
    "report.js",
    "results.html",
    "contrasts.html",
    "mixture.html",
    "noise.html",
    "published.html",
    "claims.html",
)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_lies_in_the_package_and_in_its_data(name):
    assert (Path(harness.analysis.__file__).parent / "templates" / name).is_file()
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert any(fnmatch(f"templates/{name}", pattern) for pattern in data["harness.analysis"])


@pytest.mark.process
def test_a_code_snapshot_has_the_templates(tmp_path):
    taken = snapshot.take(tmp_path / "code", ROOT)
    files = set(taken.manifest["files"])
    assert {f"analysis/templates/{name}" for name in TEMPLATES} <= files


def test_every_template_that_is_there_is_listed():
    assert {path.name for path in (ROOT / "analysis" / "templates").iterdir()} == set(TEMPLATES)
