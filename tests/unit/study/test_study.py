"""A YAML study -> runs: what it expands to, and that every mistake is told with its file and line."""

import sys
import textwrap

import pytest

from harness.errors import SpecError
from harness.spec.base import SCHEMA_VERSION, digest
from harness.spec.run import RunSpec
from harness.study.document import merge, parse_yaml
from harness.study.expand import load_study

BASE = """\
study: base
data: digits
diffusion: {num_timesteps: 100, schedule: cosine}
model: {channels: 32, channel_mult: [1, 2], num_res_blocks: 1, attention_resolutions: [4]}
train: {steps: 400, batch_size: 64, ema_rate: 0.98}
"""


@pytest.fixture
def study(tmp_path):
    """Return a function that loads `study.yaml` with some text below BASE's line of `extends`."""
    (tmp_path / "base.yaml").write_text(BASE)

    def load(text, *, sets=(), extends=True, inception=False):
        head = "study: s\nextends: base.yaml\n" if extends else ""
        (tmp_path / "study.yaml").write_text(head + textwrap.dedent(text))
        return load_study(tmp_path / "study.yaml", sets=sets, inception=inception)

    return load


@pytest.fixture
def refused(study, tmp_path):
    """Return a function that gives the message of a refusal, its folder cut off."""

    def message(text, **options):
        with pytest.raises(SpecError) as caught:
            study(text, **options)
        return str(caught.value).replace(f"{tmp_path}/", "")

    return message


def arms(loaded):
    return [run.arm for run in loaded.runs]


# ----------------------------------------------------------------------------------------------------------- expanding


def test_a_study_without_arms_is_one_run(study):
    (run,) = study("").runs
    assert (run.study, run.arm, run.replicate, run.overrides) == ("s", "base", 0, {})
    assert run.spec.diffusion.num_timesteps == 100


def test_an_arm_is_the_base_plus_its_change(study):
    loaded = study("arms: {a: {}, b: {optim.lr: 2e-3}, c: {model: {dropout: 0.1}}}")
    assert arms(loaded) == ["a", "b", "c"]
    a, b, c = (run.spec for run in loaded.runs)
    assert b == a.model_copy(update={"optim": b.optim}) and b.optim.lr == 2e-3
    assert c.model.dropout == 0.1 and c.model.channels == 32  # the rest of the model stays


def test_a_mapping_that_says_its_name_replaces_the_old_one():
    old = {"schedule": {"name": "cosine", "s": 0.1}, "num_timesteps": 5}
    assert merge(old, {"schedule": {"name": "linear"}}) == {"schedule": {"name": "linear"}, "num_timesteps": 5}
    assert merge(old, {"schedule": {"s": 0.2}})["schedule"] == {"name": "cosine", "s": 0.2}
    assert merge({"a": [1, 2]}, {"a": [3]}) == {"a": [3]}


def test_a_path_into_a_bare_name_keeps_the_name(study):
    (run,) = study("", sets=["diffusion.schedule.s=0.01"]).runs
    assert (run.spec.diffusion.schedule.name, run.spec.diffusion.schedule.s) == ("cosine", 0.01)


def test_a_grid_is_every_combination_in_order(study):
    loaded = study("grid: {diffusion.schedule: [linear, cosine], optim.lr: [1e-3, 2e-3]}")
    assert arms(loaded) == ["linear-lr=0.001", "linear-lr=0.002", "cosine-lr=0.001", "cosine-lr=0.002"]


def test_coupled_paths_of_a_grid_move_together(study):
    loaded = study("grid: {model.channels & optim.lr: [[32, 1.4e-4], [64, 1.0e-4]]}")
    assert [(run.spec.model.channels, run.spec.optim.lr) for run in loaded.runs] == [(32, 1.4e-4), (64, 1.0e-4)]
    assert arms(loaded) == ["channels=32", "channels=64"]


def test_labels_grow_until_they_tell_the_points_apart(study):
    def labels(points):
        return arms(study(f"grid: {{objective & diffusion.var_type: {points}}}"))

    assert labels("[[vlb, learned], [{name: hybrid}, learned]]") == ["vlb", "hybrid"]
    two = "[[{name: hybrid, lambda_vlb: 0.1}, learned], [{name: hybrid, lambda_vlb: 1}, learned]]"
    assert labels(two) == ["hybrid(lambda_vlb=0.1)", "hybrid(lambda_vlb=1)"]
    assert labels("[[vlb, learned], [vlb, learned_range]]") == ["vlb,learned", "vlb,learned_range"]


def test_arms_and_grid_multiply(study):
    loaded = study("arms: {a: {}, b: {optim.lr: 1e-3}}\ngrid: {train.steps: [1]}")
    assert arms(loaded) == ["a-steps=1", "b-steps=1"]


def test_replicates_differ_in_the_seed_alone_and_arms_share_seeds(study):
    loaded = study("seed: 7\nreplicates: 3\narms: {a: {}, b: {optim.lr: 1e-3}}")
    assert [(run.arm, run.replicate, run.spec.seed) for run in loaded.runs] == [
        *(("a", 0, 7), ("a", 1, 8), ("a", 2, 9)),
        *(("b", 0, 7), ("b", 1, 8), ("b", 2, 9)),
    ]
    assert len({run.run_key for run in loaded.runs}) == 6
    assert loaded.runs[0].spec == loaded.runs[1].spec.model_copy(update={"seed": 7})


