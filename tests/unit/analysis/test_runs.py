import json

import numpy as np
import pytest

from harness.analysis.answers import results
from harness.analysis.runs import arm_index, by_arm, count_states, load_records, load_runs, study_names
from harness.errors import RecordError
from harness.records.directory import RunDirectory
from harness.records.manifest import Manifests, ask_for

NLL = "evaluate:\n  - {name: eval, nll: {}}\n"


def test_a_run_gives_its_arm_curves_final_values_and_arrays(study_runs):
    folder = study_runs("grid: {diffusion.schedule: [linear]}\n" + NLL, lambda run: {"nll": 2.25})
    (run,) = load_records(folder, "small")
    assert (run.study, run.arm, run.replicate, run.state, run.code_version) == ("small", "linear", 0, "done", "1.2.3")
    steps, values = run.history("train/mse")
    assert steps.tolist() == list(range(10, 101, 10))
    assert values.tolist() == [10 / step for step in steps]
    (one,) = run.measured("nll")
    assert run.nll(one) == 2.25
    assert run.arrays("eval_likelihood.npz")["L_t_bpd"][0] == 2.25 / 2
    assert run.arrays("absent.npz") == {}
    assert np.isnan(run.final("absent"))


def test_arms_are_in_the_order_of_the_studys_file_and_without_a_manifest_by_schedule(study_runs):
    arms = "arms: {zebra: {diffusion.schedule: cosine}, ant: {}, bee: {optim.lr: 1.0e-3}}\nreplicates: 2\n"
    folder = study_runs(arms, lambda run: {})
    assert list(by_arm(load_records(folder))) == ["ant", "bee", "zebra"]
    manifests, asked = Manifests(folder), {}
    for arm in ("zebra", "ant", "bee"):
        for run in by_arm(load_records(folder))[arm]:
            asked[run.run_key] = manifests.memberships(RunDirectory(run.folder))["small"]
    ask_for(folder, "small", asked)
    records = load_records(folder)
    assert [(run.arm, run.replicate) for run in records] == [
        (arm, replicate) for arm in ("zebra", "ant", "bee") for replicate in (0, 1)
    ]


def test_rows_past_a_resumed_checkpoint_are_left_out(study_runs):
    folder = study_runs("", lambda run: {})
    (run,) = load_records(folder)
    directory = RunDirectory(run.folder)
    with directory.lock(), directory.open_journal(resumed_from_step=50) as journal:
        journal.metrics(60, {"train/mse": 7.0})
    (run,) = load_records(folder)
    assert run.history("train/mse")[0].tolist() == [10, 20, 30, 40, 50, 60]
    assert run.final("train/mse") == 7.0


def test_arms_stand_in_the_papers_order_and_numbers_as_numbers(study_runs):
    grid = """
grid:
  diffusion.schedule: [cosine, linear]
  objective & diffusion.var_type: [[vlb, learned_range], [simple, fixed], [hybrid, learned_range]]
  model.channels: [16, 8]
replicates: 2
"""
    runs = load_records(study_runs(grid, lambda run: {}))
    arms = list(by_arm(runs))
    assert arms[:4] == [
        "linear-simple-channels=8",
        "linear-simple-channels=16",
        "linear-hybrid-channels=8",
        "linear-hybrid-channels=16",
    ]
    assert arms[-1] == "cosine-vlb-channels=16"
    assert arm_index(runs)["linear-hybrid-channels=8"] == 2
    assert [run.replicate for run in runs[:4]] == [0, 1, 0, 1]


def test_a_study_sees_only_the_evaluations_that_it_asks_for(study_runs):
    folder = study_runs(NLL, lambda run: {})
    (run,) = load_records(folder)
    facts = RunDirectory(run.folder).studies()["small"]
    RunDirectory(run.folder).add_to_study("other", facts | {"arm": "theirs", "evaluations": []})
    small, other = sorted(load_records(folder), key=lambda one: one.study, reverse=True)
    assert [one.name for one in small.measurements] == ["eval"]
    assert (other.arm, other.measurements) == ("theirs", ())
    assert study_names(folder) == ["other", "small"]
    assert load_records(folder, "absent") == []


