"""A study's page in MLflow: its description and its views, in stores and as Chromium shows them.

The views are written in a format that is internal to MLflow: whoever raises its version runs this file.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib

import pytest

from harness.records.directory import RunDirectory
from harness.records.manifest import Manifests, ask_for
from harness.records.status import Status
from harness.testing import tiny_study, write_finished_run, write_run
from harness.tracking import experiment
from harness.tracking.experiment import DESCRIPTION_TAG, STAMP_TAG, WRITTEN_BY, sync_experiments, view_addresses
from harness.tracking.studies import sync_studies
from harness.tracking.sync import sync_run
from harness.tracking.views import VIEW_TAG

NETWORK = """
data: digits
diffusion: {num_timesteps: 50}
model: {channels: 8, channel_mult: [1], num_res_blocks: 1, attention_resolutions: [], num_heads: 1}
train: {steps: 100, batch_size: 4, ema_rate: 0.9}
"""
MEASURED = "{name: eval, nll: {}, fidelity: {num_samples: 64, num_steps: 10}, grid: 36}"
ABLATION = f"""
study: ablation
question: Does cosine beat linear?
{NETWORK}
grid: {{diffusion.schedule: [linear, cosine]}}
replicates: 3
evaluate:
  - {MEASURED}
  - {{name: eval, sweep: {{num_steps: [5, 10], num_samples: 64}}}}
"""
SCALING = f"study: scaling\n{NETWORK}\ngrid: {{model.channels: [8, 16, 32]}}\nevaluate:\n  - {MEASURED}\n"
SEARCH = f"study: hunt\n{NETWORK}\ngrid: {{optim.lr: [1.0e-4, 1.0e-3, 1.0e-2]}}\nevaluate:\n  - {MEASURED}\n"
FID = "eval/fid_digitsnet_64_ancestral10"


def numbers(run):
    """Return planted results: cosine is better, larger networks are better, and replicates differ."""
    channels = run.spec.model.channels
    nll = 3.0 - 0.5 * (run.arm == "cosine") - 0.05 * channels / 8 + 0.01 * run.replicate
    return {"nll_bpd": nll, "fid": 8.0 - channels / 8 + 0.1 * run.replicate, "train_multiply_adds": 1e9 * channels**2}


def write_study(text, folder, *, finished=True):
    """Write a study's runs as jobs do, and what it asks for; return their directories."""
    runs = tiny_study(folder, study=text)
    file = folder / f"{runs[0].study}.yaml"
    file.write_text(text)
    ask_for(folder / "runs", runs[0].study, {run.run_key: run.membership() for run in runs}, file=file)
    if finished:
        return [write_finished_run(run, folder / "runs", numbers(run)) for run in runs]
    return [write_run(run, folder / "runs") for run in runs]


def write_search(text, folder):
    """Write a search's runs and its records of them; return the directories."""
    directories = write_study(text, folder)
    home = folder / "runs" / ".search" / "hunt"
    (home / "trials").mkdir(parents=True)
    space = [{"path": "optim.lr", "kind": "float", "low": 1e-4, "high": 1e-2, "log": True, "step": None}]
    metrics = [{"name": "eval/nll_bpd", "direction": "minimize"}]
    (home / "search.json").write_text(json.dumps({"study": "hunt", "definition": {"space": space, "metrics": metrics}}))
    for number, directory in enumerate(directories):
        point = {"optim.lr": directory.spec()["optim"]["lr"]}
        record = {"number": number, "point": point, "state": "complete", "ended_seconds": 10.0 + number}
        record |= {"values": {"eval/nll_bpd": 3.0}, "replicate_values": {}, "run_keys": [directory.key]}
        (home / "trials" / f"trial-{number:04d}.json").write_text(json.dumps(record))
    return directories


def client(uri):
    import mlflow

    return mlflow.MlflowClient(tracking_uri=uri)


def tags_of(uri, study="ablation"):
    return dict(client(uri).get_experiment_by_name(study).tags)


