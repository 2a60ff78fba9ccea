"""Ready views of a study in MLflow: tags of the experiment, each of which opens its page grouped, sorted and drawn.

The format is that of MLflow's pages for views that people save and share. It is internal to MLflow and has no version:
a page ignores what it does not know, so after a change of MLflow a view may look plainer, and no record is lost.
`tests/component/tracking/test_views.py` opens each of them in a browser.
"""

from __future__ import annotations

import base64
import json
import uuid
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.spec.metrics import metric_kind

VIEW_TAG = "mlflow.sharedViewState."
"""Prefix of the tag of a view; its id follows."""

Chart = dict[str, Any]
State = dict[str, Any]

MAX_RESULTS = 12  # of bars and columns: a page with more is no overview
COLUMN_PIXELS, NARROW_COLUMN_PIXELS = 180, 100  # a mean with its interval; a state
TALL_PIXELS = 1000  # of a chart with a bar for each of up to 100 arms
MAX_TERMS = 6  # of the loss, each a chart
PAGE_RUNS = 100
"""How many runs MLflow's page loads, before a click on "Load more"; its charts and groups are of these alone."""


@dataclass(frozen=True)
class Contents:
    """The names of what a study has in MLflow, as far as views are chosen by it.

    Attributes:
        results: metrics of evaluations with one number a run, in the order in which a table has them.
        terms_over_t: metrics over t, such as eval/L_t_bpd.
        sweeps: metrics over the number of sampling steps.
        learning: metrics over training steps.
        speed: metrics of how fast a run was.
        images: sample grids, each with the largest step that it was drawn at.
        replicate: the first replicate's number, of which the samples are shown.
        compute: the metric with the cost of the training; empty if the study is not about scale.
        space: the parameters that a search varies, as MLflow's params.
        targets: the metrics that a search optimises.
        target_names: the names that the search's file has for them; the best value so far is best/<name>.
        num_runs, num_arms: that the study asks for.
    """

    results: Sequence[str] = ()
    terms_over_t: Sequence[str] = ()
    sweeps: Sequence[str] = ()
    learning: Sequence[str] = ()
    speed: Sequence[str] = ()
    images: dict[str, int] = field(default_factory=dict)
    replicate: int = 0
    compute: str = ""
    space: Sequence[str] = ()
    targets: Sequence[str] = ()
    target_names: Sequence[str] = ()
    num_runs: int = 0
    num_arms: int = 0


@dataclass(frozen=True)
class Section:
    """Charts under a heading, in so many columns."""

    name: str
    charts: Sequence[Chart]
    columns: int = 3
    height_pixels: int = 360


NAMES = {
    "search": "Search",
    "arms": "Arms",
    "results": "Results",
    "scaling": "Scaling",
    "samples": "Samples",
    "runs": "Runs",
}
"""The views by id, with their names, in the order of MLflow's menu."""

TABLES = ("results", "runs")
"""Those that are tables of runs; the others are charts beside a list of runs."""


@dataclass(frozen=True)
class View:
    """One view: its id, a key of `NAMES`, and the state of its page."""

    id: str
    state: dict[str, Any] = field(repr=False)

    @property
    def tag(self) -> str:
        return VIEW_TAG + self.id

    @property
    def tag_value(self) -> str:
        """The tag's text: as MLflow stores a view that was saved by name."""
        state = json.dumps(self.state, separators=(",", ":"), sort_keys=True)
        packed = base64.b64encode(zlib.compress(state.encode(), 9)).decode()
        age = len(NAMES) - list(NAMES).index(self.id)  # MLflow's menu has the youngest first
        envelope = {"name": NAMES[self.id], "createdAt": age, "updatedAt": age, "state": f"deflate;{packed}"}
        return json.dumps(envelope)


def page_address(server: str, experiment_id: str, view_id: str = "") -> str:
    """Return the address of a study's runs on a server, as a view has them.

    Without the workflow in it MLflow opens its page for LLM agents.
    """
    address = f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    if not view_id:
        return address
    mode = "" if view_id in TABLES else "&compareRunsMode=CHART"
    return f"{address}{mode}&viewStateShareKey={view_id}"