def test_an_evaluation_of_an_earlier_harness_with_fewer_parts_is_still_found(study_runs):
    folder = study_runs(NLL, lambda run: {"nll": 2.0})
    (run,) = load_records(folder)
    (path,) = (run.folder / "evaluations").iterdir()
    stored, facts = json.loads(path.read_text()), RunDirectory(run.folder).studies()["small"]
    del stored["evaluation"]["batch_size"], facts["evaluations"][0]["batch_size"]
    path.write_text(json.dumps(stored))
    RunDirectory(run.folder).add_to_study("small", facts)
    (run,) = load_records(folder)
    assert [run.nll(one) for one in run.measured("nll")] == [2.0]


def test_untrained_weights_are_told_from_trained_ones(study_runs):
    extra = NLL + "  - {name: eval_untrained, nll: {}, weights: untrained}\n"
    (run,) = load_records(study_runs(extra, lambda run: {}))
    assert [one.name for one in run.measured("nll")] == ["eval"]
    assert [one.name for one in run.measured("nll", trained=False)] == ["eval_untrained"]


def test_unfinished_runs_are_counted(study_runs):
    runs = load_records(
        study_runs("replicates: 3\n", lambda run: {"state": ["done", "failed", "queued"][run.replicate]})
    )
    assert count_states(runs) == "3 runs, of them 1 queued, 1 failed"
    assert count_states(runs[:1]) == "1 run, all done"


@pytest.mark.parametrize("damage", ["header", "environment"])
def test_a_run_whose_records_cannot_be_read_is_kept_as_failed(study_runs, damage):
    folder = study_runs(NLL, lambda run: {})
    (run,) = load_records(folder)
    path = run.folder / ("journal-0001.jsonl" if damage == "header" else "environment.json")
    path.write_bytes(b"x" + path.read_bytes()[1:])
    (run,) = load_records(folder)
    assert run.state == "failed"
    assert "cannot be read" in run.status.reason
    assert run.measurements == ()


def test_a_torn_line_is_named_beside_the_run(study_runs):
    folder = study_runs("", lambda run: {})
    (run,) = load_records(folder)
    with (run.folder / "journal-0001.jsonl").open("ab") as file:
        file.write(b"0000")
    (run,) = load_records(folder)
    assert run.problems == ("journal-0001.jsonl: torn last line dropped (4 bytes)",)


def test_a_folder_that_is_missing_has_no_runs(tmp_path):
    assert load_records(tmp_path / "absent") == []
    assert study_names(tmp_path / "absent") == []


def test_runs_of_one_arm_that_differ_in_more_than_their_seed_are_arms_of_their_own(study_runs):
    """A folder of a version that wrote no manifest: 3 replicates of 20 steps, then 2 of 400 steps."""
    study_runs("arms: {all: {train.steps: 20}}\nreplicates: 3\n" + NLL, lambda run: {"nll": 9999.0})
    folder = study_runs("arms: {all: {train.steps: 400}}\nreplicates: 2\n" + NLL, lambda run: {"nll": 3.0})
    runs = load_records(folder)
    assert {(run.arm, run.replicate, run.spec["train"]["steps"]) for run in runs} == {
        *(("all (train.steps=20)", replicate, 20) for replicate in range(3)),
        *(("all (train.steps=400)", replicate, 400) for replicate in range(2)),
    }
    frame = results.data(runs)
    means = frame[frame["model"] == "trained"].set_index("arm")["mean"].to_dict()
    assert means == {"all (train.steps=20)": 9999.0, "all (train.steps=400)": 3.0}


def test_two_seeds_under_one_replicates_number_are_two_values(study_runs):
    study_runs("seed: 0\nreplicates: 2\n" + NLL, lambda run: {"nll": 1.0 + run.replicate})
    folder = study_runs("seed: 7\nreplicates: 1\n" + NLL, lambda run: {"nll": 3.0})
    frame = results.data(load_records(folder))
    [values] = frame.loc[frame["model"] == "trained", "values"]
    assert sorted(values.split()) == ["1", "2", "3"]


