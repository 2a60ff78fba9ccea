"""What a search may ask for, refused with the line where it cannot; nothing is run."""

import itertools
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.cli import cli
from harness.errors import SpecError
from harness.records import throughput
from harness.records.throughput import Throughput
from harness.search.loading import load_search
from harness.search.optuna_backend import first_suggestions
from harness.search.space import Parameter, format_value
from harness.study.expand import load_study
from harness.testing import TINY_STUDY

BASE = TINY_STUDY.replace("schedule: cosine", "schedule: cosine, var_type: learned_range") + (
    """objective: hybrid
evaluate:
  - {name: eval, nll: {num_images: 16, evaluations_per_image: 4}}
"""
)
LAMBDA_S = """
search:
  space:
    objective.lambda_vlb: {float: [1.0e-5, 1.0e-1], log: true}
    diffusion.schedule.s: {float: [1.0e-4, 5.0e-2], log: true}
  metrics: [{eval/nll_bpd: minimize}]
  trials: 64
"""


@pytest.fixture
def make(tmp_path):
    def write(search=LAMBDA_S, *sets, base=BASE):
        path = tmp_path / "search.yaml"
        path.write_text(base + search)
        return load_search(path, sets=sets)

    return write


REFUSED = {
    "an unknown field": (
        LAMBDA_S.replace("lambda_vlb", "lamda_vlb"),
        ["search.yaml:16: objective.lamda_vlb: unknown key; did you mean 'lambda_vlb'?"],
    ),
    "a bound that the spec refuses": (
        LAMBDA_S.replace("5.0e-2]", "1.5]"),
        ["search.yaml:17: diffusion.schedule.s:", "less than 1"],
    ),
    "a type that the spec refuses": (
        "search: {space: {model.num_res_blocks: {float: [1, 4]}}, metrics: [{eval/nll_bpd: minimize}], trials: 2}",
        ["search.yaml:13: model.num_res_blocks: input should be a valid integer"],
    ),
    "bounds the wrong way round": (
        LAMBDA_S.replace("[1.0e-5, 1.0e-1]", "[1.0e-1, 1.0e-5]"),
        ["search.yaml:16: search.space.objective.lambda_vlb.float: low 0.1 must be less than high 1e-05"],
    ),
    "a logarithm of zero": (LAMBDA_S.replace("[1.0e-5,", "[0,"), ["search.yaml:16:", "starts above 0"]),
    "a step on a logarithmic range": (
        LAMBDA_S.replace("1.0e-1], log: true", "1.0e-1], log: true, step: 0.01"),
        ["search.yaml:16:", "Optuna allows no step on a logarithmic range"],
    ),
    "an unknown word of a parameter": (
        LAMBDA_S.replace("1.0e-1], log: true", "1.0e-1], logg: true"),
        ["search.yaml:16:", "did you mean 'log'?"],
    ),
    "no range at all": (
        LAMBDA_S.replace("{float: [1.0e-5, 1.0e-1], log: true}", "0.1"),
        ["search.yaml:16:", "give one of"],
    ),
    "an unknown sampler": (
        LAMBDA_S + "  sampler: tpu\n",
        ["search.yaml:20: search.sampler: unknown value 'tpu'", "'tpe'"],
    ),
    "an unknown word of the search": (LAMBDA_S + "  trails: 4\n", ["search.yaml:20:", "did you mean 'trials'?"]),
    "a metric that nothing gives": (
        LAMBDA_S.replace("eval/nll_bpd", "eval/nll"),
        ["search.yaml:18: search.metrics.0: eval/nll is ambiguous; choices: eval/nll_bpd, eval/nll_standard_error_bpd"],
    ),
    "a metric of no evaluation": (
        LAMBDA_S.replace("eval/nll_bpd", "eval/fid"),
        ["search.yaml:18:", "no evaluation measures"],
    ),
    "pruning by several objectives": (
        LAMBDA_S.replace("[{eval/nll_bpd: minimize}]", "[{eval/nll_bpd: minimize}, {eval/L_0_bpd: minimize}]")
        + "  pruner: median\n",
        ["search.yaml:20: search.pruner: Optuna prunes by one objective only"],
    ),
    "CMA-ES with several objectives": (
        LAMBDA_S.replace("[{eval/nll_bpd: minimize}]", "[{eval/nll_bpd: minimize}, {eval/L_0_bpd: minimize}]")
        + "  sampler: cmaes\n",
        ["search.yaml:20: search.sampler: cmaes supports one objective only"],
    ),
    "Wilcoxon without replicates": (LAMBDA_S + "  pruner: wilcoxon\n", ["search.yaml:20:", "replicate by replicate"]),
    "pruning without measurements during training": (
        LAMBDA_S + "  pruner: asha\n",
        ["search.yaml:20: search.pruner: asha needs eval/nll_bpd during training"],
    ),
    "a grid without end": (LAMBDA_S + "  sampler: grid\n", ["search.yaml:16:", "a grid needs finitely many values"]),
    "a grid with too few points": (
        "search: {space: {model.depth: {int: [1, 3]}}, metrics: [{eval/nll_bpd: minimize}], trials: 4, sampler: grid}",
        ["search.yaml:13: search.trials: the grid has 3 points, fewer than 4 trials"],
    ),
    "a condition that never holds": (
        LAMBDA_S.replace("1.0e-1], log: true", "1.0e-1], log: true, when: {objective.name: simple}"),
        ["search.yaml:16: search.space.objective.lambda_vlb.when: is never true"],
    ),
    "a parameter of a part that another choice has not": (
        "search: {space: {diffusion.schedule: {choices: [linear, cosine]}, "
        "diffusion.schedule.s: {float: [0.01, 0.1]}}, metrics: [{eval/nll_bpd: minimize}], trials: 2}",
        ["search.yaml:13: diffusion.schedule.s: unknown key"],
    ),
    "arms": (LAMBDA_S + "arms: {a: {optim.lr: 0.1}}\n", ["search.yaml:20: arms: not allowed in a search"]),
    "the seed": (
        LAMBDA_S.replace("objective.lambda_vlb: {float: [1.0e-5, 1.0e-1], log: true}", "seed: {int: [0, 9]}"),
        ["search.yaml:16: seed: seeds are replicates"],
    ),
    "a stepped range whose end is not met": (
        LAMBDA_S.replace("1.0e-1], log: true", "1.0e-1], step: 0.03"),
        ["search.yaml:16: search.space.objective.lambda_vlb.step: steps of 0.03 from 1e-05 do not reach 0.1; end at"],
    ),
    "an integer range whose end is not met": (
        "search: {space: {model.channels: {int: [8, 32], step: 16}}, metrics: [{eval/nll_bpd: minimize}], trials: 2}",
        ["search.yaml:13:", "steps of 16 from 8 do not reach 32; end at 24 or 40"],
    ),
    "choices that Python takes for one": (
        LAMBDA_S.replace("{float: [1.0e-5, 1.0e-1], log: true}", "{choices: [1, true]}"),
        ["search.yaml:16: search.space.objective.lambda_vlb.choices: 1 and True are the same value"],
    ),
    "choices that differ only in how they are written": (
        LAMBDA_S.replace("objective.lambda_vlb: {float: [1.0e-5, 1.0e-1], log: true}",
                         "diffusion.schedule: {choices: [cosine, {name: cosine, s: 0.008}]}").replace(
                         "    diffusion.schedule.s: {float: [1.0e-4, 5.0e-2], log: true}\n", ""),
        ["search.yaml:16: search.space.diffusion.schedule: cosine and cosine give the same run"],
    ),
    "a parameter that no weight depends on": (
        LAMBDA_S.replace("objective.lambda_vlb: {float: [1.0e-5, 1.0e-1], log: true}",
                         "resources.threads: {int: [1, 2]}"),
        ["search.yaml:16: search.space.resources.threads: 1 and 2 give the same run"],
    ),
    "rungs and a sampler that learns from complete trials alone": (
        LAMBDA_S + "  sampler: gp\n  rungs: [4, 12]\n",
        ["search.yaml:21: search.rungs: sampler gp learns from complete trials alone", "choose sampler: tpe,"],
    ),
    "rungs and a sampler that takes all steps for one": (
        LAMBDA_S + "  sampler: cmaes\n  rungs: [4, 12]\n",
        ["search.yaml:21: search.rungs: sampler cmaes compares the last values of trials, whatever the step"],
    ),
    "rungs and half a bracket": (
        LAMBDA_S + "  bracket_size: 24\n  rungs: [4, 12]\n",
        ["search.yaml:19: search.trials: 64 trials are not whole brackets of 24", "choose 48 or 72, or"],
    ),
    "fewer trials than a bracket": (
        LAMBDA_S.replace("64", "8") + "  rungs: [4, 8, 12]\n",
        ["search.yaml:19: search.trials: 8 trials are not whole brackets of 16", "choose 16, or another bracket_size"],
    ),
    "brackets of a sampler that does not learn": (
        LAMBDA_S + "  sampler: qmc\n  bracket_size: 16\n  rungs: [4, 12]\n",
        ["search.yaml:21: search.bracket_size:", "the trials of qmc are one bracket"],
    ),
    "brackets without rungs": (
        LAMBDA_S + "  bracket_size: 16\n",
        ["search.yaml:20: search.bracket_size: is of rungs, and there are none"],
    ),
    "rungs and a pruner": (
        LAMBDA_S + "  sampler: random\n  pruner: median\n  rungs: [4, 12]\n",
        ["search.yaml:22: search.rungs:", "and so does a pruner"],
    ),
    "rungs without a measurement": (
        LAMBDA_S + "  sampler: random\n  rungs: [4, 12]\n",
        ["search.yaml:21: search.rungs: a rung needs eval/nll_bpd during training: give the evaluation `every: STEPS`"],
    ),
    "rungs beside the search": (
        "rungs: [4, 12]\n" + LAMBDA_S,
        ["search.yaml:13: rungs: not allowed in a search; use search.rungs"],
    ),
    "a timeout without a unit": (LAMBDA_S + "  timeout: 90\n", ["search.yaml:20: search.timeout:"]),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_the_file_is_refused_before_anything_runs_with_its_line(make, what):
    text, expected = REFUSED[what]
    with pytest.raises(SpecError) as error:
        make(text)
    for part in expected:
        assert part in str(error.value)


def test_a_searched_field_cannot_be_set_and_a_search_is_no_study(make, tmp_path):
    with pytest.raises(SpecError, match=r"--set objective.lambda_vlb=1: objective.lambda_vlb is part of search.space"):
        make(LAMBDA_S, "objective.lambda_vlb=1")
    with pytest.raises(SpecError, match=r"search.yaml:14: search: this file is a search"):
        load_study(tmp_path / "search.yaml")


def test_set_reaches_the_search_and_the_runs(make):
    search = make(LAMBDA_S, "search.trials=3", "train.steps=7")
    assert search.settings.trials == 3
    assert search.trial(0, {"objective.lambda_vlb": 0.1}).runs[0].spec.train.steps == 7


RUNGS = LAMBDA_S + "  parallel: 4\n  rungs: [4, 8, 12]\n  reduction_factor: 2\n  replicates: 3\n"


@pytest.mark.parametrize("sampler", ["tpe", "qmc"])
def test_the_steps_of_a_search_with_rungs_are_counted_before_and_compared_with_those_without(make, sampler):
    base = BASE.replace("name: eval", "name: eval, every: 4")
    search = make(RUNGS, f"search.sampler={sampler}", base=base)
    assert search.settings.bracket == (4 if sampler == "tpe" else None)
    training = search.training(12)
    assert [rung["number"] for rung in training["at_rungs"]] == [64, 32, 16]
    assert training["steps"] == 3 * (64 * 4 + 32 * 4 + 16 * 4) and training["steps_without_rungs"] == 3 * 64 * 12
    assert make(LAMBDA_S).training(12) == {"steps": 64 * 12}


def test_brackets_change_the_numbers_where_they_do_not_halve_evenly(make):
    base = BASE.replace("name: eval", "name: eval, every: 4")
    search = make(RUNGS, "search.bracket_size=8", "search.trials=24", "search.reduction_factor=3", base=base)
    assert [rung["number"] for rung in search.training(12)["at_rungs"]] == [24, 6, 3], "8, 2 and 1 of each bracket"
    whole = make(RUNGS, "search.sampler=qmc", "search.trials=24", "search.reduction_factor=3", base=base)
    assert [rung["number"] for rung in whole.training(12)["at_rungs"]] == [24, 8, 2]


def test_plan_tells_what_rungs_save_in_steps_and_where_a_step_was_measured_in_time(make, tmp_path):
    base = BASE.replace("name: eval", "name: eval, every: 4")
    search = make(RUNGS, base=base)
    runs = tmp_path / "runs"
    arguments = ["plan", str(search.path), "--runs", str(runs)]
    said = CliRunner().invoke(cli, arguments, catch_exceptions=False).output
    assert "in brackets of 4: 64 to 4, 32 to 8, 16 to 12; 58 % of the steps without rungs" in said
    assert "training: about" not in said
    run = search.trial(0, {"objective.lambda_vlb": 0.1}).runs[0]
    measured = Throughput(run.spec.cost_key, 0.5, "cpu", "a laptop", threads=1, kernels=run.resources.kernels)
    throughput.record(runs, measured)
    said = CliRunner().invoke(cli, arguments, catch_exceptions=False).output
    assert "training: about 11 min instead of 19 min on one a laptop, one run at a time" in said
    document = json.loads(CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False).output)
    assert document["bracket_size"] == 4 and len(document["suggestions"]) == 4
    training = document["training"]
    assert training["seconds"] == training["steps"] / 2 == 3 * 448 / 2
    assert training["seconds_without_rungs"] == 3 * 64 * 12 / 2 and training["measured_on"] == "a laptop"
    path = tmp_path / "flat.yaml"
    path.write_text(base + LAMBDA_S)
    document = json.loads(CliRunner().invoke(cli, ["plan", str(path), "--json"], catch_exceptions=False).output)
    assert document["training"].keys() == {"steps", "seconds", "measured_on"}