NARROW = ("tags.`replicate`", "tags.`replicates`", "tags.`state`")

RUNS = "tags.kind = 'run' and tags.asked_for = 'true'"
"""The filter of the runs that the study asks for: no runs of arms, no earlier runs."""

ARMS = "tags.kind = 'arm' and tags.asked_for = 'true'"
"""The filter of the arms that the study asks for: a run each, with the mean of its replicates."""


def views_of(contents: Contents) -> list[View]:
    """Return a study's views, in the order of the menu."""
    states = {
        "search": _search(contents),
        "arms": _arms(contents),
        "results": _results(contents),
        "scaling": _scaling(contents),
        "samples": _samples(contents),
        "runs": _runs(contents),
    }
    return [View(view_id, state) for view_id, state in states.items() if state]


def _arms(contents: Contents) -> State:
    """Mean of each arm; curves with the range of its replicates.

    A study with more runs than a page loads is shown by the runs of its arms, which have means and no curves.
    """
    columns = [_metric(key) for key in contents.results[:MAX_RESULTS]]
    bars = Section("Results: means over replicates", [_bar(key) for key in contents.results[:MAX_RESULTS]])
    if contents.num_runs > PAGE_RUNS and contents.results and not contents.space:
        return _state(
            "arms", ARMS, columns, [replace(bars, columns=1, height_pixels=TALL_PIXELS)], best_first=_deciding(contents)
        )
    sections = [
        bars,
        Section("Terms of the bound over t", [_line(key, log_y=True, points=False) for key in contents.terms_over_t]),
        Section(
            "Against the number of sampling steps",
            [_line(key, log_x=True, log_y=True, points=True) for key in contents.sweeps],
        ),
        Section("Learning curves", [_line(key, log_y=True, points=False) for key in contents.learning[:MAX_TERMS]]),
    ]
    return _state("arms", RUNS, columns, sections, grouped=True)


def _results(contents: Contents) -> State:
    """Mean, interval and number of replicates of each arm as text, one row an arm; a search has no runs of arms."""
    if contents.space:
        return {}
    columns = [_tag("replicates"), *(_tag(key) for key in contents.results[:MAX_RESULTS])]
    return _state("results", ARMS, columns, best_first=_deciding(contents))


def _deciding(contents: Contents) -> str:
    """Return the result by which arms are sorted that do not fit on one page; empty if they do."""
    return contents.results[0] if contents.results and contents.num_arms > PAGE_RUNS else ""


def _samples(contents: Contents) -> State:
    """The samples of one replicate of each arm, side by side: they share their noise."""
    if not contents.images:
        return {}
    charts = [_image(key, step) for key, step in contents.images.items()]
    where = f"{RUNS} and tags.replicate = '{contents.replicate}'"
    return _state("samples", where, [_tag("arm")], [Section("Samples", charts, columns=1, height_pixels=640)])


def _runs(contents: Contents) -> State:
    """A row for each run."""
    metrics = [*contents.results[:MAX_RESULTS], *contents.speed]
    columns = [_tag("arm"), _tag("replicate"), _tag("state"), *(_metric(key) for key in metrics)]
    return _state("runs", RUNS, columns)


def _scaling(contents: Contents) -> State:
    """Results against compute; a point for each run."""
    if not contents.compute:
        return {}
    charts = [_against(key, contents.compute) for key in contents.results[:MAX_RESULTS]]
    columns = [_tag("arm"), *(_metric(key) for key in (contents.compute, *contents.results[:MAX_RESULTS]))]
    return _state("scaling", RUNS, columns, [Section("Against compute", charts)])


def _search(contents: Contents) -> State:
    """The trials: parameters beside targets, and each parameter alone against each target."""
    if not contents.space or not contents.targets:
        return {}
    charts = [_parallel(contents.space, contents.targets)]
    charts += [_line(f"best/{name}", points=True) for name in contents.target_names]
    charts += [_scatter(name, "PARAM", key) for key in contents.targets for name in contents.space]
    columns = [_tag("state"), *map(_param, contents.space), *map(_metric, contents.targets)]
    return _state("search", "", columns, [Section("Trials", charts)])


