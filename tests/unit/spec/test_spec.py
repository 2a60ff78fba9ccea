"""RunSpec: what is refused, what is warned of, and that the same key means the same science."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.spec.base import canonical_json
from harness.spec.evaluation import Ddim, Evaluation, Fidelity, Nll, Sweep, extractor_name, section_counts
from harness.spec.metrics import recorded_name
from harness.spec.parts import choices
from harness.spec.run import LossSecondMoment, RunSpec, Schedule, Uniform

SMALL = {
    "data": {"name": "digits"},
    "model": {"name": "unet", "channels": 32, "channel_mult": [1, 2], "attention_resolutions": [4]},
    "train": {"steps": 400, "batch_size": 64, "ema_rate": 0.98},
}


def run_spec(**parts):
    """Return SMALL with some parts laid over it."""
    merged = dict(SMALL)
    for key, value in parts.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return RunSpec.model_validate(merged)


def refusal(**parts):
    with pytest.raises(ValidationError) as caught:
        run_spec(**parts)
    return str(caught.value)


# -- identity


def test_the_run_key_of_a_frozen_spec_never_changes():
    # If this fails, every run directory in the world gets a new name. A field that changes its meaning raises
    # SCHEMA_VERSION; a new field, or an edited default, must not come in by accident.
    assert run_spec().run_key == "566baaac0e8635f3"
    published = RunSpec.model_validate(
        {
            "seed": 1,
            "data": "imagenet64",
            "diffusion": {"num_timesteps": 4000, "schedule": "cosine", "var_type": "learned_range"},
            "objective": "hybrid",
            "model": {"channel_mult": [1, 2, 3, 4]},
            "train": {"steps": 200_000},
        }
    )
    assert published.run_key == "994fb2b764699dbb"


def test_a_spec_without_a_parent_is_spelt_as_before_there_were_parents():
    # So the frozen keys above stand, and run directories of before are not of another spec.
    assert "continue_from" not in run_spec().model_dump(mode="json")
    child = run_spec(continue_from="566baaac0e8635f3")
    assert child.model_dump(mode="json")["continue_from"] == "566baaac0e8635f3"
    assert child.run_key not in (run_spec().run_key, run_spec(continue_from="566baaac0e8635f4").run_key)
    assert RunSpec.model_validate(child.model_dump(mode="json")) == child


def test_weights_from_a_file_and_from_a_run_are_refused_together():
    assert "remove one" in refusal(continue_from="566baaac0e8635f3", imported_sha256="a" * 64)


def test_the_resolved_spec_says_every_default():
    stored = run_spec().model_dump(mode="json")
    assert stored["diffusion"] == {
        "num_timesteps": 1000,
        "schedule": {"name": "linear"},
        "mean_type": "epsilon",
        "var_type": "fixed",
    }
    assert stored["optim"]["betas"] == [0.9, 0.999]
    assert stored["seed"] == 0


def test_a_stored_spec_gives_its_key_again():
    spec = run_spec(diffusion={"schedule": {"name": "cosine", "s": 0.01}})
    assert RunSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))).run_key == spec.run_key


def test_an_edited_default_changes_the_run_key(monkeypatch):
    # As if someone wrote another default into the class: old keys must not come to mean the new value.
    written_out = run_spec(optim={"weight_decay": 0.0})
    assert written_out.run_key == run_spec().run_key
    assert run_spec(optim={"weight_decay": 0.01}).run_key != run_spec().run_key


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"data": {"horizontal_flip": True}},
        {"diffusion": {"num_timesteps": 999}},
        {"diffusion": {"schedule": {"name": "cosine"}}},
        {"objective": {"name": "min_snr"}},
        {"timestep_sampler": {"name": "loss_second_moment"}},
        {"model": {"dropout": 0.1}},
        {"model": {"rescale_timesteps": False}},
        {"optim": {"lr": 2e-4}},
        {"train": {"steps": 401}},
        {"train": {"precision": "bf16"}},
    ],
    ids=str,
)
def test_whatever_the_weights_depend_on_changes_the_run_key(change):
    assert run_spec(**change).run_key != run_spec().run_key


def test_an_integer_and_the_same_float_are_one_spec():
    assert run_spec(optim={"grad_clip": 1}).run_key == run_spec(optim={"grad_clip": 1.0}).run_key


@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()))
def test_canonical_json_does_not_depend_on_the_order_of_keys(values):
    backwards = dict(reversed(values.items()))
    assert canonical_json(values) == canonical_json(backwards)
    assert json.loads(canonical_json(values)) == values


def test_canonical_json_refuses_what_json_cannot_say():
    with pytest.raises(ValueError):
        canonical_json({"lr": float("nan")})


def test_a_spec_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        run_spec().seed = 3


def test_the_cost_key_ignores_what_a_step_does_not_pay_for():
    base = run_spec()
    assert run_spec(seed=5, optim={"lr": 1.0}, train={"steps": 9}).cost_key == base.cost_key
    assert run_spec(train={"batch_size": 65}).cost_key != base.cost_key
    assert run_spec(model={"channels": 64}).cost_key != base.cost_key


# -- what fits together


@pytest.mark.parametrize("num_timesteps", [1, 2, 20])
def test_a_linear_schedule_below_21_steps_is_refused(num_timesteps):
    assert "take num_timesteps of 21 or more, or the cosine schedule" in refusal(
        diffusion={"num_timesteps": num_timesteps}
    )


def test_21_linear_steps_and_a_single_cosine_step_are_accepted():
    assert run_spec(diffusion={"num_timesteps": 21}).diffusion.num_timesteps == 21
    assert run_spec(diffusion={"num_timesteps": 1, "schedule": {"name": "cosine"}}).diffusion.num_timesteps == 1


VAR_TYPES_OF = {
    "simple": {"fixed"},
    "min_snr": {"fixed"},
    "hybrid": {"learned", "learned_range"},
    "vlb": {"fixed_small", "fixed_large", "learned", "learned_range"},
}


@pytest.mark.parametrize("var_type", ["fixed", "fixed_small", "fixed_large", "learned", "learned_range"])
@pytest.mark.parametrize("objective", VAR_TYPES_OF)
def test_an_objective_goes_with_the_variance_types_that_it_trains(objective, var_type):
    parts = {"objective": {"name": objective}, "diffusion": {"var_type": var_type}}
    if var_type in VAR_TYPES_OF[objective]:
        assert run_spec(**parts).diffusion.var_type == var_type
    else:
        text = refusal(**parts)
        assert f"objective {objective}" in text
        assert VAR_TYPES_OF[objective] & set(text.replace(",", " ").replace(":", " ").split())  # says what to choose


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"model": {"channel_mult": [1, 2, 2, 2, 2]}}, "8 pixels cannot be halved 4 times"),
        ({"model": {"attention_resolutions": [16]}}, "the network has no feature maps of 16x16; choices: 8, 4"),
        ({"model": {"num_heads": 3}}, "num_heads 3 does not divide the widths [32, 64]"),
        ({"data": {"name": "mog"}}, "mlp is for points such as mog, unet for images"),
        ({"train": {"ema_rate": 1.0}}, "less than 1"),
        ({"train": {"steps": 0}}, "greater than or equal to 1"),
        ({"optim": {"lr": 0.0}}, "greater than 0"),
        ({"optim": {"lr": float("inf")}}, "finite"),
        ({"data": {"name": "cifar10", "batches": [2, 1]}}, "each batch once and in order: [1, 2]"),
        ({"data": {"name": "cifar10", "batches": [6]}}, "less than or equal to 5"),
        ({"data": {"name": "image_folder", "path": "../up", "image_size": 32}}, "leaves data_root"),
        ({"data": {"name": "image_folder", "path": "/etc", "image_size": 32}}, "leaves data_root"),
        ({"data": {"name": "image_folder", "path": "a\nb", "image_size": 32}}, "leaves data_root"),
        ({"data": {"name": "image_folder", "path": "a", "image_size": 32, "test_path": "/b"}}, "leaves data_root"),
        (
            {"data": {"name": "image_folder", "path": "a", "image_size": 32, "test_path": "b", "seed": 1}},
            "test_path names the test images, so nothing is split: remove test_fraction and seed",
        ),
        (
            {"data": {"name": "image_folder", "path": "a", "image_size": 32}, "model": {"class_cond": True}},
            "image_folder has no labels",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused_in_words(parts, message):
    if "data" in parts:
        parts = {**parts, "model": {**parts.get("model", {}), "channel_mult": [1, 2], "attention_resolutions": []}}
        with pytest.raises(ValidationError) as caught:
            RunSpec.model_validate({**SMALL, **parts})
        assert message in str(caught.value)
    else:
        assert message in refusal(**parts)


def test_an_image_folder_declares_its_size_and_classes():
    data = {"name": "image_folder", "path": "cats", "image_size": 32, "num_classes": 2}
    spec = RunSpec.model_validate({**SMALL, "data": data, "model": {**SMALL["model"], "attention_resolutions": [16]}})
    assert (spec.data.pixels, spec.data.facts.num_classes) == (32, 2)


def test_a_bare_name_stands_for_its_defaults():
    assert RunSpec.model_validate({**SMALL, "timestep_sampler": "uniform"}).timestep_sampler == Uniform()
    assert {"linear", "cosine"} <= set(choices(Schedule))


# -- warnings


def test_too_few_steps_to_warm_the_loss_second_moment_sampler_are_warned_of():
    def warnings(steps):
        spec = run_spec(
            diffusion={"num_timesteps": 1000, "var_type": "learned_range"},
            objective={"name": "vlb"},
            timestep_sampler={"name": "loss_second_moment"},
            train={"steps": steps},
        )
        return spec.warnings()

    # 95 % of all trainings are warm after 425 steps of 64 at T = 1000 (by drawing 1,500 of them: half after 364, nine
    # in ten in 327 .. 423). 373 steps are too few to count on.
    (warning,) = warnings(373)
    assert "may stay uniform" in warning and "after 425 steps" in warning and "train.steps is 373" in warning
    assert warnings(425) == []


def test_the_estimate_of_warming_up_agrees_with_drawing_it():
    import numpy as np

    sampler, draws = LossSecondMoment(history_per_term=5), np.random.default_rng(0)
    warm_at = []
    for _ in range(400):
        counts, step = np.zeros(50, int), 0
        while counts.min() < 5:
            counts += np.bincount(draws.integers(0, 50, 16), minlength=50)
            step += 1
        warm_at.append(step)
    assert sampler.steps_to_warm(50, 16) == pytest.approx(np.quantile(warm_at, 0.95), abs=2.5)


def test_an_ema_that_keeps_the_initial_weights_is_warned_of():
    (warning,) = run_spec(train={"ema_rate": 0.9999}).warnings()
    assert "keeps 96% of the initial weights" in warning and "use 0.9942 or less" in warning
    assert run_spec(train={"ema_rate": 0.98}).warnings() == []
    assert run_spec(train={"ema_rate": 0.0}).warnings() == []


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 100, 12_345, 10**6, 10**9])
def test_the_proposed_ema_rate_is_one_that_is_not_warned_of(steps):
    rate = 1 - 1e-12
    (warning,) = run_spec(train={"ema_rate": rate, "steps": steps}).warnings()
    proposed = float(warning.split(" use ")[1].split()[0])
    assert 0 < proposed < 1
    assert run_spec(train={"ema_rate": proposed, "steps": steps}).warnings() == []


# -- evaluations


def test_an_evaluation_has_a_key_of_its_own_over_the_whole_protocol():
    assert Evaluation(nll=Nll()).key == "ad73a19a18efa98f"
    assert Evaluation(nll=Nll(clip=False)).key != Evaluation(nll=Nll()).key
    assert Evaluation(nll=Nll(), weights="raw").key != Evaluation(nll=Nll()).key


def test_an_evaluation_knows_its_parts():
    assert Evaluation(nll=Nll(), grid=4).parts == ["nll", "grid"]
    assert Evaluation(sweep=Sweep(), fidelity=Fidelity()).parts == ["fidelity", "sweep"]


def resolve(evaluation, *, inception=False, **parts):
    return evaluation.resolve(run_spec(**parts), inception=inception)


def test_auto_takes_the_data_sets_own_classifier_on_small_images():
    fidelity = Evaluation(fidelity=Fidelity())
    assert resolve(fidelity).fidelity.extractor == "classifier"
    assert resolve(fidelity, inception=True).fidelity.extractor == "classifier"  # 8 pixels are none for Inception


def test_auto_takes_inception_from_32_pixels_on_where_its_weights_are_given():
    for inception, extractor in ((True, "inception"), (False, "classifier")):
        found = resolve(
            Evaluation(fidelity=Fidelity()),
            inception=inception,
            data={"name": "cifar10"},
            model={"attention_resolutions": [16]},
        )
        assert found.fidelity.extractor == extractor


def test_the_choice_of_a_fixed_variance_is_moot_where_it_is_learned():
    small = Evaluation(nll=Nll(), fixed_variance="small")
    assert resolve(small).fixed_variance == "small"
    learned = {"diffusion": {"var_type": "learned_range"}, "objective": {"name": "hybrid"}}
    assert resolve(small, **learned).key == resolve(Evaluation(nll=Nll()), **learned).key


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        (Evaluation(fidelity=Fidelity(num_steps=1001)), "cannot keep 1001"),
        (Evaluation(fidelity=Fidelity(num_steps=300, sampler=Ddim())), "nearest possible numbers are"),
        (Evaluation(sweep=Sweep(num_steps=(25, 2000))), "cannot keep 2000"),
        (Evaluation(fidelity=Fidelity(extractor="inception")), "HARNESS_INCEPTION_WEIGHTS"),
        (Evaluation(fidelity=Fidelity(extractor="coordinates")), "coordinates are for continuous data such as mog"),
        (Evaluation(every=10), "requires an nll"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_protocol_that_the_run_cannot_give_is_refused(evaluation, message):
    with pytest.raises(ValueError, match=message):
        resolve(evaluation)


def test_images_without_labels_have_inception_or_random_features_and_no_classifier():
    folder = {"data": {"name": "image_folder", "path": "a", "image_size": 32}, "model": {"attention_resolutions": []}}
    spec = RunSpec.model_validate({**SMALL, **folder, "model": {**SMALL["model"], "attention_resolutions": []}})
    with pytest.raises(ValueError, match="no labels"):
        Evaluation(fidelity=Fidelity(extractor="classifier")).resolve(spec, inception=False)
    without = Evaluation(fidelity=Fidelity()).resolve(spec, inception=False)
    assert without.fidelity.extractor == "random_features"
    assert Evaluation(fidelity=Fidelity()).resolve(spec, inception=True).fidelity.extractor == "inception"


@pytest.mark.parametrize("name", ["train", "sweep", "Eval", "a b", "", "eval\n", "../x", "x" * 41])
def test_an_evaluations_name_is_a_free_prefix_of_metrics(name):
    with pytest.raises(ValidationError):
        Evaluation(name=name)


def test_an_extractor_stands_in_a_metric_under_the_name_of_what_it_is():
    names = [extractor_name(one, "digits") for one in ("classifier", "inception", "coordinates")]
    assert names == ["digitsnet", "inception", "coordinates"]


def test_the_classifier_of_an_image_folder_is_named_by_the_digest_of_its_images():
    names = [extractor_name("classifier", "image_folder", digest * 64) for digest in "ab"]
    assert names == ["image_foldernet_aaaaaaaa", "image_foldernet_bbbbbbbb"]
    assert extractor_name("classifier", "digits", "a" * 64) == "digitsnet"
    planned = "fid_image_foldernet_100_ddim10"
    assert recorded_name(planned, "image_folder", "a" * 64) == "fid_image_foldernet_aaaaaaaa_100_ddim10"
    assert recorded_name(planned, "image_folder", None) == planned
    assert recorded_name("fid_digitsnet_100_ddim10", "digits", "a" * 64) == "fid_digitsnet_100_ddim10"


def test_ddim_keeps_the_constant_stride_that_the_paper_found_better():
    assert section_counts(Ddim(), 50) == "ddim50"
    assert section_counts(Ddim(spacing="quad"), 50) == "quad50"
    assert section_counts(Ddim(spacing="even"), 50) == "50"


def test_a_reference_file_counts_by_its_content_and_not_by_its_path(tmp_path, monkeypatch):
    arrays = {"mu": np.zeros(2), "sigma": np.eye(2), "features": np.zeros((9, 2))}
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "reference.npz", **arrays)
    first, second = (
        resolve(Evaluation(fidelity=Fidelity(reference=str(tmp_path / folder / "reference.npz")))) for folder in "ab"
    )
    assert first.fidelity.reference == str(tmp_path / "a" / "reference.npz")
    assert first.fidelity.reference_sha256 == hashlib.sha256(Path(first.fidelity.reference).read_bytes()).hexdigest()
    assert first.key == second.key != resolve(Evaluation(fidelity=Fidelity())).key
    assert resolve(first).key == first.key
    monkeypatch.chdir(tmp_path / "a")
    assert resolve(Evaluation(fidelity=Fidelity(reference="reference.npz"))) == first
    np.savez(tmp_path / "a" / "reference.npz", **arrays | {"mu": np.ones(2)})
    with pytest.raises(ValueError, match=r"fidelity\.reference: .* its sha256 is"):
        resolve(first)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (None, "cannot be read: No such file or directory; `harness reference` writes such a file"),
        ({"arr_0": np.zeros(2)}, "has no mu and sigma"),
        (
            {"mu": np.zeros(2), "sigma": np.eye(2)},
            "has mu and sigma alone, and precision, recall need the features themselves",
        ),
    ],
)
def test_a_reference_file_that_cannot_serve_is_refused_when_it_is_planned(tmp_path, arrays, message):
    path = tmp_path / "reference.npz"
    if arrays:
        np.savez(path, **arrays)
    with pytest.raises(ValueError, match=f"fidelity.reference: {path}: {message}"):
        resolve(Evaluation(fidelity=Fidelity(reference=str(path))))


def test_metrics_that_need_no_features_or_classes_of_the_reference_take_a_file_of_moments(tmp_path):
    path = tmp_path / "adm.npz"
    np.savez(path, mu=np.zeros(2), sigma=np.eye(2))
    assert resolve(Evaluation(fidelity=Fidelity(reference=str(path), metrics=("fid_infinity", "fid")))).fidelity
    np.savez(path, mu=np.zeros(2), sigma=np.eye(2), features=np.zeros((9, 2)))
    with pytest.raises(ValueError, match="class_fid compares images of one class, and a file of statistics has no cla"):
        resolve(Evaluation(fidelity=Fidelity(reference=str(path), metrics=("fid", "class_fid"))))


def test_a_reference_that_is_neither_a_split_nor_a_file_is_refused_with_the_choices():
    with pytest.raises(ValidationError, match=r"'tests': choices: train, test, the path of a \.npz file"):
        Fidelity(reference="tests")