def test_more_replicates_leave_the_first_ones_as_they_were(study):
    two, three = study("replicates: 2"), study("replicates: 3")
    assert [run.run_key for run in three.runs[:2]] == [run.run_key for run in two.runs]


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        ("{diffusion.schedule: linear}", ["cosine-lr=0.001", "cosine-lr=0.002"]),
        ("{diffusion.schedule: linear, optim.lr: 1e-3}", ["linear-lr=0.002", "cosine-lr=0.001", "cosine-lr=0.002"]),
        ("{diffusion.schedule: {name: cosine, s: 0.008}}", ["linear-lr=0.001", "linear-lr=0.002"]),
        ("{arm: cosine-lr=0.002}", ["linear-lr=0.001", "linear-lr=0.002", "cosine-lr=0.001"]),
        ("{model.channel_mult: [1, 2], optim.lr: 0.001}", ["linear-lr=0.002", "cosine-lr=0.002"]),
    ],
)
def test_an_exclusion_drops_the_runs_that_meet_all_its_conditions(study, rule, left):
    loaded = study(f"grid: {{diffusion.schedule: [linear, cosine], optim.lr: [1e-3, 2e-3]}}\nexclude: [{rule}]")
    assert arms(loaded) == left


def test_an_exclusion_that_an_earlier_one_covers_is_not_called_idle(study):
    loaded = study("arms: {a: {}, b: {optim.lr: 1e-3}}\nexclude: [{optim.lr: 0.001}, {arm: b}]")
    assert arms(loaded) == ["a"]


# Python functions that are called to plan and key one run; 90 when this was written.
MOST_CALLS_A_RUN = 120


def test_the_work_of_planning_grows_with_the_number_of_runs_and_no_faster(study):
    def calls(replicates):
        """Return how many Python functions are called to plan 10 arms and key their runs."""
        count = 0

        def on_event(frame, event, argument):
            nonlocal count
            count += event == "call"

        sys.setprofile(on_event)
        try:
            runs = study(
                f"replicates: {replicates}\ngrid: {{optim.lr: [1e-3, 2e-3], train.steps: [1, 2, 3, 4, 5]}}"
            ).runs
            assert len({run.run_key for run in runs}) == 10 * replicates
        finally:
            sys.setprofile(None)
        return count

    calls(1)  # what is made once a process
    few, more, many = (calls(replicates) for replicates in (2, 6, 10))
    assert many - more == pytest.approx(more - few, rel=0.1)
    assert many - more < 40 * MOST_CALLS_A_RUN


# ------------------------------------------------------------------------------------------------------------- extends


def test_extends_lays_files_over_each_other_in_order(tmp_path):
    (tmp_path / "a.yaml").write_text(BASE)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.yaml").write_text("study: b\nextends: ../a.yaml\noptim: {lr: 1e-3, grad_clip: 1}\n")
    (tmp_path / "c.yaml").write_text("study: c\noptim: {lr: 2e-3}\n")
    (tmp_path / "d.yaml").write_text("study: d\nextends: [sub/b.yaml, c.yaml]\noptim: {warmup_steps: 5}\n")
    loaded = load_study(tmp_path / "d.yaml")
    optim = loaded.runs[0].spec.optim
    assert loaded.name == "d"
    assert (optim.lr, optim.grad_clip, optim.warmup_steps) == (2e-3, 1, 5)


def test_the_name_of_a_study_is_not_inherited(tmp_path):
    (tmp_path / "a.yaml").write_text(BASE)
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(SpecError, match="study: a study's name"):
        load_study(tmp_path / "b.yaml")


