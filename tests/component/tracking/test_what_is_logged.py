"""What is logged beside rows: images, arms, the study, sources. Each exactly once, in any store, after any loss."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.errors import TrackingError
from harness.records.directory import RunDirectory
from harness.records.manifest import ask_for
from harness.records.status import Status
from harness.tracking.arms import ARM, RUN, STUDY
from harness.tracking.check import check_studies
from harness.tracking.experiment import view_addresses
from harness.tracking.store import import_mlflow
from harness.tracking.studies import sync_arms, sync_studies
from harness.tracking.sync import not_reported, sync_run, sync_runs

SCHEDULES = "noise-schedule"


def client(uri):
    return import_mlflow().MlflowClient(tracking_uri=uri)


def runs_in(uri, study=SCHEDULES, kind=None):
    """Return the runs of an experiment by their names."""
    experiment = client(uri).get_experiment_by_name(study)
    query = f"tags.kind = '{kind}'" if kind else ""
    found = client(uri).search_runs([experiment.experiment_id], query)
    named = {run.info.run_name: run for run in found}
    assert len(named) == len(found), "names are unique"
    return named


def artifacts_of(uri, run, folder=None):
    """Return the paths and bytes of a run's artifacts."""
    contents = {}
    for item in client(uri).list_artifacts(run.info.run_id, folder):
        if item.is_dir:
            contents |= artifacts_of(uri, run, item.path)
        else:
            contents[item.path] = Path(client(uri).download_artifacts(run.info.run_id, item.path)).read_bytes()
    return contents


VARYING = ("mlflow.parentRunId",)


def content(uri, study=SCHEDULES):
    """Return all that a store has of a study, but for MLflow's random ids, by the runs' names."""
    runs = runs_in(uri, study)
    names = {run.info.run_id: name for name, run in runs.items()}
    everything = {}
    for name, run in runs.items():
        histories = [client(uri).get_metric_history(run.info.run_id, key) for key in run.data.metrics]
        everything[name] = {
            "tags": {key: value for key, value in run.data.tags.items() if key not in VARYING},
            "parent": names.get(run.data.tags.get("mlflow.parentRunId")),
            "params": run.data.params,
            "rows": sorted((row.key, row.step, row.value, row.timestamp) for part in histories for row in part),
            "state": (run.info.status, run.info.start_time, run.info.end_time),
            "inputs": [(given.dataset.name, given.dataset.digest) for given in run.inputs.dataset_inputs],
            "artifacts": artifacts_of(uri, run),
        }
    return everything


def page(uri, study=SCHEDULES):
    """Return the description and the views of an experiment."""
    return client(uri).get_experiment_by_name(study).tags


def make_run(runs, number, arm, replicate, *, nll, state="done"):
    """Write the records of a run with one evaluation and its sample grid."""
    spec = {"seed": replicate, "arm": arm, "diffusion": {"num_timesteps": 10}}
    run = RunDirectory(runs / f"{number:012x}").create(spec, schema_version=1)
    run.add_to_study(SCHEDULES, {"arm": arm, "replicate": replicate, "evaluations": []})
    run.samples_folder.mkdir()
    picture = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(picture).save(run.samples_folder / "eval_samples.png")
    run.write_environment(
        1,
        {
            "code_version": "0.1.0+gabc",
            "git": {"commit": "a" * 40, "branch": "main", "dirty": True},
            "user": "ada",
            "data_digest": "d" * 64,
        },
    )
    with run.lock(), run.open_journal(resumed_from_step=0) as journal:
        for step in range(1, 5):
            journal.metrics(step, {"train/loss": step / 7, "train/loss_q0": 1.0, "system/process_cpu_percent": 9.0})
        journal.event("checkpoint", step=4)
        journal.metrics(4, {"eval/nll_bpd": nll, "eval/L_T_bpd": 0.001, "compute/parameters": 5000.0})
        journal.metrics(3, {"eval/L_t_bpd": 0.1}, train_step=4)
        if state == "done":
            journal.event("evaluation", step=4, key="0" * 16, evaluation="eval", prefix="eval", parts=["nll", "grid"])
        run.set_status(Status(state, step=4, num_steps=4, attempt=journal.attempt))
    return run


