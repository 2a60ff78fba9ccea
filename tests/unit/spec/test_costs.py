"""Costs of evaluations: counted by hand."""

import pytest

from harness.spec.costs import network_evaluations
from harness.study.expand import load_study
from harness.testing import TINY_STUDY

T = 30


@pytest.fixture
def cost(tmp_path):
    """Return a function: an evaluation in YAML -> the network evaluations of its parts."""

    def costs(protocol, base=TINY_STUDY):
        path = tmp_path / "tiny.yaml"
        path.write_text(f"{base}evaluate: [{{{protocol}}}]\n")
        (run,) = load_study(path).runs
        return network_evaluations(run.evaluations[0], run.spec)

    return costs


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("nll: {estimator: full}", {"nll": (355 + 16) * T}),
        ("nll: {estimator: full, num_images: 10}", {"nll": 20 * T}),
        ("split: train, nll: {estimator: full}", {"nll": (1442 + 16) * T}),
        ("nll: {evaluations_per_image: 4}", {"nll": 355 * 4}),
        ("nll: {}", {"nll": (355 + 16) * T}),  # 40 per image are more than T
        ("nll: {num_images: 9, evaluations_per_image: 4}, every: 5", {"nll": 9 * 4 * 3}),  # steps 5, 10, and the end
        ("fidelity: {num_samples: 100, num_steps: 7}", {"fidelity": 700}),
        ("fidelity: {num_samples: 100, num_steps: 7}, grid: 64", {"fidelity": 700, "grid": 0}),
        ("fidelity: {num_samples: 100, num_steps: 7}, grid: 144", {"fidelity": 700, "grid": 7 * 144}),
        ("grid: 4", {"grid": 4 * T}),
        ("sweep: {num_samples: 16, num_steps: [2, 3]}", {"sweep": 16 * 5 * 2}),
        ("skip: {num_samples: 16, fractions: [0, 0.5]}", {"skip": 16 * (30 + 15)}),
        ("rate_distortion: {num_images: 8}", {"rate_distortion": 8 * T}),
        ("progressive: {num_samples: 16, num_steps: 5}", {"progressive": 16 * 5}),
        ("interpolation: {num_pairs: 2, t: [3, 9], num_weights: 5}", {"interpolation": 2 * 5 * (4 + 10)}),
        ("reconstruction: {num_images: 8, num_steps: [3, 5]}", {"reconstruction": 8 * (2 + 3 + 4 + 5)}),
        (
            "fidelity: {num_samples: 16, num_steps: 5}, every: 5, during_training: [fidelity]",
            {"fidelity": 16 * 5 * 3},
        ),
        ("weights: raw, noise_scale: {batch_size: 2, small_per_big: 2, num_big: 3}", {"noise_scale": 3 * 12}),
    ],
)
def test_the_cost_of_a_part_is_counted_by_hand(cost, protocol, expected):
    assert cost(protocol) == expected


def test_guidance_doubles_samples_and_nothing_else(cost):
    guided = TINY_STUDY.replace("num_heads: 1", "num_heads: 1, class_cond: true, label_dropout: 0.1")
    protocol = "fidelity: {num_samples: 16, num_steps: 5}, nll: {estimator: full, num_images: 16}"
    assert cost(f"guidance: 2.0, {protocol}", guided) == {"nll": 32 * T, "fidelity": 160}


def test_only_the_files_of_a_folder_tell_how_many_images_it_has(cost):
    folder = TINY_STUDY.replace("data: digits", "data: {name: image_folder, path: x, image_size: 8, num_classes: 2}")
    assert cost("nll: {estimator: full}", folder) == {"nll": None}
    assert cost("nll: {estimator: full, num_images: 20}", folder) == {"nll": 36 * T}