def test_a_circle_of_extends_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("study: a\nextends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("study: b\n\nextends: a.yaml\n")
    with pytest.raises(SpecError, match=r"b.yaml:3: extends: .*a.yaml extends itself"):
        load_study(tmp_path / "a.yaml")


def test_a_mistake_in_the_base_file_gets_the_base_files_name_and_line(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE.replace("channels: 32", "chanels: 32"))
    (tmp_path / "study.yaml").write_text("study: s\nextends: base.yaml\n")
    with pytest.raises(SpecError) as caught:
        load_study(tmp_path / "study.yaml")
    assert str(caught.value) == f"{tmp_path}/base.yaml:4: model.chanels: unknown key; did you mean 'channels'?"


def test_a_missing_base_is_told_at_the_line_that_asks_for_it(refused):
    message = refused("study: s\n\nextends: nowhere.yaml\n", extends=False)
    assert message == (
        "study.yaml:3: extends: nowhere.yaml: cannot be read: No such file or directory; "
        "the path is relative to the folder of this file"
    )


@pytest.mark.parametrize("target", ["/dev/zero", ".", '"a\\0b"'])
def test_what_is_no_file_is_not_read(refused, target):
    message = refused(f"study: s\nextends: {target}\n", extends=False)
    assert message.startswith("study.yaml:2: extends: ") and "cannot be read" in message


def test_a_study_that_is_not_there_is_told_by_name(tmp_path):
    with pytest.raises(SpecError, match=r"gone.yaml: cannot be read: No such file"):
        load_study(tmp_path / "gone.yaml")


# --------------------------------------------------------------------------------------------------------------- --set


def test_set_changes_a_field_of_every_run(study):
    loaded = study("arms: {a: {optim.lr: 1e-3}, b: {optim.lr: 2e-3}}", sets=["train.steps=5", "optim.betas=[0.5, 0.9]"])
    assert {(run.spec.train.steps, run.spec.optim.betas) for run in loaded.runs} == {(5, (0.5, 0.9))}
    assert loaded.runs[0].overrides["train.steps"] == 5


def test_set_wins_over_an_arm(study):
    (run,) = study("arms: {a: {train.steps: 7}}", sets=["train.steps=5"]).runs
    assert run.spec.train.steps == 5


def test_set_reaches_the_studys_own_fields_and_list_entries(study):
    loaded = study(
        "replicates: 3\nevaluate: [{name: eval, nll: {num_images: 100}}]",
        sets=["replicates=2", "evaluate.0.nll.num_images=50", "study=trial", "data_root=/data"],
    )
    assert (loaded.name, len(loaded.runs), loaded.runs[0].data_root) == ("trial", 2, "/data")
    assert loaded.runs[0].evaluations[0].nll.num_images == 50


def test_set_reaches_resources_and_leaves_the_key(study):
    assert study("", sets=["resources.threads=2"]).runs[0].resources.threads == 2
    assert study("", sets=["resources.threads=2"]).runs[0].run_key == study("").runs[0].run_key


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.steps", "--set train.steps: write --set path=value, as in --set train.steps=100"),
        ("a b=1", "--set a b=1: write --set path=value, as in --set train.steps=100"),
        ("train.stpes=1", "--set train.stpes=1: train.stpes: unknown key; did you mean 'steps'?"),
        ("train.steps=1.5", "--set train.steps=1.5: train.steps: input should be a valid integer, not 1.5"),
        (
            "train.steps=no",
            "--set train.steps=no:1: bare 'no' is a boolean in YAML 1.1; write true or false, or quote it",
        ),
        ("evaluate.3.grid=1", "--set evaluate.3.grid=1: evaluate.3.grid: no such entry; choices: 0"),
        ("replicates=many", "--set replicates=many: replicates: a number of runs from 1 to 10000, not 'many'"),
    ],
)
def test_a_wrong_set_is_told_as_it_was_typed(refused, text, message):
    assert refused("evaluate: [{name: eval, grid: 4}]", sets=[text]) == message


# ------------------------------------------------------------------------------------------------------------ identity


def test_resources_records_and_evaluations_are_outside_the_run_key(study):
    (plain,) = study("").runs
    (dressed,) = study(
        """\
        resources: {threads: 1, gpus_per_node: 1, microbatch: 8}
        records: {keep_every: 10}
        evaluate: [{name: eval, nll: {}}]
        data_root: /data
        budget_gpu_hours: 3
        """
    ).runs
    assert dressed.run_key == plain.run_key
    assert (dressed.resources.gpus_per_node, dressed.records.keep_every, dressed.data_root) == (1, 10, "/data")


def test_an_arm_of_resources_alone_is_the_same_run_twice(refused):
    assert "are the same run: they differ in nothing that the weights depend on" in refused(
        "arms: {a: {}, b: {resources.threads: 2}}"
    )


def test_a_run_keeps_its_place_in_the_study(study):
    run = study("replicates: 2\narms: {a: {optim.lr: 1e-3}}\nevaluate: [{name: eval, grid: 4}]").runs[1]
    facts = run.membership()
    assert (facts["arm"], facts["replicate"], facts["overrides"]) == ("a", 1, {"optim.lr": 1e-3})
    assert facts["evaluations"][0]["grid"] == 4
    assert run.resolved["schema_version"] == 1 and run.resolved["seed"] == 1


# ------------------------------------------------------------------------------------------------------------ evaluate


def test_an_evaluation_can_be_for_some_arms_and_replicates(study):
    loaded = study(
        """\
        arms: {a: {}, b: {optim.lr: 1e-3}}
        replicates: 2
        evaluate:
          - {name: eval, nll: {}}
          - {name: eval_grid, arms: [b], grid: 4}
          - {name: eval_first, replicates: [0], grid: 9}
        """
    )
    assert {(run.arm, run.replicate): [one.name for one in run.evaluations] for run in loaded.runs} == {
        ("a", 0): ["eval", "eval_first"],
        ("a", 1): ["eval"],
        ("b", 0): ["eval", "eval_grid", "eval_first"],
        ("b", 1): ["eval", "eval_grid"],
    }


def test_evaluations_share_a_name_while_they_measure_different_things(study):
    loaded = study(
        """\
        arms: {a: {}, b: {optim.lr: 1e-3}}
        evaluate:
          - {name: eval, nll: {}}
          - {name: eval, arms: [b], sweep: {num_steps: [10], num_samples: 20}}
          - {name: eval, grid: 4}
        """
    )
    a, b = loaded.runs
    assert [one.parts for one in a.evaluations] == [["nll"], ["grid"]]
    assert [one.parts for one in b.evaluations] == [["nll"], ["sweep"], ["grid"]]
    assert len({one.key for one in b.evaluations}) == 3
    assert {one.name for one in b.evaluations} == {"eval"}