@pytest.fixture
def study(tmp_path):
    """Two arms of two replicates, asked for in the order of the file, with the study's file and a figure of it."""
    runs = tmp_path / "runs"
    values = [("cosine", 0, 2.0), ("cosine", 1, 2.5), ("linear", 0, 3.0), ("linear", 1, 3.25)]
    made = [make_run(runs, 10 + n, arm, replicate, nll=nll) for n, (arm, replicate, nll) in enumerate(values)]
    file = tmp_path / "study.yaml"
    file.write_text("study: noise-schedule\n")
    ask(runs, made, file)
    drawn = tmp_path / "figures" / SCHEDULES
    drawn.mkdir(parents=True)
    (drawn / "samples.png").write_bytes((made[0].samples_folder / "eval_samples.png").read_bytes())
    return made


def ask(runs, members, file=None, **renamed):
    places = {run.key: run.studies()[SCHEDULES] for run in members}
    places = {key: place | {"arm": renamed.get(place["arm"], place["arm"])} for key, place in places.items()}
    ask_for(runs, SCHEDULES, places, file=file or runs.parent / "study.yaml")


def sync(members, uri):
    for _, report in sync_runs(members, tracking_uri=uri):
        assert not isinstance(report, Exception), report
    return sync_studies(members, tracking_uri=uri)


def forget_cursors(members):
    for run in members:
        shutil.rmtree(run.tracking_folder)
    shutil.rmtree(members[0].path.parent / ".studies" / SCHEDULES / "tracking")


def test_a_replay_a_new_store_and_another_order_give_the_same_content(study, store, fresh_database, tmp_path):
    sync(study, store)
    before = content(store)
    assert sync(study, store) == 0
    forget_cursors(study)
    sync(study, store)
    assert content(store) == before
    shutil.copy(fresh_database, tmp_path / "mlflow.db")  # the store is deleted, and its runs' ids are worth nothing
    shutil.rmtree(tmp_path / "mlartifacts")
    sync(study[::-1], store)
    assert content(store) == before


def test_whatever_is_deleted_in_mlflow_is_there_again_after_the_next_sync(study, store):
    sync(study, store)
    before = content(store)
    experiment_id = client(store).get_experiment_by_name(SCHEDULES).experiment_id
    client(store).delete_experiment(experiment_id)
    with pytest.raises(TrackingError, match="was deleted in MLflow; restore it"):
        sync(study, store)
    client(store).restore_experiment(experiment_id)
    sync(study, store)
    assert content(store) == before
    for kind, name in ((ARM, "cosine"), (STUDY, SCHEDULES), (RUN, "linear r1")):
        client(store).delete_run(runs_in(store, kind=kind)[name].info.run_id)
        sync(study, store)
        assert content(store) == before
    tags = page(store)
    client(store).rename_experiment(experiment_id, "of no use")  # whose name is free then, as after `mlflow gc`
    client(store).delete_experiment(experiment_id)
    sync(study, store)
    assert content(store) == before and page(store) == tags


def test_content_that_was_sent_while_runs_ended_is_that_of_one_upload_at_the_end(
    study, store, fresh_database, tmp_path
):
    for number in range(1, 5):
        sync_run(study[number - 1], tracking_uri=store)
        sync_arms(study[:number], tracking_uri=store)
    sync_studies(study, tracking_uri=store)
    other = tmp_path / "other" / "mlflow.db"
    other.parent.mkdir()
    shutil.copy(fresh_database, other)
    sync(study, f"sqlite:///{other}")
    assert content(f"sqlite:///{other}") == content(store)