# -- MLflow's format


def _state(
    view: str,
    where: str,
    columns: Sequence[str],
    sections: Iterable[Section] = (),
    *,
    grouped: bool = False,
    best_first: str = "",
) -> State:
    """Return the state of a page: filter, columns, groups and charts.

    Args:
        best_first: a metric by which the runs are sorted; otherwise they are in the order of the study's file.
    """
    compare_sections, charts = [], []
    for section in sections:
        if section.charts:
            identity = _identity(view, section.name)
            shape = {"columns": section.columns, "cardHeight": section.height_pixels}
            state = {"display": True, "isReordered": True, "deleted": False, "isGenerated": False}
            compare_sections.append({"uuid": identity, "name": section.name, **shape, **state})
            charts += [
                chart | {"uuid": _identity(view, json.dumps(chart, sort_keys=True)), "metricSectionId": identity}
                for chart in section.charts
            ]
    by_arm = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "arm"}]}
    return {
        "searchFilter": where,
        # Sorted by time, runs would be folded beneath their arms.
        "orderByKey": _metric(best_first) if best_first else "tags.`order`",
        "orderByAsc": not best_first or metric_kind(best_first).direction != "maximize",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(columns),
        "columnOrder": list(columns),
        "columnWidths": {column: NARROW_COLUMN_PIXELS if column in NARROW else COLUMN_PIXELS for column in columns},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "SHOWALL",
        "runListHidden": False,
        "groupBy": by_arm if grouped else None,
        "groupsExpanded": {},
        "useGroupedValuesInCharts": grouped,
        "autoRefreshEnabled": True,
        "hideEmptyCharts": True,
        "viewMaximized": False,
        "isAccordionReordered": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "compareRunSections": compare_sections,
        "compareRunCharts": charts,
    }


def _identity(view: str, what: str) -> str:
    """Return the same identity for the same part of a view each time, so that nothing is written again for nothing."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"diffusion-harness/{view}/{what}"))


def _chart(kind: str, **fields: Any) -> Chart:
    return {"type": kind, "runsCountToCompare": PAGE_RUNS, "deleted": False, "isGenerated": False, **fields}


def _bar(key: str) -> Chart:
    return _chart("BAR", metricKey=key, displayName=key)


def _line(key: str, *, log_x: bool = False, log_y: bool = False, points: bool, x_metric: str = "") -> Chart:
    return _chart(
        "LINE",
        metricKey=key,
        displayName=key,
        selectedMetricKeys=[key],
        lineSmoothness=0,
        scaleType="log" if log_y else "linear",
        xAxisScaleType="log" if log_x else "linear",
        xAxisKey="metric" if x_metric else "step",
        selectedXAxisMetricKey=x_metric,
        yAxisKey="metric",
        yAxisExpressions=[],
        displayPoints=points,
        useGlobalXaxisKey=False,
        useGlobalLineSmoothing=False,
    )


def _against(key: str, compute: str) -> Chart:
    """A metric against compute: of points alone, since each run has one. MLflow 3.17 draws compute on a linear axis."""
    return _line(key, log_x=True, log_y=True, points=True, x_metric=compute)


def _scatter(x: str, x_kind: str, y: str) -> Chart:
    return _chart("SCATTER", xaxis={"key": x, "type": x_kind}, yaxis={"key": y, "type": "METRIC"})


def _parallel(params: Sequence[str], metrics: Sequence[str]) -> Chart:
    return _chart("PARALLEL", selectedParams=list(params), selectedMetrics=list(metrics), showAllRuns=True)


def _image(key: str, step: int) -> Chart:
    return _chart("IMAGE", imageKeys=[key], step=step, showRunParams=False, displayName=key)


def _metric(key: str) -> str:
    return f"metrics.`{key}`"


def _param(name: str) -> str:
    return f"params.`{name}`"


def _tag(name: str) -> str:
    return f"tags.`{name}`"
