"""The steps of docs/howto/add_a_metric.md, with the code that stands there."""

import re
from pathlib import Path

import pytest
import torch

from harness.datasets import make_dataset
from harness.evaluation import parts
from harness.evaluation.context import EvaluationContext
from harness.registry import make_method
from harness.spec import evaluation, metrics
from harness.spec.evaluation import Evaluation
from harness.spec.resources import Resources

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "add_a_metric.md"


@pytest.fixture
def page():
    """What the page's code defines."""
    names = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    return names


def test_the_metric_is_right_where_the_answer_is_known(page):
    features = torch.eye(4)
    assert page["nearest_distance"](features, features) == 0
    assert page["nearest_distance"](features, torch.zeros(1, 4)) == pytest.approx(1)


def test_the_part_leaves_exactly_the_names_that_the_page_declares(page, tiny_study):
    run = tiny_study()[0]
    data, device = make_dataset(run.spec.data), torch.device("cpu")
    method = make_method(run.spec, data, Resources(), device)
    context = EvaluationContext(method, run.spec, data, Evaluation(grid=4, batch_size=32), device)
    asked = page["Nearest"](num_samples=16, num_steps=2)
    with torch.inference_mode():
        result = page["nearest"](context, asked)
    assert tuple(result.metrics) == page["nearest_outputs"](asked, run.spec).metrics
    assert result.metrics["nearest_distance_digitsnet_16_ancestral2"] > 0


def test_a_figure_knows_the_metric_once_its_kind_is_registered(page, monkeypatch):
    monkeypatch.setitem(metrics.METRIC_KINDS, "nearest_distance", page["KIND"])
    assert metrics.metric_kind("eval/nearest_distance_digitsnet_16_ancestral2").arrow == "↑"


def test_the_page_names_the_tables_that_a_metric_stands_in():
    text = PAGE.read_text()
    tables = ((evaluation, "PARTS"), (metrics, "PART_OUTPUTS"), (metrics, "METRIC_KINDS"), (parts, "PARTS"))
    for module, table in tables:
        assert hasattr(module, table) and f"`{table}`" in text
    for file in re.findall(r"`(tests/[\w/.]+)`", text):
        assert (PAGE.parents[2] / file).is_file(), file
