"""`harness evaluate`: measurements that are added to runs whose training has ended."""

import json
import shutil

import pytest
from click.testing import CliRunner

from harness.cli import cli
from harness.errors import LaunchError, SpecError
from harness.job.added import fidelity_protocols
from harness.job.job import run_job
from harness.records.directory import RunDirectory
from harness.records.disk import checkpoint_files
from harness.records.manifest import Manifests, ask_for
from harness.spec.protocols import protocol_id
from harness.study.expand import load_study
from harness.testing import tiny_study, write_run

POINTS = """
study: points
data: mog
diffusion: {num_timesteps: 10, schedule: cosine}
model: {name: mlp, width: 16}
train: {steps: 4, batch_size: 8, ema_rate: 0.5}
resources: {device: cpu, threads: 1}
records: {checkpoint_every_seconds: 0, keep_every: 1}
replicates: 2
evaluate:
  - {batch_size: 16, fidelity: {num_samples: 32, num_steps: 3, k: 5}}
"""
FID = "fid_coordinates_32_{}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Write the folder of a study of two runs, of which the first is done and the second has not begun."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "points.yaml").write_text(POINTS)
    runs = load_study(folder / "points.yaml").runs
    directories = [write_run(run, folder / "runs") for run in runs]
    ask_for(folder / "runs", "points", {run.run_key: run.membership() for run in runs}, file=folder / "points.yaml")
    assert run_job(directories[0].path, sync=False, show_progress=False) == "done"
    return folder


@pytest.fixture
def study(trained, tmp_path):
    """Return the runs folder and the run that is done, in a copy of their own."""
    shutil.copytree(trained, tmp_path / "study")
    runs = tmp_path / "study" / "runs"
    return runs, Manifests(runs).runs("points")[0]


def harness(runs, *arguments: str):
    """Return the document that a command prints, and its messages; raise what it raises."""
    result = CliRunner().invoke(cli, [*arguments, "--runs", str(runs), "--json"])
    if result.exception:
        raise result.exception
    return json.loads(result.stdout), result.stderr


def weights_and_rows(directory: RunDirectory):
    checkpoints = [path.name for _, path in checkpoint_files(directory.checkpoints_folder)]
    return checkpoints, [(row.key, row.value) for row in directory.rows() if row.key.startswith(("train/", "eval/"))]


def test_numbers_of_steps_and_a_sampler_are_measurements_of_their_own_that_the_study_then_asks_for(study):
    runs, directory = study
    before = weights_and_rows(directory)
    results, messages = harness(runs, "evaluate", "points", "--sampler", "ddim", "--num-steps", "2,5", "--no-sync")
    assert f"left out: run {Manifests(runs).runs('points')[1].key} is at step 0 of 4: harness submit" in messages
    [result] = results
    expected = {f"eval_ddim{steps}/{FID.format(f'ddim{steps}')}" for steps in (2, 5)}
    assert {name for name in result["metrics"] if "/fid_" in name} == expected
    assert (result["run_key"], result["step"], result["state"]) == (directory.key, 4, "done")
    assert weights_and_rows(directory) == before
    asked = Manifests(runs).memberships(directory)["points"]["evaluations"]
    assert [one["name"] for one in asked] == ["eval", "eval_ddim2", "eval_ddim5"]
    assert asked[2]["fidelity"] == asked[0]["fidelity"] | {"num_steps": 5, "sampler": asked[2]["fidelity"]["sampler"]}
    attempts = len(directory.attempts())
    again, _ = harness(runs, "evaluate", "points", "--sampler", "ddim", "--num-steps", "2,5", "--no-sync")
    assert again == results
    everything, _ = harness(runs, "evaluate", directory.key, "--no-sync")
    assert everything[0]["metrics"].items() > result["metrics"].items()
    assert len(directory.events("evaluation")) == 3 and len(directory.attempts()) == attempts + 2