def test_one_name_for_two_measurements_of_the_same_thing_is_refused(refused):
    message = refused("evaluate:\n  - {name: eval, nll: {}, grid: 4}\n  - {name: eval, nll: {clip: false}, grid: 9}\n")
    assert message == (
        "study.yaml:5: evaluate.1.name: two evaluations named 'eval' measure nll and grid; "
        "the name is the prefix of their metrics, so rename one of them"
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{name: eval, arms: [lineer]}", "evaluate.0.arms: no arm 'lineer'; did you mean 'linear'?"),
        ("{name: eval, arms: linear}", "evaluate.0.arms: a list, not 'linear'"),
        ("{name: eval, replicates: [2]}", "evaluate.0.replicates: no replicate 2; choices: 0 to 1"),
        ("{name: eval, replicates: [true]}", "evaluate.0.replicates: a list, not [True]"),
        ("{name: eval, nil: {}}", "evaluate.0.nil: unknown key; did you mean 'nll'?"),
        (
            "{name: train, nll: {}}",
            "evaluate.0.name: 'train' is the prefix of other metrics; use eval or eval_something",
        ),
        ("{fidelity: {sampler: ddmi}}", "evaluate.0.fidelity.sampler: unknown name 'ddmi'; did you mean 'ddim'?"),
        ("{fidelity: {num_steps: 250}}", "evaluate.0: section 1 of '250' has 100 steps, cannot keep 250 of them"),
        ("{sweep: {samplers: [ancestral, {name: ddim, eta: 2}]}}", "evaluate.0.sweep.samplers.1.eta: input should be"),
        (
            "{fidelity: {num_steps: 5, extractor: inception}}",
            "evaluate.0: extractor inception: set HARNESS_INCEPTION_WEIGHTS to",
        ),
        (
            "{sweep: {num_steps: [5], samplers: [ddim, {name: ddim, eta: 1}]}}",
            "evaluate.0: sweep: two samplers are called ddim",
        ),
        ("{every: 5}", "evaluate.0: every: requires an nll to measure during training"),
    ],
)
def test_a_wrong_evaluation_is_told_with_its_place(refused, entry, message):
    text = f"arms: {{linear: {{}}}}\nreplicates: 2\nevaluate:\n  - {entry}\n"
    assert refused(text, sets=["diffusion.num_timesteps=100"]).startswith(f"study.yaml:6: {message}")


def test_a_named_protocol_is_what_it_stands_for(study):
    by_name = study("evaluate: [{name: eval, nll: {}, protocol: laptop, fidelity: {metrics: [kid]}}]")
    written_out = study(
        "evaluate: [{name: eval, nll: {}, fidelity: {metrics: [kid], num_samples: 2000, sampler: ddim, num_steps: 50, "
        "extractor: classifier, k: 3}}]"
    )
    assert by_name.runs[0].evaluations == written_out.runs[0].evaluations
    assert by_name.runs[0].evaluations[0].key == written_out.runs[0].evaluations[0].key