def state_of(tags, view):
    """Return the state of a view, as MLflow's pages read it."""
    packed = json.loads(tags[VIEW_TAG + view])["state"].removeprefix("deflate;")
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def sync(directories, uri=None):
    for directory in directories:
        sync_run(directory, tracking_uri=uri)
    sync_studies(directories, tracking_uri=uri)


def charts_of(tags, view):
    return [(chart["type"], chart.get("metricKey", "")) for chart in state_of(tags, view)["compareRunCharts"]]


@pytest.mark.slow
class TestExperiment:
    def test_the_description_has_the_question_the_answers_and_the_table_and_the_views_what_was_measured(
        self, store, tmp_path
    ):
        directories = write_study(ABLATION, tmp_path)
        sync(directories)
        tags = tags_of(store)
        text = tags[DESCRIPTION_TAG]
        assert text.startswith("**Does cosine beat linear?**\n\n- NLL (bits/dim)") and text.endswith(WRITTEN_BY)
        assert "| linear | 3 | 2.960 ± " in text and "| cosine | 3 | **2.460 ± " in text
        assert charts_of(tags, "arms")[:2] == [("BAR", "eval/nll_bpd"), ("BAR", FID)]
        assert ("LINE", "eval/L_t_bpd") in charts_of(tags, "arms") and charts_of(tags, "samples") == [("IMAGE", "")]
        assert {name for name in tags if name.startswith(VIEW_TAG)} == {
            VIEW_TAG + view for view in ("arms", "results", "samples", "runs")
        }
        order = [run.data.tags.get("order") for run in client(store).search_runs([experiment_id(store)], KIND_RUN)]
        assert sorted(order) == [f"{arm:05d}.{replicate:05d}" for arm in range(2) for replicate in range(3)]

    def test_a_repeated_sync_writes_nothing_and_a_deleted_store_gets_the_same_again(self, store, tmp_path, monkeypatch):
        directories = write_study(ABLATION, tmp_path)
        sync(directories)
        tags = tags_of(store)
        monkeypatch.setattr(experiment, "page_of", None)  # would be called
        assert sync_experiments(directories) == 0
        monkeypatch.undo()
        other = f"sqlite:///{tmp_path / 'other.db'}"
        sync(directories, other)
        assert tags_of(other) == tags

    def test_a_description_of_somebodys_own_is_left_alone(self, store, tmp_path):
        directories = write_study(ABLATION, tmp_path)
        sync_run(directories[0])
        client(store).set_experiment_tag(experiment_id(store), DESCRIPTION_TAG, "Mine.")
        sync(directories)
        assert tags_of(store)[DESCRIPTION_TAG] == "Mine." and VIEW_TAG + "arms" in tags_of(store)

    def test_the_page_follows_the_ends_of_runs(self, store, tmp_path):
        directories = write_study(ABLATION, tmp_path)
        last = directories[-1]
        last.set_status(Status("queued", step=50, num_steps=100))
        sync(directories)
        before = tags_of(store)
        assert "6 runs, of them 1 queued" in before[DESCRIPTION_TAG]
        last.set_status(Status("queued", step=60, num_steps=100))
        assert sync_experiments(directories) == 0
        last.set_status(Status("done", step=100, num_steps=100))
        assert sync_experiments(directories) == 1
        assert "6 runs, all done" in tags_of(store)[DESCRIPTION_TAG] and tags_of(store)[STAMP_TAG] != before[STAMP_TAG]

    def test_a_large_study_has_views_from_its_first_run_on_and_is_read_when_it_has_ended(
        self, store, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(experiment, "MAX_RUNS_IN_TRAINING", 5)
        directories = write_study(ABLATION, tmp_path)
        directories[-1].set_status(Status("queued", step=50, num_steps=100))
        sync_run(directories[0])
        assert sync_experiments(directories, training=True) == 1
        assert charts_of(tags_of(store), "arms") == [("LINE", "train/loss")]
        assert sync_experiments(directories, training=True) == 0
        directories[-1].set_status(Status("done", step=100, num_steps=100))
        assert sync_experiments(directories, training=True) == 1
        assert ("BAR", "eval/nll_bpd") in charts_of(tags_of(store), "arms")

    def test_scale_and_search_have_views_of_their_own(self, store, tmp_path):
        for folder in ("scaling", "search"):
            (tmp_path / folder).mkdir()
        sync(write_study(SCALING, tmp_path / "scaling"))
        assert charts_of(tags_of(store, "scaling"), "scaling")[0] == ("LINE", "eval/nll_bpd")
        sync(write_search(SEARCH, tmp_path / "search"))
        tags = tags_of(store, "hunt")
        assert charts_of(tags, "search") == [("PARALLEL", ""), ("LINE", "best/eval/nll_bpd"), ("SCATTER", "")]
        assert state_of(tags, "search")["compareRunCharts"][0]["selectedParams"] == ["optim.lr"]
        assert VIEW_TAG + "results" not in tags and VIEW_TAG + "search" not in tags_of(store, "scaling")

    def test_addresses_name_the_workflow_and_no_password(self, store, tmp_path):
        directories = write_study(ABLATION, tmp_path)
        sync(directories)
        (views,) = view_addresses(directories, server="http://me:secret@server:5000").values()
        assert [view.name for view in views] == ["Arms", "Results", "Samples", "Runs"]
        for view in views:
            assert view.address.startswith("http://server:5000/#/experiments/")
            assert "/runs?workflowType=machine_learning" in view.address
        assert view_addresses(directories, tracking_uri=f"sqlite:///{tmp_path}/none.db") == {}
        assert not (tmp_path / "none.db").exists()


KIND_RUN = "tags.kind = 'run'"


def experiment_id(uri, study="ablation"):
    return client(uri).get_experiment_by_name(study).experiment_id


# -- in a browser


@pytest.fixture(scope="module")
def addresses(tmp_path_factory, fresh_database, free_ports):
    """Serve three studies by `harness ui` from a fresh store; return the address of each view, by study and name."""
    folder, port = tmp_path_factory.mktemp("pages"), free_ports(1)
    shutil.copy(fresh_database, folder / "mlflow.db")
    write_study(ABLATION, folder)
    write_study(SCALING, folder)
    write_search(SEARCH, folder)
    command = [sys.executable, "-m", "harness.cli", "ui", "--port", str(port), "--no-browser"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "PYTHONUNBUFFERED": "1"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while "Application startup complete" not in (text := (folder / "log").read_text()):
            assert server.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.2)
        result, study = {}, ""
        for line in text.splitlines():
            if line.endswith(" in MLflow:"):
                study = line.removesuffix(" in MLflow:")
            elif study and "/#/experiments/" in line:
                name, address = line.split()
                result[study, name] = address
        yield result
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(120)


PLOTS = """return [...document.querySelectorAll('.js-plotly-plot')].filter(plot => plot.layout && plot.data.length).map(
    plot => ({
        kinds: [...new Set(plot.data.map(trace => trace.type))],
        traces: plot.data.length,
        x: (plot.layout.xaxis || {}).type,
        label: ((plot.layout.xaxis || {}).title || {}).text || (plot.layout.xaxis || {}).title,
        y: (plot.layout.yaxis || {}).type,
    }))"""


def open_view(driver, address):
    driver.get("about:blank")  # else only what follows the # would differ, and the page stay
    driver.get(address)


def wait_for(driver, condition, seconds=240):
    """Return what a condition gives as soon as it is true; fail with the page's text if it never is."""
    from selenium.common.exceptions import WebDriverException

    deadline = time.monotonic() + seconds
    while True:
        try:
            if result := condition():
                return result
        except WebDriverException:
            pass  # the page was changing
        text = driver.find_element("tag name", "body").text
        assert time.monotonic() < deadline, f"the page does not come: {text[:3000]}"
        time.sleep(0.3)


def wait_for_text(driver, *texts):
    page = driver.find_element
    return wait_for(driver, lambda: all(text in page("tag name", "body").text for text in texts))


def wait_for_plots(driver, number):
    """Return kind, axes and number of traces of the plots, once there are so many."""
    return wait_for(driver, lambda: (plots := driver.execute_script(PLOTS)) and len(plots) >= number and plots)


def headers(driver):
    return [cell.text for cell in driver.find_elements("css selector", ".ag-header-cell") if cell.text]


@pytest.mark.slow
class TestInChromium:
    def test_every_address_opens_the_page_of_trainings(self, driver, addresses):
        assert {study for study, _ in addresses} == {"ablation", "scaling", "hunt"}
        first = {study: address for (study, _), address in reversed(addresses.items())}
        for address in first.values():
            open_view(driver, address)
            wait_for_text(driver, "Runs", "matching run")
            assert "Token Usage" not in driver.find_element("tag name", "body").text

    def test_arms_are_groups_with_bars_and_curves(self, driver, addresses):
        open_view(driver, addresses["ablation", "Arms"])
        wait_for_text(driver, "Does cosine beat linear?", "Group: linear", "Group: cosine", "Results: means over")
        plots = wait_for_plots(driver, 8)
        bars = [plot for plot in plots if plot["kinds"] == ["bar"]]
        assert len(bars) >= 4  # NLL, FID, precision, recall
        assert any(plot["y"] == "log" and plot["x"] != "log" for plot in plots)  # L_t
        assert any(plot["y"] == "log" and plot["x"] == "log" for plot in plots)  # FID against sampling steps

    def test_results_are_means_with_intervals_and_their_numbers(self, driver, addresses):
        open_view(driver, addresses["ablation", "Results"])
        wait_for_text(driver, "3 of 3", "2.960 ± ", "2.460 ± ", "(n = 3)")
        assert headers(driver)[-5:-2] == ["replicates", "eval/nll_bpd", FID]

    def test_samples_of_the_arms_are_side_by_side(self, driver, addresses):
        open_view(driver, addresses["ablation", "Samples"])
        wait_for_text(driver, "eval_samples", "linear r0", "cosine r0")
        grids = """return [...document.querySelectorAll('img')].filter(
            image => image.src.includes('get-artifact') && image.naturalWidth > 30).length"""
        wait_for(driver, lambda: driver.execute_script(grids) == 2)

    def test_runs_are_rows_in_the_files_order(self, driver, addresses):
        open_view(driver, addresses["ablation", "Runs"])
        wait_for_text(driver, "linear r0", "cosine r2")
        columns = ["arm", "replicate", "state", "eval/nll_bpd", FID]  # which come after the rows, and in this order
        wait_for(driver, lambda: [name for name in headers(driver) if name in columns] == columns)
        names = [f"{arm} r{number}" for arm in ("linear", "cosine") for number in range(3)]
        text = driver.find_element("tag name", "body").text
        assert sorted(names, key=text.index) == names

    def test_scaling_has_results_against_compute_and_a_point_for_each_run(self, driver, addresses):
        open_view(driver, addresses["scaling", "Scaling"])
        wait_for_text(driver, "Against compute", "eval/nll_bpd")
        plots = wait_for(
            driver,
            lambda: [p for p in driver.execute_script(PLOTS) if "compute/train_multiply_adds" in str(p["label"])],
        )
        assert plots[0]["y"] == "log" and plots[0]["traces"] >= 3

    def test_a_search_has_each_parameter_against_the_target(self, driver, addresses):
        open_view(driver, addresses["hunt", "Search"])
        wait_for_text(driver, "Trials", "Parallel Coordinates", "optim.lr vs. eval/nll_bpd", "search hunt")


def test_a_run_that_nobody_asked_for_has_no_page(store, tmp_path):
    assert sync_experiments([RunDirectory(tmp_path / "runs" / "0123456789ab")]) == 0
    assert Manifests(tmp_path / "runs").runs("ablation") == []
