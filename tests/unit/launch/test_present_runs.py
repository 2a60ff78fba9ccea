"""A study is changed in every way that a person changes one, and everything shows exactly the runs that it asks for.

The oracle is a fresh folder that has only those runs: tables, figures and claims of both folders must be equal.
"""

from __future__ import annotations

import json
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from harness.analysis.answers import results
from harness.analysis.claims import verdicts
from harness.analysis.figures import fig_L_t, fig_learning_curves, fig_scaling
from harness.analysis.runs import by_arm, load_records
from harness.cli import cli
from harness.job.writer import record_evaluation
from harness.launch import planning
from harness.launch.submit import submit
from harness.records.directory import RunDirectory
from harness.records.manifest import ask_for
from harness.study.expand import load_study
from harness.study.model import Run, Study
from harness.testing import TINY_STUDY, fake_result, write_finished_run

ARMS = [
    {},
    {"diffusion.schedule": {"name": "linear"}},
    {"diffusion.schedule": {"name": "cosine", "s": 0.05}},
    {"objective": {"name": "hybrid", "lambda_vlb": 0.001}, "diffusion.var_type": "learned_range"},
    {"objective": {"name": "hybrid", "lambda_vlb": 0.1}, "diffusion.var_type": "learned_range"},
    {"model.channels": 16},
]


@dataclass(frozen=True)
class Asked:
    """What the study's file says, and how it is submitted."""

    file: str = "study.yaml"
    name: str = "edited"
    steps: int = 20
    set_steps: int | None = None
    seed: int = 0
    replicates: int = 2
    arms: dict[str, int] = field(default_factory=lambda: {"first": 0, "second": 1})  # name -> index in ARMS
    num_images: tuple[int, ...] = (16,)  # of each evaluation's NLL

    def write(self, folder: Path) -> Study:
        evaluations = [
            {"name": "eval" if index == 0 else f"eval_{index}", "nll": {"num_images": number}}
            for index, number in enumerate(self.num_images)
        ]
        content: dict[str, Any] = yaml.safe_load(TINY_STUDY)
        content["train"]["steps"], content["seed"] = self.steps, self.seed
        path = folder / self.file
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".py":
            del content["study"]
            runs = [{"arm": arm, "spec": content, "change": ARMS[index]} for arm, index in self.arms.items()]
            path.write_text(_PYTHON.format(runs=runs, name=self.name, replicates=self.replicates, evaluate=evaluations))
        else:
            content |= {"study": self.name, "replicates": self.replicates, "evaluate": evaluations}
            content["arms"] = {arm: ARMS[index] for arm, index in self.arms.items()}
            path.write_text(yaml.safe_dump(content, sort_keys=False))
        return load_study(path, sets=[f"train.steps={self.set_steps}"] if self.set_steps else [])


_PYTHON = """
import copy
import harness

def changed(spec, change):
    spec = copy.deepcopy(spec)
    for path, value in change.items():
        *parents, last = path.split(".")
        part = spec
        for parent in parents:
            part = part[parent]
        part[last] = value
    return spec

def study():
    return harness.python_study({name!r}, [
        harness.run(arm=entry["arm"], spec=changed(entry["spec"], entry["change"]), replicates={replicates},
                    evaluate={evaluate})
        for entry in {runs}
    ])
"""


def change_steps(asked: Asked, draw: random.Random) -> Asked:
    return replace(asked, steps=draw.choice([20, 30, 40]))


def set_steps(asked: Asked, draw: random.Random) -> Asked:
    return replace(asked, set_steps=draw.choice([None, 50]))


def change_replicates(asked: Asked, draw: random.Random) -> Asked:
    return replace(asked, replicates=draw.choice([1, 2, 3]))


def change_seed(asked: Asked, draw: random.Random) -> Asked:
    return replace(asked, seed=draw.choice([0, 1, 7]))


def drop_an_arm(asked: Asked, draw: random.Random) -> Asked:
    gone = draw.choice(list(asked.arms)) if len(asked.arms) > 1 else None
    return replace(asked, arms={arm: index for arm, index in asked.arms.items() if arm != gone})


def rename_an_arm(asked: Asked, draw: random.Random) -> Asked:
    old, new = draw.choice(list(asked.arms)), f"renamed {draw.randrange(100)}"
    return replace(asked, arms={new if arm == old else arm: index for arm, index in asked.arms.items()})


def add_an_arm(asked: Asked, draw: random.Random) -> Asked:
    free = [index for index in range(len(ARMS)) if index not in asked.arms.values()]
    return replace(asked, arms=asked.arms | ({f"arm {draw.randrange(100)}": draw.choice(free)} if free else {}))


def swap_two_arms(asked: Asked, draw: random.Random) -> Asked:
    return replace(asked, arms=dict(zip(asked.arms, reversed(asked.arms.values()), strict=True)))


def change_an_evaluation(asked: Asked, draw: random.Random) -> Asked:
    return replace(asked, num_images=(draw.choice([16, 17, 18]), *asked.num_images[1:]))


def add_or_drop_an_evaluation(asked: Asked, draw: random.Random) -> Asked:
    return replace(asked, num_images=asked.num_images[:1] if len(asked.num_images) > 1 else (*asked.num_images, 32))


def move_the_file(asked: Asked, draw: random.Random) -> Asked:
    return replace(asked, file=draw.choice(["study.yaml", "elsewhere/other.yaml", "study.py"]))