def test_a_field_that_contradicts_its_protocol_is_refused_at_its_line(refused):
    message = refused("evaluate:\n  - name: eval\n    protocol: laptop\n    fidelity:\n      num_samples: 500\n")
    assert message == (
        "study.yaml:7: evaluate.0.fidelity.num_samples: protocol laptop has 2000, not 500: remove this line, or write "
        "out the fields instead of protocol"
    )
    assert refused("evaluate:\n  - {protocol: imagenet}\n") == (
        "study.yaml:4: evaluate.0.protocol: 'imagenet': choices: ddpm, iddpm, adm, laptop"
    )


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: {}", "study.yaml:3: modle: unknown key; did you mean 'model'?"),
        (
            "train.steps: 30",
            "study.yaml:3: train.steps: dotted paths are for arms, grid and --set; write train: {steps: ...} here",
        ),
        (
            "zzz: {}",
            "study.yaml:3: zzz: unknown key; choices: study, extends, plugins, arms, grid, replicates, exclude,",
        ),
        (
            "objective: {nmae: simple}",
            "study.yaml:3: objective: missing `name`; choices: simple, hybrid, vlb, min_snr",
        ),
        (
            "objective: {name: simple, nmae: 1}",
            "study.yaml:3: objective.nmae: unknown key; did you mean 'name'?",
        ),
        (
            "diffusion:\n  schedule: cosin\n",
            "study.yaml:4: diffusion.schedule: unknown name 'cosin'; did you mean 'cosine'? "
            "(choices: linear, cosine, vp, geometric)",
        ),
        ('data: "\\uD800"', "study.yaml:3: data: unknown name '\\\\ud800'; choices: digits"),
        ("diffusion: {mean_type: eps}", "study.yaml:3: diffusion.mean_type: unknown value 'eps'; choices: 'epsilon'"),
        ("model:\n  dropout: 1.5\n", "study.yaml:4: model.dropout: input should be less than 1, not 1.5"),
        ("model: {channels: '64'}", "study.yaml:3: model.channels: input should be a valid integer, not '64'"),
        ("model: {class_cond: 1}", "study.yaml:3: model.class_cond: input should be a valid boolean, not 1"),
        ("train: fast", "study.yaml:3: train: a mapping is expected, not 'fast'"),
        ("data: {name: image_folder, path: a}", "study.yaml:3: data.image_size: is required"),
        ("resources: {cpu: 1}", "study.yaml:3: resources.cpu: unknown key; did you mean 'cpus'?"),
        (
            "records: {log_every: 0}",
            "study.yaml:3: records.log_every: input should be greater than or equal to 1, not 0",
        ),
        ("replicates: 0", "study.yaml:3: replicates: a number of runs from 1 to 10000, not 0"),
        ("replicates: true", "study.yaml:3: replicates: a number of runs from 1 to 10000, not True"),
        ("replicates: 2\nseed: 2147483647", "study.yaml:4: seed: 2147483647 plus 2 replicates exceeds 2**31 - 1"),
        ("budget_gpu_hours: -1", "study.yaml:3: budget_gpu_hours: hours, 0 or more, not -1"),
        ("data_root: [a]", "study.yaml:3: data_root: a folder's path, not ['a']"),
        ("arms: [a]", "study.yaml:3: arms: a mapping of names to what they change"),
        ("arms: {a: 3}", "study.yaml:3: arms.a: a mapping of paths to values, not 3"),
        ("arms: {a/b: {}}", "study.yaml:3: arms.'a/b': an arm's name must be printable, without slashes"),
        ('arms: {"a\\nb": {}}', "study.yaml:3: arms.'a\\nb': an arm's name must be printable"),
        ("arms:\n  a: {modl.x: 1}", "study.yaml:4: modl.x: unknown key; did you mean 'model'?"),
        ("arms:\n  a: {seed: 1}", "study.yaml:4: seed: seeds are replicates, not arms: use `replicates: 3`"),
        ("arms:\n  a: {model..x: 1}", "study.yaml:4: model..x: a dotted path such as diffusion.schedule is expected"),
        ("grid: {}", "study.yaml:3: grid: a mapping of paths to lists"),
        ("grid: {objective: simple}", "study.yaml:3: grid.objective: a list of values, or {choices"),
        ("grid: {optim.lr: []}", "study.yaml:3: grid.optim.lr: a list of values, or {choices"),
        (
            "grid: {optim.lr: [1, 1]}",
            "study.yaml:3: grid: two points have the name 'lr=1': remove a value that is listed twice",
        ),
        (
            "grid:\n  model.channels & optim.lr:\n    - [32, 1e-3]\n    - 64\n",
            "study.yaml:6: grid.model.channels & optim.lr: 2 paths change together, so a point is a list of 2 values",
        ),
        ("arms: {a: {}, b: {}}", "study.yaml:3: arms 'a' (replicate 0) and 'b' (replicate 0) are the same run"),
        ("exclude: {arm: a}", "study.yaml:3: exclude: a list of mappings"),
        (
            "exclude:\n  - {objective: vlb}",
            "study.yaml:4: exclude: rule {'objective': 'vlb'} matches no run; remove it",
        ),
        ("exclude:\n  - {data: digits}", "study.yaml:3: exclude: every run is excluded"),
        ("evaluate: {name: eval}", "study.yaml:3: evaluate: a list of protocols"),
        ("diffusion: {num_timesteps: 20, schedule: linear}", "study.yaml:3: diffusion: a linear schedule with"),
        (
            "objective: hybrid\ndiffusion: {var_type: fixed}",
            "study.yaml:3: objective hybrid trains the variance, but diffusion.var_type is fixed",
        ),
        ("grid: {optim.lr: {choices: [1, 2]}}", "study.yaml:3: grid.optim.lr: a list of values, or {choices"),
        ("grid: {optim.lr: {choices: [1], when: 3}}", "study.yaml:3: grid.optim.lr.when: a mapping"),
        (
            "grid: {optim.lr: {choices: [1], when: {objective: vlb}}}",
            "study.yaml:3: when: is never true; it may refer to arms, to axes above, and to the base",
        ),
        ("evaluate: [{name: eval, nll, grid: 64}]", "study.yaml:3: evaluate.0.nll: has no value: give one, `{}`"),
        ("evaluate:\n  - name: eval\n    nll: {}\n    every:\n", "study.yaml:6: evaluate.0.every: has no value"),
        (
            "evaluate: [{nll: null, grid: 64}]",
            "study.yaml:3: evaluate.0.nll: is null, so nothing would be measured: write `nll: {}`, or remove it",
        ),
        ("evaluate: [{nll: {}, grid: ~}]", "study.yaml:3: evaluate.0.grid: is null, so nothing would be measured"),
        ("arms:\n#  a: {}\n", "study.yaml:3: arms: has no value"),
        ("resources: null", "study.yaml:3: resources: a mapping is expected, not None"),
        ("records: []", "study.yaml:3: records: a mapping is expected, not ()"),
        ("train: {steps: 2.5e0}", "study.yaml:3: train.steps: input should be a valid integer, not 2.5"),
        ("train: {steps: 1e300}", "study.yaml:3: train.steps: input should be a valid integer, not 1e+300"),
    ],
)
def test_a_mistake_is_told_with_file_line_path_and_choices(refused, text, message):
    assert refused(text).startswith(message)


@pytest.mark.parametrize("name", ["a b", "../x", "/x", "a/b", "''", "a..b", ".x", "-x", "x" * 101, '"a\\nb"', "~", "1"])
def test_a_study_cannot_be_called(refused, name):
    message = refused(f"study: {name}\nextends: base.yaml\n", extends=False)
    assert message.startswith("study.yaml:1: study: a study's name has letters, digits")


def test_every_mistake_of_a_run_is_told_at_once(refused):
    message = refused("model:\n  chanels: 3\n  dropout: 2\noptim: {lr: -1}\n")
    assert sorted(message.split("\n")) == [
        "study.yaml:4: model.chanels: unknown key; did you mean 'channels'?",
        "study.yaml:5: model.dropout: input should be less than 1, not 2",
        "study.yaml:6: optim.lr: input should be greater than 0, not -1",
    ]