class TestArms:
    def test_each_arm_is_a_parent_with_the_mean_of_its_replicates_beneath_it(self, study, store):
        sync(study, store)
        arms = runs_in(store, kind=ARM)
        assert arms.keys() == {"cosine", "linear"}
        metrics = arms["cosine"].data.metrics
        assert (metrics["eval/nll_bpd"], metrics["eval/nll_bpd.n"]) == (2.25, 2)
        assert (metrics["eval/nll_bpd.low"], metrics["eval/nll_bpd.high"]) == (2.0, 2.5)
        assert not [key for key in metrics if key.startswith("system/") or "_q0" in key or "L_t" in key]
        tags = arms["cosine"].data.tags
        assert (tags["compute/parameters"], tags["eval/L_T_bpd"]) == ("5000 (n = 2)", "0.001 (n = 2)")
        assert not [key for key in metrics if key.startswith(("compute/parameters", "eval/L_T"))]
        assert (tags["eval/nll_bpd"], tags["replicates"]) == ("2.000 / 2.500 (n = 2)", "2 of 2")
        assert arms["cosine"].info.status == "FINISHED"
        parents = {name: run.data.tags["mlflow.parentRunId"] for name, run in runs_in(store, kind=RUN).items()}
        ids = {name: arm.info.run_id for name, arm in arms.items()}
        assert parents == {f"{arm} r{number}": ids[arm] for arm in ids for number in (0, 1)}

    def test_an_arm_that_was_renamed_is_marked_and_its_runs_move(self, study, store):
        sync(study, store)
        ask(study[0].path.parent, study, cosine="squared-cosine")
        sync(study, store)
        arms = runs_in(store, kind=ARM)
        asked = {name: arm.data.tags["asked_for"] for name, arm in arms.items()}
        assert asked == {"cosine": "false", "squared-cosine": "true", "linear": "true"}
        parent = runs_in(store, kind=RUN)["squared-cosine r0"].data.tags["mlflow.parentRunId"]
        assert parent == arms["squared-cosine"].info.run_id
        ask(study[0].path.parent, study)
        sync(study, store)
        asked = {name: arm.data.tags["asked_for"] for name, arm in runs_in(store, kind=ARM).items()}
        assert asked == {"cosine": "true", "squared-cosine": "false", "linear": "true"}

    def test_the_mean_is_of_the_replicates_that_the_study_asks_for_now(self, study, store):
        sync(study, store)
        ask(study[0].path.parent, [study[0], *study[2:]])
        sync(study, store)
        arm = runs_in(store, kind=ARM)["cosine"]
        assert (arm.data.metrics["eval/nll_bpd"], arm.data.metrics["eval/nll_bpd.n"]) == (2.0, 1)
        assert arm.data.tags["replicates"] == "1 of 1"
        assert runs_in(store, kind=RUN)["cosine r1"].data.tags["asked_for"] == "false"

    def test_a_run_whose_place_another_one_took_has_a_name_of_its_own(self, study, store):
        sync(study, store)
        again = make_run(study[0].path.parent, 99, "cosine", 1, nll=2.75)
        ask(study[0].path.parent, [study[0], *study[2:], again])
        sync([*study, again], store)
        assert runs_in(store, kind=RUN).keys() == {
            "cosine r0",
            "cosine r1",
            f"cosine r1 ({study[1].key[:8]})",
            "linear r0",
            "linear r1",
        }

    def test_a_run_that_still_trains_is_not_in_the_mean(self, study, store):
        running = make_run(study[0].path.parent, 99, "cosine", 2, nll=9.0, state="interrupted")
        ask(study[0].path.parent, [*study, running])
        sync([*study, running], store)
        arm = runs_in(store, kind=ARM)["cosine"]
        assert (arm.data.metrics["eval/nll_bpd"], arm.data.tags["state"]) == (2.25, "2 done, 1 interrupted")
        assert arm.info.status == "KILLED"


class TestTheStudy:
    def test_it_is_a_run_with_its_file_its_figures_and_its_state(self, study, store):
        sync(study, store)
        [run] = runs_in(store, kind=STUDY).values()
        assert (run.info.run_name, run.data.tags["state"]) == (SCHEDULES, "4 done")
        files = artifacts_of(store, run)
        assert files["study.yaml"] == b"study: noise-schedule\n"
        assert "figures/samples.png" in files

    def test_a_file_is_sent_again_when_it_has_another_content(self, study, store, tmp_path):
        sync(study, store)
        assert sync_studies(study, tracking_uri=store) == 0
        (tmp_path / "figures" / SCHEDULES / "samples.png").write_bytes(b"drawn again")
        assert sync_studies(study, tracking_uri=store) == 1
        [run] = runs_in(store, kind=STUDY).values()
        assert artifacts_of(store, run)["figures/samples.png"] == b"drawn again"

    def test_a_study_with_runs_to_do_is_left_out_on_request(self, study, store):
        study[3].set_status(Status("queued"))
        assert sync_studies(study, tracking_uri=store, ended_only=True) == 0
        assert sync_studies(study, tracking_uri=store) == 3


