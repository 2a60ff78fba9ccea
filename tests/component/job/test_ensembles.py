"""An ensemble by t: one run's network near the ends of the chain, another's in between, measured by a job."""

import numpy as np
import pytest

from harness.errors import SpecError
from harness.job.job import run_job
from harness.launch.planning import plan
from harness.records.directory import RunDirectory
from harness.study.expand import load_study
from harness.testing import TINY_STUDY, tiny_study, write_finished_run, write_run

NLL = "nll: {estimator: full, num_images: 4}"
SETS = ("train.steps=2", "train.batch_size=4")


def trained(tiny_run, evaluate, *sets):
    folder = tiny_run(f"evaluate: [{evaluate}]\n", *SETS, *sets, folder="runs")
    assert run_job(folder, sync=False, show_progress=False) == "done", RunDirectory(folder).status().reason
    return RunDirectory(folder)


def curve(run, name):
    return np.load(run.arrays_folder / f"{name}_likelihood.npz")["L_t_bpd"]


def test_each_term_of_an_ensembles_bound_is_that_of_the_run_whose_network_has_that_t(tiny_run):
    middle = trained(tiny_run, f"{{{NLL}}}", "seed=5")
    both = f"{{name: both, ensemble: {{middle: '{middle.key}', low: 8, high: 21}}, {NLL}, grid: 2}}"
    ends = trained(tiny_run, f"{{{NLL}}}, {both}")
    alone, other, measured = curve(ends, "eval"), curve(middle, "eval"), curve(ends, "both")
    assert np.array_equal(measured, np.concatenate([alone[:8], other[8:21], alone[21:]]))
    assert not np.isclose(alone, other).all()


@pytest.mark.parametrize(
    ("state", "sets", "message"),
    [
        (None, (), "no run 0123456789abcdef"),
        ("new", (), "is new; only a done run"),
        ("done", ("diffusion.schedule=linear",), "of another kind"),
        ("done", (), ""),
    ],
)
def test_a_plan_refuses_a_run_that_cannot_take_part(tmp_path, state, sets, message):
    [other] = tiny_study(tmp_path, "", (*SETS, "seed=5", *sets))
    if state == "new":
        write_run(other, tmp_path / "runs")
    elif state == "done":
        write_finished_run(other, tmp_path / "runs")
    key = "0123456789abcdef" if state is None else other.run_key
    path = tmp_path / "ensemble.yaml"
    path.write_text(f"{TINY_STUDY}evaluate: [{{ensemble: {{middle: '{key}', low: 8}}, {NLL}}}]\n")
    study = load_study(path, sets=SETS)
    if not message:
        assert plan(study, tmp_path / "runs").runs[0].run.evaluations[0].ensemble.high == 22
        return
    with pytest.raises(SpecError, match=message):
        plan(study, tmp_path / "runs")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("every: 1", "by its first average: remove every"),
        ("weights: untrained", "of one network"),
        ("ensemble: {middle: '0123456789abcdef'}", "low 100 and high -70 are no part of a chain of 30 t"),
        ("ensemble: {middle: runs}", "ensemble.middle"),
    ],
)
def test_an_evaluation_that_no_ensemble_can_have_is_refused(tmp_path, change, message):
    ensemble = "" if "ensemble" in change else "ensemble: {middle: '0123456789abcdef', low: 8}, "
    with pytest.raises(SpecError, match=message):
        tiny_study(tmp_path, f"evaluate: [{{{ensemble}{change}, {NLL}}}]\n")