def test_mistakes_of_every_part_of_a_file_are_told_at_once(refused):
    message = refused(
        "replicates: 0\nbudget_gpu_hours: -1\nmodle: {}\ntrain: {steps: 0}\n"
        "arms:\n  a: {model.dropout: 2}\n  b: {}\n  c: {data: digitz}\n"
        "evaluate:\n  - {name: eval, nll: {clip: 3}}\n  - {name: eval, arms: [d], nll: {}}\n"
    )
    places = [line.split(": ")[:2] for line in message.split("\n")]
    assert sorted(places) == [
        ["study.yaml:10", "data"],
        ["study.yaml:12", "evaluate.0.nll.clip"],
        ["study.yaml:13", "evaluate.1.arms"],
        ["study.yaml:3", "replicates"],
        ["study.yaml:4", "budget_gpu_hours"],
        ["study.yaml:5", "modle"],
        ["study.yaml:6", "train.steps"],
        ["study.yaml:8", "model.dropout"],
    ]


def test_traps_of_yaml_are_told_at_once(refused):
    message = refused("a: yes\nb: 010.5\nc:\nd: {e: &x 1, e: 2}\nf: !!int 3\n")
    assert [line.split(":")[1] for line in message.split("\n")] == ["3", "4", "5", "6", "7"]


def test_mistakes_beyond_twenty_are_counted(refused):
    lines = refused("".join(f"key{index}: 1\n" for index in range(30))).split("\n")
    assert len(lines) == 21 and lines[-1] == "... and 10 more"


@pytest.mark.parametrize(("text", "value"), [("2e1", 20), ("2.0", 2), ("1.5e1", 15)])
def test_a_whole_number_is_an_integer_however_it_is_written(study, text, value):
    (run,) = study(f"train: {{steps: {text}}}\nevaluate: [{{grid: {text}, sweep: {{num_steps: [{text}]}}}}]\n").runs
    (plain,) = study(f"train: {{steps: {value}}}\n").runs
    assert run.run_key == plain.run_key and type(run.spec.train.steps) is int
    assert run.evaluations[0].grid == value and run.evaluations[0].sweep.num_steps == (value,)
    assert len(study(f"replicates: {text}").runs) == value


def test_zero_has_one_sign(study):
    (minus,), (plain,) = (study(f"optim: {{weight_decay: {zero}}}").runs for zero in ("-0.0", "0.0"))
    assert minus.run_key == plain.run_key


def test_an_axis_can_be_for_one_choice_alone(study):
    loaded = study(
        "grid:\n"
        "  diffusion.schedule: [linear, cosine]\n"
        "  diffusion.schedule.s: {choices: [0.008, 0.05], when: {diffusion.schedule: cosine}}\n"
    )
    assert arms(loaded) == ["linear", "cosine-s=0.008", "cosine-s=0.05"]
    assert [getattr(run.spec.diffusion.schedule, "s", None) for run in loaded.runs] == [None, 0.008, 0.05]


@pytest.mark.parametrize(
    ("condition", "left"),
    [
        ("{arm: a}", []),  # conditions are of the spec
        ("{objective: [hybrid, vlb]}", ["a-lr=1", "a-lr=2", "b-lr=1", "b-lr=2"]),
        ("{objective.name: vlb, model.dropout: 0.1}", ["a", "b-lr=1", "b-lr=2"]),
        ("{diffusion.mean_type: epsilon}", ["a-lr=1", "a-lr=2", "b-lr=1", "b-lr=2"]),  # a default
        ("{model.num_heads: 4, objective: hybrid}", ["a-lr=1", "a-lr=2", "b"]),
        ("{model.dropout: true}", []),
    ],
)
def test_conditions_are_of_arms_the_base_and_its_defaults(study, refused, condition, left):
    text = (
        "arms:\n  a: {objective: hybrid}\n  b: {objective: vlb, model.dropout: 0.1}\n"
        f"grid: {{optim.lr: {{choices: [1, 2], when: {condition}}}}}\n"
    )
    if left:
        assert arms(study(text)) == left
    else:
        assert "when: is never true" in refused(text)


def test_an_objective_that_trains_the_variance_needs_no_second_axis(study):
    loaded = study("grid: {objective: [simple, hybrid, vlb, min_snr]}")
    assert arms(loaded) == ["simple", "hybrid", "vlb", "min_snr"]
    assert [run.spec.diffusion.var_type for run in loaded.runs] == ["fixed", "learned_range", "learned_range", "fixed"]
    paired = study("grid: {objective & diffusion.var_type: [[simple, fixed], [hybrid, learned_range]]}")
    assert [run.run_key for run in paired.runs] == [run.run_key for run in loaded.runs[:2]]


def test_an_exclusion_does_not_take_true_for_1(refused):
    assert "matches no run" in refused("train: {batch_size: 1}\nexclude: [{train.batch_size: true}]")


def test_a_mistake_in_an_arm_is_told_at_the_arm(refused):
    message = refused("arms:\n  good: {}\n  bad:\n    model.dropout: 2\n")
    assert message == "study.yaml:6: model.dropout: input should be less than 1, not 2"


def test_a_rule_between_parts_is_told_where_the_part_at_fault_stands(refused):
    assert refused("model: {dropout: 0.1}\ndata: mog\n").startswith("study.yaml:3: model unet does not fit data mog")
    assert refused("optim: {lr: 1}\nmodel:\n  attention_resolutions: [2]\n").startswith(
        "study.yaml:5: model.attention_resolutions: the network has no feature maps of 2x2"
    )
    assert refused("arms:\n  a: {}\n  b: {diffusion.var_type: learned}\n").startswith("study.yaml:5: objective simple")