def rename_the_study(asked: Asked, draw: random.Random) -> Asked:
    return replace(asked, name=draw.choice(["edited", "other"]))


EDITS: list[Callable[[Asked, random.Random], Asked]] = [
    *(change_steps, set_steps, change_replicates, change_seed, drop_an_arm, rename_an_arm, add_an_arm, swap_two_arms),
    *(change_an_evaluation, add_or_drop_an_evaluation, move_the_file, rename_the_study),
]


def finish(run: Run, runs_folder: Path) -> None:
    """Write what a job would: the whole run, or what is missing of its evaluations."""
    directory = RunDirectory(runs_folder / run.run_key)
    if directory.status().state != "done":
        write_finished_run(replace(run, evaluations=()), runs_folder, {})
        directory.register(run)
        directory.set_status(replace(directory.status(), attempt=1))
    done = {event.fields["key"]: event.fields["prefix"] for event in directory.events("evaluation")}
    missing = [evaluation for evaluation in run.evaluations if evaluation.key not in done]
    if missing:
        steps = run.spec.train.steps
        with directory.lock(), directory.open_journal(resumed_from_step=steps) as journal:
            for evaluation in missing:
                prefix = evaluation.name
                if prefix in done.values():
                    prefix = f"{evaluation.name}_{evaluation.key[:6]}"
                done[evaluation.key] = prefix
                result = fake_result(evaluation, run.spec, {"nll_bpd": nll_of(run, evaluation)}, prefix)
                record_evaluation(directory, journal, evaluation, prefix, result, steps)


def nll_of(run: Run, evaluation: Any) -> float:
    """Return a number that no other run and no other protocol has."""
    return int(run.run_key[:5], 16) / 1e5 + evaluation.nll.num_images


def invoke(*arguments: object) -> Any:
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"], catch_exceptions=False)
    return json.loads(result.stdout)


FRAMES = (results.data, fig_learning_curves.data, fig_L_t.data, fig_scaling.data)


def assert_shows_exactly(study: Study, runs_folder: Path, fresh: Path, path: Path) -> None:
    name = study.name
    for run in study.runs:
        finish(run, fresh)
    ask_for(fresh, name, {run.run_key: run.membership() for run in study.runs})
    shown, expected = load_records(runs_folder, name), load_records(fresh, name)
    identity = [(run.run_key, run.arm, run.replicate, len(run.measurements)) for run in shown]
    assert identity == [(run.run_key, run.arm, run.replicate, len(run.measurements)) for run in expected]
    assert len(identity) == len(study.runs)
    assert list(by_arm(shown)) == list(dict.fromkeys(run.arm for run in study.runs)), "in the order of the file"
    for frame in FRAMES:
        pd.testing.assert_frame_equal(frame(shown), frame(expected))
    assert verdicts.table(verdicts.judge(shown)).equals(verdicts.table(verdicts.judge(expected)))

    planned = {(run.run_key, run.arm, run.replicate) for run in study.runs}
    status = invoke("status", name, "--runs", runs_folder)
    assert {(row["run_key"], row["arm"], row["replicate"]) for row in status} == planned
    nlls = {row["run_key"]: row["nll_bpd"] for row in status}
    assert nlls == {run.run_key: nll_of(run, run.evaluations[0]) for run in study.runs}
    listed = {row["study"]: row for row in invoke("list", "--runs", runs_folder)["studies"]}
    assert listed[name]["num_runs"] == len(planned)
    ever = {path.parents[1].name for path in runs_folder.glob(f"*/studies/{name}.json")}
    gone = ever - {run.run_key for run in study.runs}
    assert listed[name]["num_no_longer_asked_for"] == len(gone)
    assert {directory.key for directory in planning.plan(study, runs_folder).earlier} == gone

    archive = path / "archive.tar"
    invoke("export", name, "-o", archive, "--runs", runs_folder)
    with tarfile.open(archive) as tar:
        file = tar.extractfile("manifest.json")
        assert file is not None
        content = json.loads(file.read())
    assert set(content["runs"]) == {run.run_key for run in study.runs}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_after_any_edits_everything_shows_exactly_the_present_runs(tmp_path, seed):
    draw, asked, runs_folder = random.Random(seed), Asked(), tmp_path / "runs"
    history = [asked]
    for number in range(4):
        study = asked.write(tmp_path)
        submit(planning.plan(study, runs_folder), cluster="debug", sync=False)
        for run in study.runs:
            finish(run, runs_folder)
        assert_shows_exactly(study, runs_folder, tmp_path / f"fresh-{number}", tmp_path)
        if draw.random() < 0.2:
            invoke("forget", study.name, "--runs", runs_folder)
            assert_shows_exactly(study, runs_folder, tmp_path / f"fresh-{number}", tmp_path)
        if draw.random() < 0.2:
            asked = draw.choice(history)  # changed back
        for edit in draw.sample(EDITS, 2):
            asked = edit(asked, draw)
        history.append(asked)


@pytest.mark.slow
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_after_each_single_edit_everything_shows_exactly_the_present_runs(tmp_path, edit):
    runs_folder, asked = tmp_path / "runs", Asked(replicates=3)
    for number, state in enumerate((asked, edit(asked, random.Random(1)))):
        study = state.write(tmp_path)
        submit(planning.plan(study, runs_folder), cluster="debug", sync=False)
        for run in study.runs:
            finish(run, runs_folder)
        assert_shows_exactly(study, runs_folder, tmp_path / f"fresh-{number}", tmp_path)