# -- tables


SWEEP = """
grid: {diffusion.schedule: [linear, cosine]}
replicates: 2
evaluate: [{name: eval, nll: {}, sweep: {num_samples: 64, num_steps: [5, 10]}}]
"""


def test_a_table_has_a_row_for_each_run_with_its_spec_by_dotted_paths_and_its_final_metrics(study_runs):
    folder = study_runs(SWEEP, lambda run: {"nll": 2.0 + run.replicate})
    frame = load_runs("small", runs_folder=folder).runs
    assert list(frame["arm"]) == ["linear", "linear", "cosine", "cosine"]
    assert list(frame["replicate"]) == [0, 1, 0, 1]
    assert set(frame["study"]) == {"small"} and set(frame["state"]) == {"done"} and set(frame["step"]) == {100}
    assert list(frame["diffusion.schedule.name"]) == list(frame["arm"])
    assert set(frame["diffusion.num_timesteps"]) == {50} and set(frame["seed"]) == {0, 1}
    assert list(frame["eval/nll_bpd"]) == [2.0, 3.0, 2.0, 3.0]
    assert set(frame["train/mse"]) == {0.1}, "the value at the last step"
    assert frame["model.channel_mult"].iloc[0] == [1]


def test_curves_over_something_else_than_training_are_no_columns_of_the_table_but_stand_in_the_curves(study_runs):
    runs = load_runs(runs_folder=study_runs(SWEEP, lambda run: {"ancestral": 1.0}))
    assert not [name for name in runs.runs if name.startswith("sweep/")]
    curves = runs.curves
    assert list(curves.columns) == ["run_key", "key", "step", "value"]
    sweep = curves[curves["key"] == "sweep/fid_digitsnet_64_ancestral"]
    assert sweep.groupby("run_key")["step"].apply(list).tolist() == [[5, 10]] * 4
    assert set(sweep["value"]) == {21.0, 11.0}
    loss = curves[(curves["key"] == "train/loss") & (curves["run_key"] == runs.runs["run_key"][0])]
    assert loss["step"].tolist() == list(range(10, 101, 10))


def test_a_run_of_two_studies_has_two_rows_and_one_set_of_curves(study_runs):
    folder = study_runs("", lambda run: {})
    (record,) = load_records(folder)
    directory = RunDirectory(record.folder)
    directory.add_to_study("other", directory.studies()["small"] | {"arm": "same"})
    runs = load_runs(runs_folder=folder)
    assert runs.runs[["study", "arm"]].values.tolist() == [["other", "same"], ["small", "base"]]
    assert len(runs.curves) == len(load_runs("small", runs_folder=folder).curves)


def test_arrays_of_a_run_are_read_by_name_and_what_is_not_there_is_refused_with_the_choices(study_runs):
    runs = load_runs("small", runs_folder=study_runs(NLL, lambda run: {"nll": 2.0}))
    (key,) = runs.runs["run_key"]
    assert runs.array(key, "eval_likelihood.npz")["L_t_bpd"][0] == 1.0
    with pytest.raises(RecordError, match=r"no arrays 'eval.npz'; choices: eval_likelihood.npz"):
        runs.array(key, "eval.npz")
    with pytest.raises(RecordError, match=rf"no run 'abc' was loaded; choices: {key}"):
        runs.array("abc", "eval_likelihood.npz")


def test_a_study_that_has_no_runs_is_refused_with_the_choices_and_an_empty_folder_gives_empty_tables(
    study_runs, tmp_path, monkeypatch
):
    monkeypatch.setenv("HARNESS_RUNS", str(study_runs("", lambda run: {})))
    assert len(load_runs().runs) == 1
    with pytest.raises(RecordError, match=r"no run in .* belongs to study 'smal'; choices: small"):
        load_runs("smal")
    empty = load_runs(runs_folder=tmp_path / "absent")
    assert empty.runs.empty and list(empty.curves.columns) == ["run_key", "key", "step", "value"]