@pytest.mark.parametrize("path", ["search/lambda_s.yaml", "laptop/search_digits.yaml"])
def test_the_shipped_searches_load(path):
    search = load_search(Path(__file__).parents[3] / "experiments" / path)
    assert [metric.name for metric in search.metrics] == ["eval/nll_bpd", "eval/fid"]
    assert search.settings.trials >= 16


@settings(deadline=None)  # the machine may be busy
@given(
    st.decimals("-10", "10", places=3),
    st.decimals("0.001", "2", places=4).filter(bool),
    st.integers(1, 2000),
    st.data(),
)
def test_a_stepped_value_is_the_grid_s_own_point_whatever_a_sampler_computes(low, step, num_steps, data):
    parameter = Parameter("optim.lr", "float", float(low), float(low + num_steps * step), step=float(step))
    points = parameter.points()
    assert points == [float(low + index * step) for index in range(num_steps + 1)]
    index = data.draw(st.integers(0, num_steps))
    assert parameter.value(float(low) + index * float(step)) == points[index]
    assert parameter.value(points[index]) == points[index]


@pytest.mark.parametrize("sampler", ["random", "tpe", "grid", "qmc"])
def test_every_sampler_draws_from_the_same_runs(make, sampler):
    search = make(
        LAMBDA_S.replace("{float: [1.0e-5, 1.0e-1], log: true}", "{float: [0, 0.3], step: 0.1}")
        .replace("{float: [1.0e-4, 5.0e-2], log: true}", "{float: [0.1, 0.4], step: 0.1}")
        .replace("trials: 64", "trials: 16"),
        f"search.sampler={sampler}",
    )
    grid = {tuple(point.values()) for point in grid_of(search)}
    drawn = {tuple(point.values()) for point in first_suggestions(search, 16)}
    assert len(grid) == 16 and drawn <= grid and (0.3, 0.3) in grid


def grid_of(search):
    axes = [[(parameter.path, value) for value in parameter.points()] for parameter in search.space]
    return [dict(point) for point in itertools.product(*axes)]


def test_a_printed_number_is_the_hashed_one_if_it_is_short():
    assert format_value(0.3) == "0.3" and format_value(1.00001) == "1.00001" and format_value(1e-5) == "1e-05"
    assert format_value(0.1 + 0.2) == "0.3" and format_value(0.0012345678901234) == "0.001235"
