"""What an evaluation may measure, the names that it leaves and what reads them: held equal, whatever is added."""

from typing import get_args, get_type_hints

import pytest

from harness.analysis.figures.fig_sampling_steps import sampler_lines
from harness.diffusion import SAMPLERS
from harness.evaluation.parts import PARTS
from harness.records.journal import Journal
from harness.search.space import Metric
from harness.spec import evaluation, parts
from harness.spec.costs import network_evaluations
from harness.spec.metrics import METRIC_KINDS, PART_OUTPUTS, curve_name, metric_kind, outputs, training_terms
from harness.study.expand import load_study

STUDY = """
study: parts
data: digits
diffusion: {num_timesteps: 30}
model: {channels: 8, channel_mult: [1], num_res_blocks: 1, attention_resolutions: [], num_heads: 1}
train: {steps: 12, batch_size: 16}
"""
BUILT_IN = [part for part in evaluation.PARTS if part != "metrics"]  # that one holds what plugins measure
DEFAULTS = {part: "{num_steps: [5]}" if part in ("sweep", "reconstruction") else "{}" for part in BUILT_IN}
DEFAULTS |= {"fidelity": "{num_steps: 5}", "grid": "4"}
ON_POINTS = {"modes": ("data=mog", "model={name: mlp, width: 16}")}  # parts that digits do not have


@pytest.fixture
def run_of(tmp_path):
    """Return a function: an evaluation's fields in YAML -> a run whose study asks for that evaluation."""

    def plan(fields):
        path = tmp_path / "parts.yaml"
        path.write_text(f"{STUDY}evaluate: [{{name: eval, weights: raw, {fields}}}]\n")
        sets = next((sets for part, sets in ON_POINTS.items() if fields.startswith(f"{part}:")), ())
        return load_study(path, sets=sets).runs[0]

    return plan


def test_the_fields_of_an_evaluation_the_functions_and_the_declared_names_are_of_the_same_parts():
    optional = {name for name, field in evaluation.Evaluation.model_fields.items() if field.default in (None, ())}
    assert set(evaluation.PARTS) == optional - {"every", "plugins", "ema", "ensemble"}
    assert list(PARTS) == list(PART_OUTPUTS) == list(evaluation.PARTS)


@pytest.mark.parametrize("part", BUILT_IN)
def test_the_function_and_the_names_of_a_part_take_the_class_that_the_spec_has_for_it(part):
    (written, _) = get_args(evaluation.Evaluation.model_fields[part].annotation)
    measured, declared = (list(get_type_hints(table[part]).values()) for table in (PARTS, PART_OUTPUTS))
    assert written in measured
    assert declared[0] == written


@pytest.mark.parametrize("part", BUILT_IN)
def test_every_name_that_a_part_leaves_has_a_kind_and_is_a_key_that_a_journal_takes(run_of, part, tmp_path):
    run = run_of(f"{part}: {DEFAULTS[part]}")
    left = outputs(run.evaluations[0], run.spec, "eval_other")
    assert left.metrics or left.curves or left.arrays
    assert set(left.during_training) <= set(left.metrics)
    for name in (*left.metrics, *left.curves):
        assert metric_kind(name) in METRIC_KINDS.values(), name
    with Journal(tmp_path / "journal-0001.jsonl", 1) as journal:
        journal.metrics(1, dict.fromkeys((*left.metrics, *left.curves), 0.0))


@pytest.mark.parametrize("part", BUILT_IN)
def test_every_part_says_what_it_costs(run_of, part):
    run = run_of(f"{part}: {DEFAULTS[part]}")
    (evaluation_of_run,) = run.evaluations
    assert network_evaluations(evaluation_of_run, run.spec)[part] > 0


@pytest.mark.parametrize("part", BUILT_IN)
def test_every_metric_that_a_part_leaves_can_be_searched(run_of, part):
    run = run_of(f"{part}: {DEFAULTS[part]}")
    (asked,) = run.evaluations
    for name in outputs(asked, run.spec).metrics:
        assert Metric(name, "minimize").find(run) == (asked, name.removeprefix("eval/"))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_has_its_names_and_a_line_of_its_own_in_figures(run_of, sampler):
    run = run_of(f"fidelity: {{num_steps: 5, sampler: {sampler}}}, sweep: {{num_steps: [5], samplers: [{sampler}]}}")
    left = outputs(run.evaluations[0], run.spec)
    assert left.metrics[0] == f"eval/fid_digitsnet_10000_{sampler}5"
    assert left.curves == (f"sweep/fid_digitsnet_10000_{sampler}",)
    lines = sampler_lines([])
    assert list(lines) == list(parts.choices(evaluation.Sampler))
    assert [str(line) for line in lines.values()].count(str(lines[sampler])) == 1


@pytest.mark.parametrize("kind", METRIC_KINDS)
def test_a_kind_is_recognised_by_its_name_and_by_a_name_that_says_more(kind):
    assert metric_kind(kind) == metric_kind(f"eval/{kind}") == metric_kind(f"eval_x/{kind}_how") == METRIC_KINDS[kind]
    assert METRIC_KINDS[kind].label


def test_a_metric_that_is_registered_nowhere_is_labelled_by_its_own_name():
    kind = metric_kind("eval/of_a_plugin")
    assert (kind.axis, kind.direction, kind.arrow) == ("eval/of_a_plugin", None, "")
    assert metric_kind("eval/fidget").label == "eval/fidget"


def test_the_curves_of_a_sweep_stand_together_whatever_the_evaluation_is_called():
    assert curve_name("eval", "sweep", "fid_x") == "sweep/fid_x"
    assert curve_name("eval_small", "sweep", "fid_x") == "sweep_small/fid_x"
    assert curve_name("eval_small", "nll", "L_t_bpd") == "eval_small/L_t_bpd"


def test_the_terms_of_a_loss_are_told_from_all_else_that_a_training_records():
    names = ["train/loss", "train/lr", "train/grad_norm_preclip", "train/mse_q0", "eval/nll_bpd", "perf/x"]
    assert training_terms([*names, "train/mse", "train/vb"]) == ["train/mse", "train/vb"]
    assert training_terms(names) == ["train/loss"]