def test_numbers_that_no_training_changes_are_tags_and_no_charts_of_one_dot(study, store):
    sync(study, store)
    data = runs_in(store, kind=RUN)["cosine r0"].data
    assert (data.tags["compute/parameters"], data.tags["eval/L_T_bpd"]) == ("5000", "0.001")
    assert data.metrics.keys() == {
        *("train/loss", "train/loss_q0", "system/process_cpu_percent", "eval/nll_bpd", "eval/L_t_bpd")
    }


class TestCheck:
    def test_arms_and_the_study_are_compared_and_what_is_missing_is_named(self, study, store):
        assert [report.lines() for report in check_studies(study, tracking_uri=store).values()] == [
            ["noise-schedule: the run of the arm 'cosine' is not in MLflow: harness sync"],
            ["noise-schedule: the run of the arm 'linear' is not in MLflow: harness sync"],
            ["noise-schedule: the run of the study 'noise-schedule' is not in MLflow: harness sync"],
        ]
        sync(study, store)
        reports = check_studies(study, tracking_uri=store)
        assert list(reports) == [(SCHEDULES, "cosine"), (SCHEDULES, "linear"), (SCHEDULES, "")]
        assert all(report.ok for report in reports.values()) and reports[SCHEDULES, "cosine"].num_rows_compared >= 4
        make_run(study[0].path.parent, 99, "cosine", 2, nll=9.0)
        ask(study[0].path.parent, [*study, RunDirectory(study[0].path.parent / f"{99:012x}")])
        summaries = {arm: report.summary() for (_, arm), report in check_studies(study, tracking_uri=store).items()}
        assert "missing in MLflow; the first: noise-schedule: the tag " in summaries["cosine"]
        assert summaries["linear"] == ""
        assert "the tag state is '4 done' in MLflow, not '5 done'" in summaries[""]


class TestImages:
    def test_a_sample_grid_is_an_image_with_key_step_and_a_name_that_is_a_function_of_the_run(self, study, store):
        sync_run(study[0], tracking_uri=store)
        [run] = runs_in(store, kind=RUN).values()
        names = [path for path in artifacts_of(store, run) if path.startswith("images/")]
        assert len(names) == 2
        assert all(name.startswith("images/eval_samples+step+4+timestamp+") for name in names)
        assert {Path(name).suffix for name in names} == {".png", ".webp"}
        assert run.data.tags["mlflow.loggedImages"] == "True"
        png = next(name for name in names if name.endswith(".png"))
        stored = client(store).download_artifacts(run.info.run_id, png)
        with Image.open(stored) as sent, Image.open(study[0].samples_folder / "eval_samples.png") as own:
            assert np.array_equal(np.asarray(sent), np.asarray(own))

    def test_another_step_is_another_image_and_another_content_replaces_its_image(self, study, store):
        sync_run(study[0], tracking_uri=store)
        Image.new("RGB", (8, 8)).save(study[0].samples_folder / "eval_samples.png")
        sync_run(study[0], tracking_uri=store)
        [run] = runs_in(store, kind=RUN).values()
        assert len(client(store).list_artifacts(run.info.run_id, "images")) == 2
        with study[0].lock(), study[0].open_journal(resumed_from_step=4) as journal:
            journal.event("evaluation", step=8, key="1" * 16, evaluation="eval", prefix="eval", parts=["grid"])
        sync_run(study[0], tracking_uri=store)
        assert len(client(store).list_artifacts(run.info.run_id, "images")) == 4

    def test_a_file_that_is_no_picture_is_named_and_stops_nothing_else(self, study, store):
        (study[0].samples_folder / "eval_samples.png").write_bytes(b"no picture")
        report = sync_run(study[0], tracking_uri=store)
        assert len(report.problems) == 1 and report.problems[0].startswith("samples/eval_samples.png: is no picture")
        [run] = runs_in(store, kind=RUN).values()
        assert run.info.status == "FINISHED"