def test_a_mistake_in_a_grid_is_told_at_its_point(refused):
    message = refused("grid:\n  diffusion.schedule:\n    - linear\n    - cosin\n")
    assert message.startswith("study.yaml:6: diffusion.schedule: unknown name 'cosin'")


@pytest.mark.slow
def test_more_than_100000_runs_are_refused_before_they_are_made(refused):
    axes = "".join(f"  {path}: {list(range(1, 48))}\n" for path in ("train.steps", "train.batch_size", "optim.lr"))
    assert refused(f"grid:\n{axes}") == "study.yaml:3: grid: more than 100000 runs in a study"
    assert refused(f"replicates: 10000\ngrid:\n  train.steps: {list(range(1, 12))}\n") == (
        "study.yaml:4: grid: more than 100000 runs in a study"
    )


def test_a_message_is_one_printable_line_of_bounded_length(refused):
    message = refused('"k\\n\\u2028\\uD800": 1\n')
    assert message.isprintable() and message.startswith("study.yaml:3: ")
    assert len(refused(f"model: {{channels: {'x' * 100_000}}}")) < 1000


# --------------------------------------------------------------------------------------------------------- YAML's traps


def value_of(text):
    return parse_yaml(f"x: {text}", "f")[0]["x"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1.e3", 1e3),
        (".5", 0.5),
        ("-1_000", -1000),
        ("1_0.5", 10.5),
        ("+3", 3),
        ("0", 0),
        ("-0.0", -0.0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("'no'", "no"),
        ("'12'", "12"),
        ("1:30", "1:30"),  # 90 to YAML 1.1
        ("0x1F", "0x1F"),
        ("0o17", "0o17"),
        ("2001-01-01", "2001-01-01"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("norm", "norm"),
        ("[1, [2e0, a]]", [1, [2.0, "a"]]),
    ],
)
def test_a_plain_value_is_read_as_what_it_looks_like(text, value):
    found = value_of(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: no", "f:1: x: bare 'no' is a boolean in YAML 1.1; write true or false, or quote it"),
        ("x: [a, On]", "f:1: x.1: bare 'On' is a boolean"),
        ("x: Y", "f:1: x: bare 'Y' is a boolean"),
        ("x: 007", "f:1: x: '007' is octal in some parsers"),
        ("x: 01.5", "f:1: x: '01.5' is octal in some parsers"),
        ("x: 1e999", "f:1: x: '1e999' is beyond the range of a float"),
        ("x: 1\ny: 2\nx: 3", "f:3: x: duplicate key; first at line 1"),
        ("x:\n  a: 1\n  a: 2", "f:3: x.a: duplicate key; first at line 2"),
        ("x: &a 1\ny: *a", "f:1: y: anchors and aliases are not allowed; use extends or arms"),
        ("x: &a [*a]", "f:1: x.0: anchors and aliases"),
        ("x: &a {b: 1}\ny: {<<: *a}", "f:2: y: keys are plain words (no merge keys, lists or maps)"),
        ("? [a]\n: 1", "f:1: keys are plain words"),
        ("x: !!python/object/apply:os.system [ls]", "f:1: x: tags such as 'tag:yaml.org,2002:python/object/apply:os.s"),
        ("x: !!float 1", "f:1: x: tags such as 'tag:yaml.org,2002:float' are not part of a study"),
        ("x: !a {}", "f:1: x: tags such as '!a'"),
        ("x:\n\t- 1", "f:2: not YAML: found character '\\t' that cannot start any token (YAML indents with spaces"),
        ("x: [1", "f:1: not YAML: expected ',' or ']'"),
        ("a: 1\n---\nb: 2", "f:2: not YAML: but found another document"),
        ('x: "\\UFFFFFFFF"', "f:1: not YAML: an escape is not a valid character"),
        ("x: *nowhere", "f:1: not YAML: found undefined alias"),
        ("x: \x07", "f:1: not YAML: unacceptable character"),
        ("x: " + "[" * 40 + "]" * 40, "f:1: x.0.0.0...: nested deeper than 30 levels"),
        ("x: " + "[" * 5000, "f:1: "),
    ],
    ids=lambda text: text[:30],
)
def test_a_trap_of_yaml_is_refused_by_name(text, message):
    with pytest.raises(SpecError) as caught:
        parse_yaml(text, "f")
    assert str(caught.value).startswith(message)


def test_a_long_number_is_read_without_trying_all_its_parts():
    assert value_of("1" * 200_000 + "x").endswith("x")  # a pattern that backtracks would take hours


def test_bytes_that_are_no_text_are_told_with_their_line(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_bytes(b"study: s\ndata: \xff\n")
    with pytest.raises(SpecError, match=r"s.yaml:2: not UTF-8 text: byte 0xff"):
        load_study(path)


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n", "word\n"])
def test_a_file_that_is_no_mapping_is_no_study(tmp_path, text):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=r"s.yaml:1: a study is a mapping that starts with `study: name`"):
        load_study(path)