def test_a_named_protocol_is_a_measurement_of_its_own_with_what_it_leaves_free_as_the_study_has_it(tmp_path):
    extra = "evaluate: [{seed: 7, batch_size: 16, fidelity: {num_samples: 16, num_steps: 5, metrics: [kid]}}]\n"
    [run] = tiny_study(tmp_path, extra, ["diffusion.num_timesteps=100"])
    directory = write_run(run, tmp_path / "runs")
    ask_for(tmp_path / "runs", "tiny", {run.run_key: run.membership()})
    [evaluation] = fidelity_protocols(directory, protocol="laptop", inception=False)
    assert (evaluation.name, evaluation.seed, evaluation.batch_size) == ("eval_laptop", 7, 16)
    assert evaluation.fidelity.metrics == ("kid",) and evaluation.fidelity.num_samples == 2000
    assert protocol_id(evaluation.model_dump(mode="json"), 100) == "laptop"


def test_the_printed_lines_are_the_same_measurements_in_the_studys_file(study, tmp_path):
    runs, directory = study
    options = ("--sampler", "ddim", "--num-steps", "2", "--num-samples", "48", "--no-sync")
    _, messages = harness(runs, "evaluate", directory.key[:6], *options)
    lines = [line[2:] for line in messages.splitlines() if line.startswith("  ")]
    added = "\n".join(lines[lines.index("evaluate:") + 1 :])
    path = tmp_path / "again.yaml"
    path.write_text(POINTS + "\n".join(f"  {line}" for line in added.splitlines()) + "\n")
    keys = {evaluation.key for evaluation in load_study(path).runs[0].evaluations}
    assert keys == {event.fields["key"] for event in directory.events("evaluation")}


def test_an_earlier_checkpoint_is_measured_and_not_recorded(study):
    runs, directory = study
    before = weights_and_rows(directory)
    [by_step], _ = harness(runs, "evaluate", "points/base/0", "--checkpoint", "2", "--num-steps", "3")
    path = dict(checkpoint_files(directory.checkpoints_folder))[2]
    [by_file], _ = harness(runs, "evaluate", str(path), "--num-steps", "3")
    assert by_step == by_file and by_step["step"] == 2
    [last], _ = harness(runs, "evaluate", directory.key, "--checkpoint", "4", "--num-steps", "3")
    name = FID.format("ancestral3")
    recorded = dict(before[1])[f"eval/{name}"]
    assert last["metrics"][f"eval_ancestral3/{name}"] == recorded != by_step["metrics"][f"eval_ancestral3/{name}"]
    assert weights_and_rows(directory) == before and len(directory.attempts()) == 1


def test_what_cannot_be_evaluated_is_refused_before_anything_is_asked_for(study):
    runs, directory = study
    other = Manifests(runs).runs("points")[1]
    for arguments, error, message in (
        ((other.key,), LaunchError, "is at step 0 of 4: harness submit trains it"),
        (("points", "--num-steps", "11"), SpecError, "11"),
        (("points", "--sampler", "dim", "--num-steps", "2"), SpecError, "ddim"),
        (("points", "--protocol", "laptop"), SpecError, "protocol laptop: extractor classifier does not fit data mog"),
        (("points", "--protocol", "lap"), SpecError, r"--protocol 'lap': did you mean 'laptop'\?"),
        (("points", "--protocol", "ddpm", "--num-steps", "2"), LaunchError, "leave out the other options"),
        (("nothing",), LaunchError, "no study 'nothing'"),
        ((f"step-00000002-{'0' * 64}.pt",), LaunchError, "no checkpoint"),
    ):
        with pytest.raises(error, match=message):
            harness(runs, "evaluate", *arguments, "--no-sync")
    assert CliRunner().invoke(cli, ["evaluate", "points", "--num-steps", "5,x", "--runs", str(runs)]).exit_code == 2
    assert len(Manifests(runs).memberships(directory)["points"]["evaluations"]) == 1