class TestSources:
    def test_source_version_and_user_are_those_of_the_run(self, study, store, tmp_path):
        sync_run(study[0], tracking_uri=store)
        [run] = runs_in(store, kind=RUN).values()
        shown = {name: value for name, value in run.data.tags.items() if name.startswith(("mlflow.source", "mlflow.u"))}
        assert shown == {
            "mlflow.source.git.commit": "a" * 40,
            "mlflow.source.git.branch": "main",
            "mlflow.source.git.dirty": "True",
            "mlflow.source.name": str(tmp_path / "study.yaml"),
            "mlflow.source.type": "LOCAL",
            "mlflow.user": "ada",
        }

    def test_records_of_an_earlier_version_have_the_commit_of_their_code_snapshot(self, study, store):
        frozen = study[0].path.parent / ".code" / "0123456789abcdef"
        frozen.mkdir(parents=True)
        git = {"commit": "b" * 40, "branch": "old", "dirty": False}
        (frozen / ".snapshot.json").write_text(json.dumps({"id": frozen.name, "git": git, "files": {}}))
        study[0].write_environment(1, {"code_snapshot": frozen.name})
        sync_run(study[0], tracking_uri=store)
        [run] = runs_in(store, kind=RUN).values()
        assert run.data.tags["mlflow.source.git.commit"] == "b" * 40

    def test_no_tag_is_empty(self, study, store):
        sync(study, store)
        assert [
            (name, key) for name, run in runs_in(store).items() for key, value in run.data.tags.items() if not value
        ] == []


class TestExperiments:
    def test_an_experiment_that_was_renamed_in_mlflow_stays_the_study_s(self, study, store):
        sync(study[:2], store)
        experiment = client(store).get_experiment_by_name(SCHEDULES)
        client(store).rename_experiment(experiment.experiment_id, "ours")
        sync(study, store)
        assert client(store).get_experiment_by_name(SCHEDULES) is None
        assert runs_in(store, "ours", RUN).keys() == {"cosine r0", "cosine r1", "linear r0", "linear r1"}


class TestRunsOfAKilledSubmitter:
    def end_long_ago(self, run, state="done"):
        """Write a status as old as those are that nobody will upload any more."""
        run.set_status(Status(state, step=4, num_steps=4, attempt=1))
        entry = json.loads(run.status_path.read_text())
        run.status_path.write_text(json.dumps(entry | {"updated_seconds": 1e9}))

    def test_a_run_that_ended_since_the_last_upload_is_left_over(self, study, store):
        assert not_reported(study, store) == []  # nothing was ever uploaded, so nobody asked for it
        sync_run(study[0], tracking_uri=store)
        for run in study:
            self.end_long_ago(run)
        assert not_reported(study, store) == study[1:]
        study[1].set_status(Status("done", step=4, num_steps=4, attempt=1))  # just now: its job uploads it
        assert not_reported(study, store) == study[2:]
        sync(study, store)
        assert not_reported(study, store) == []

    @pytest.mark.slow
    def test_the_next_verb_that_touches_the_study_uploads_it(self, study, store):
        sync(study[:3], store)
        for run in study:
            self.end_long_ago(run)
        command = [sys.executable, "-m", "harness.cli", "status", SCHEDULES, "--runs", str(study[0].path.parent)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        log = study[3].tracking_folder / "sync.log"
        assert f"1 run has ended since the last upload to MLflow; uploading (log: {log})" in done.stdout
        deadline = time.monotonic() + 240
        while not_reported(study, store):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        assert runs_in(store, kind=RUN)["linear r1"].info.status == "FINISHED"


@pytest.mark.slow
def test_a_server_with_users_has_the_same_content_as_a_file_and_a_replay_adds_nothing(
    study, store, tmp_path, fresh_database, start_server, monkeypatch, driver
):
    sync(study, store)
    shutil.copy(fresh_database, tmp_path / "server.db")
    server = start_server(tmp_path, admin_password="geheim-geheim")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "something else")
    with pytest.raises(TrackingError, match=r"401|not authenticated"):
        sync(study, server.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "geheim-geheim")
    sync(study, server.uri)
    forget_cursors(study)
    sync(study, server.uri)
    assert content(server.uri) == content(store)
    assert all(report.ok for report in check_studies(study, tracking_uri=server.uri).values())
    assert page(server.uri) == page(store)
    views = {view.name: view.address for view in view_addresses(study, tracking_uri=server.uri)[SCHEDULES]}
    driver.get(server.uri.replace("//", "//admin:geheim-geheim@"))  # the browser keeps them for this server
    driver.get(views["Results"])
    deadline = time.monotonic() + 240
    while not all(text in driver.find_element("tag name", "body").text for text in ("cosine", "linear", "2 of 2")):
        assert time.monotonic() < deadline, driver.find_element("tag name", "body").text
        time.sleep(0.3)