def test_a_file_of_more_than_a_mebibyte_is_not_read(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("study: s\n" + "#" * 2**20)
    with pytest.raises(SpecError, match="larger than 1048576 bytes"):
        load_study(path)


# ------------------------------------------------------------------------------------------------------------ warnings


def test_a_warning_is_said_once_with_the_arms_that_it_concerns(study):
    loaded = study(
        "replicates: 2\narms: {a: {}, b: {optim.lr: 1e-3}, c: {train.ema_rate: 0.9}}\ntrain: {ema_rate: 0.9999}"
    )
    (warning,) = loaded.warnings()
    assert warning.startswith("a, b: train.ema_rate 0.9999 over 400 steps keeps 96%")


# ------------------------------------------------------------------------------------- the best checkpoint, and parents


CURVE = "evaluate: [{name: eval, nll: {}}, {name: curve, nll: {}, every: 100}]\n"


def test_the_metric_of_the_best_checkpoint_is_one_that_an_evaluation_gives_during_training(study, refused):
    (run,) = study(CURVE + "records: {best: curve/nll_bpd}").runs
    assert run.records.best == "curve/nll_bpd"
    said = refused(CURVE + "records: {best: eval/nll_bpd}")
    assert said.startswith("study.yaml:4: records.best: no evaluation measures 'eval/nll_bpd' during training; ")
    assert "'curve/nll_bpd'" in refused(CURVE + "records: {best: curve/nll}")
    assert "no evaluation has `every` and an nll or a fidelity" in refused("records: {best: eval/nll_bpd}")


def test_an_evaluation_of_the_best_checkpoint_needs_a_metric_that_chooses_it(study, refused):
    of_best = CURVE.replace("]\n", ", {name: chosen, checkpoint: best, nll: {}}]\n")
    evaluations = study(of_best + "records: {best: curve/nll_bpd}").runs[0].evaluations
    assert [evaluation.checkpoint for evaluation in evaluations] == ["last", "last", "best"]
    assert len({evaluation.key for evaluation in evaluations}) == 3
    assert "no checkpoint is the best: let records.best name a metric" in refused(of_best)
    for field, message in {
        "every: 10": "known when the training is over: remove every",
        "weights: untrained": "of no checkpoint",
    }.items():
        said = refused(of_best.replace("best,", f"best, {field},") + "records: {best: curve/nll_bpd}")
        assert said.startswith("study.yaml:3: evaluate.2: checkpoint: ") and message in said


def test_an_average_is_looked_for_among_those_of_each_arm(refused):
    entries = "evaluate: [{name: eval, ema: 0.99, nll: {}}]\n"
    said = refused(entries + "arms: {a: {train.ema: [0.9, 0.99], train.ema_rate: null}, b: {train.ema_rate: 0.9}}")
    assert "this run does not keep an average of rate 0.99; choices: 0.9" in said


BY_FID = """
evaluate:
  - {name: eval, every: 100, during_training: [fidelity], fidelity: {num_samples: 64, num_steps: 5}}
"""


def test_the_best_checkpoint_may_be_that_of_the_lowest_fid_with_a_warning_and_not_of_the_lowest_recall(study, refused):
    loaded = study(BY_FID + "records: {best: eval/fid_digitsnet_64_ancestral5}")
    (warning,) = loaded.warnings()
    assert "the FID of the checkpoint that it chooses is the lowest of several" in warning
    assert study(BY_FID).warnings() == []
    said = refused(BY_FID + "records: {best: eval/recall_digitsnet_64_ancestral5}")
    assert "low values of 'eval/recall_digitsnet_64_ancestral5' are not better" in said
    assert "'eval/fid_digitsnet_64_ancestral5'" in said


def test_a_metric_that_only_some_runs_are_measured_by_is_refused_where_an_arm_or_set_names_it(study, refused):
    only_a = "evaluate: [{arms: [a], nll: {}, every: 100}]\n"
    assert study(only_a + "arms: {a: {records.best: eval/nll_bpd}, b: {optim.lr: 1.0}}").runs[1].records.best is None
    said = refused(only_a + "arms:\n  a: {}\n  b: {records.best: eval/nll_bpd, optim.lr: 1.0}")
    assert said.startswith("study.yaml:6: records.best: no evaluation measures")
    with pytest.raises(SpecError, match=r"--set records\.best=x/y: records\.best: no evaluation measures 'x/y'"):
        study(CURVE, sets=["records.best=x/y"])


def test_arms_may_continue_different_runs(study):
    keys = {"a": "0123456789abcdef", "b": "fedcba9876543210"}
    loaded = study("arms:\n" + "".join(f"  {arm}: {{continue_from: '{key}'}}\n" for arm, key in keys.items()))
    assert {run.arm: run.spec.continue_from for run in loaded.runs} == keys


def test_arms_share_the_parts_that_they_have_in_common_and_each_is_the_spec_that_is_validated_alone(study):
    arms = """
arms:
  first: {optim.lr: 1e-3}
  second: {optim.lr: 2e-3, model.channels: 8}
  third: {optim.lr: 3e-3}
  hybrid: {objective: hybrid}
  fourth: {optim.lr: 4e-3}
"""
    runs = study(arms).runs
    specs = [run.spec for run in runs]
    for spec in specs:
        alone = RunSpec.model_validate(spec.plain)
        assert spec.plain == alone.model_dump(mode="json") and list(spec.plain) == list(alone.model_dump(mode="json"))
        assert spec.run_key == digest({"schema_version": SCHEMA_VERSION, "spec": alone.model_dump(mode="json")})
    assert specs[4].data is specs[3].data and specs[4].data is not None
    assert specs[3].diffusion.var_type == "learned_range" and specs[4].diffusion.var_type == "fixed"
    assert [spec.model.channels for spec in specs].count(8) == 1
