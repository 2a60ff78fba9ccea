import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from harness.analysis.csv_files import write_csv
from harness.analysis.figures import (
    fig_alpha_bar,
    fig_beta_ratio,
    fig_forward_noising,
    fig_L_t,
    fig_learning_curves,
    fig_nearest,
    fig_samples,
    fig_sampling_steps,
    style,
)
from harness.analysis.runs import load_records

ARMS = "grid: {diffusion.schedule: [linear, cosine]}\nreplicates: 2\n"


class TestSchedules:
    def test_the_ratio_of_variances_meets_every_value_recomputed_from_the_paper(self):
        frame = fig_beta_ratio.data()
        known = frame.dropna(subset="reference")
        assert len(known) == 15
        np.testing.assert_allclose(known["ratio"], known["reference"], atol=5e-5)  # they have four decimals

    def test_the_names_of_schedules_that_coincide_can_be_read_inside_the_axes(self):
        figure = fig_alpha_bar.draw(fig_alpha_bar.data())
        figure.canvas.draw()
        [axes] = figure.axes
        boxes = [text.get_window_extent() for text in axes.texts]
        assert [text.get_text() for text in axes.texts] == ["linear", "cosine", "vp", "geometric"]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        inside = axes.get_window_extent()
        assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in boxes)

    def test_alpha_bar_meets_every_value_recomputed_from_the_paper(self):
        known = fig_alpha_bar.data().dropna(subset="reference")
        assert len(known) == 8
        np.testing.assert_allclose(known["alpha_bar"], known["reference"], rtol=2e-2, atol=5e-5)
        early = known[known["u"] < 1]  # the last cosine value has two digits
        np.testing.assert_allclose(early["alpha_bar"], early["reference"], rtol=5e-4)

    def test_forward_noising_begins_with_the_picture_and_ends_with_the_noise(self):
        from sklearn.datasets import load_digits

        frame = fig_forward_noising.data()
        x_0 = load_digits().images[fig_forward_noising.PICTURE] / 8 - 1
        noise = np.random.default_rng(0).standard_normal((8, 8))
        for _, strip in frame.groupby("schedule"):
            np.testing.assert_array_equal(strip.iloc[0]["picture"], x_0)
            end, abar = strip.iloc[-1]["picture"], strip.iloc[-1]["alpha_bar"]
            np.testing.assert_allclose(end, np.sqrt(abar) * x_0 + np.sqrt(1 - abar) * noise)
            assert abar < 2e-3
            assert strip["alpha_bar"].is_monotonic_decreasing


class TestLt:
    def test_terms_are_the_mean_and_range_of_the_arrays(self, study_runs):
        folder = study_runs(ARMS + "evaluate: [{nll: {}}]\n", lambda run: {"nll": 2.0 + run.replicate})
        frame = fig_L_t.data(load_records(folder))
        first = frame[(frame["arm"] == "linear") & (frame["t"] == 1)].iloc[0]
        assert (first["n"], first["low"], first["mean"], first["high"]) == (2, 1.0, 1.25, 1.5)
        assert first["share"] == pytest.approx(0.5)
        last = frame[frame["t"] == 50]
        assert last["share"].tolist() == pytest.approx([1, 1])

    def test_a_t_that_the_estimate_left_out_stays_empty(self, study_runs):
        folder = study_runs("evaluate: [{nll: {}}]\n", lambda run: {})
        (run,) = load_records(folder)
        L_t = np.array([4.0, np.nan, 2.0, 1.0])
        np.savez(run.folder / "arrays" / "eval_likelihood.npz", L_t_bpd=L_t)
        frame = fig_L_t.data([run])
        assert frame["n"].tolist() == [1, 0, 1, 1]
        assert np.isnan(frame["mean"][1])
        np.testing.assert_allclose(frame["share"], [0.4, 0.7, 0.9, 1.0])


class TestLearningCurves:
    def test_curves_are_means_over_bins_and_the_bound_is_T_times_a_term(self, study_runs):
        (run,) = load_records(study_runs("", lambda run: {}))
        frame = fig_learning_curves.data([run])
        bound = frame[frame["curve"] == "bound"]
        np.testing.assert_allclose(bound["mean"], 50 / np.arange(10, 101, 10))
        assert not (frame["curve"] == "nll").any(), "one point is no curve"

    def test_a_long_training_is_binned(self, study_runs):
        (run,) = load_records(study_runs("", lambda run: {}))
        run.spec["train"]["steps"] = 1200  # bins of 20 iterations: two log lines in each
        mse = fig_learning_curves.data([run]).query("curve == 'mse'")
        assert mse["iteration"].tolist() == [20, 40, 60, 80, 100]
        assert mse["mean"].iloc[0] == pytest.approx((1 + 0.5) / 2)

    def test_the_nll_is_drawn_where_it_was_measured_during_training(self, study_runs):
        (run,) = load_records(study_runs("evaluate: [{nll: {}, every: 50}]\n", lambda run: {"nll": 2.0}))
        run.curves["eval/nll_bpd"] = (np.array([50, 100]), np.array([3.0, 2.0]))
        nll = fig_learning_curves.data([run]).query("curve == 'nll'")
        assert dict(zip(nll["iteration"], nll["mean"], strict=True)) == {50: 3.0, 100: 2.0}

    def test_terms_of_any_method_are_drawn_under_their_own_names(self, study_runs):
        (run,) = load_records(study_runs("", lambda run: {}))
        for name in ("train/mse", "train/vb"):
            del run.curves[name]
        steps = np.arange(10, 101, 10)
        for name in ("generator", "discriminator", "generator_q0", "lr", "lr_discriminator", "grad_norm_generator"):
            run.curves[f"train/{name}"] = (steps, -1.0 / steps)
        frame = fig_learning_curves.data([run])
        assert set(frame["curve"]) == {"generator", "discriminator"}
        figure = fig_learning_curves.draw(frame)
        assert [axes.get_title(loc="left") for axes in figure.axes] == ["discriminator", "generator"]
        assert "bound" not in fig_learning_curves.caption(frame)

    def test_a_method_with_a_loss_and_no_terms_has_its_loss_drawn(self, study_runs):
        (run,) = load_records(study_runs("", lambda run: {}))
        for name in ("train/mse", "train/vb"):
            del run.curves[name]
        assert set(fig_learning_curves.data([run])["curve"]) == {"loss"}

    def test_all_panels_stand_in_one_order(self, study_runs):
        (run,) = load_records(study_runs("evaluate: [{nll: {}, every: 50}]\n", lambda run: {"nll": 2.0}))
        run.curves["eval/nll_bpd"] = (np.array([50, 100]), np.array([3.0, 2.0]))
        figure = fig_learning_curves.draw(fig_learning_curves.data([run]))
        titles = [axes.get_title(loc="left") for axes in figure.axes]
        assert titles == ["Prediction error", "Bound on training batches", "NLL"]


class TestSamplingSteps:
    STUDY = ARMS + "evaluate: [{sweep: {num_steps: [5, 10], num_samples: 64}, arms: [cosine]}]\n"

    def test_a_swept_arm_keeps_its_colour_when_others_are_not_swept(self, study_runs):
        frame = fig_sampling_steps.data(load_records(study_runs(self.STUDY, lambda run: {"ddim": 1.0 + run.replicate})))
        assert set(frame["arm"]) == {"cosine"}
        assert set(frame["arm_index"]) == {1}
        assert set(frame["protocol"]) == {"digitsnet, 64 samples"}
        five = frame[(frame["sampler"] == "ddim") & (frame["num_steps"] == 5)].iloc[0]
        assert (five["n"], five["low"], five["mean"], five["high"]) == (2, 21.0, 21.5, 22.0)

    def test_readings_with_either_fixed_variance_stand_apart(self, study_runs):
        extra = """
evaluate:
  - {name: eval, sweep: {num_steps: [5], num_samples: 64}, fixed_variance: large}
  - {name: eval_small, sweep: {num_steps: [5], num_samples: 64}, fixed_variance: small}
"""
        frame = fig_sampling_steps.data(load_records(study_runs(extra, lambda run: {})))
        assert set(frame["variance"]) == {"β", "β̃"}
        assert isinstance(fig_sampling_steps.draw(frame), Figure)

    def test_each_metric_of_a_sweep_has_a_panel_of_its_own(self, study_runs):
        study = self.STUDY.replace("num_samples: 64", "num_samples: 64, metrics: [fid, recall]")
        frame = fig_sampling_steps.data(
            load_records(study_runs(study, lambda run: {"recall": 0.6 + 0.1 * run.replicate}))
        )
        assert set(frame["metric"]) == {"fid", "recall"}
        ten = frame[(frame["metric"] == "recall") & (frame["sampler"] == "ddim") & (frame["num_steps"] == 10)].iloc[0]
        np.testing.assert_allclose([ten["low"], ten["mean"], ten["high"]], [0.55, 0.6, 0.65])
        figure = fig_sampling_steps.draw(frame)
        assert [axes.get_ylabel() for axes in figure.axes] == [
            "FID (digitsnet, 64 samples)",
            "recall (digitsnet, 64 samples)",
        ]
        assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]
        assert fig_sampling_steps.caption(frame).startswith("FID, recall of samples")

    def test_a_sampler_that_the_spec_does_not_know_is_drawn_with_a_line_of_its_own(self, study_runs):
        frame = fig_sampling_steps.data(load_records(study_runs(self.STUDY, lambda run: {})))
        frame = pd.concat([frame, frame[frame["sampler"] == "ddim"].assign(sampler="heun_of_a_plugin")])
        lines = fig_sampling_steps.sampler_lines(frame["sampler"])
        assert len({str(line) for line in lines.values()}) == len(lines)
        assert {name: lines[name] for name in ("ancestral", "ddim", "dpmpp_2m")} == {
            "ancestral": "-",
            "ddim": "--",
            "dpmpp_2m": ":",
        }
        (legend,) = fig_sampling_steps.draw(frame).legends
        assert "heun_of_a_plugin" in [text.get_text() for text in legend.get_texts()]


class TestNearestTrainingImages:
    EXTRA = "evaluate: [{fidelity: {num_samples: 64, num_steps: 10, metrics: [fid, memorisation]}}]\n"

    def test_each_arm_shows_the_picture_and_the_auc_of_its_first_replicate(self, study_runs):
        runs = load_records(study_runs(ARMS + self.EXTRA, lambda run: {"memorisation_auc": 0.5 + run.replicate / 10}))
        frame = fig_nearest.data(runs)
        assert frame["arm"].tolist() == ["linear", "cosine"] and set(frame["replicate"]) == {0}
        assert set(frame["memorisation_auc"]) == {0.5} and frame["picture"][0].shape[-1] == 3
        titles = [axes.get_title("left") for axes in fig_nearest.draw(frame).axes]
        assert titles == ["linear: AUC 0.500", "cosine: AUC 0.500"]
        assert "0.5 is no memorisation" in fig_nearest.caption(frame)

    def test_a_picture_that_cannot_be_read_is_left_out(self, study_runs):
        runs = load_records(study_runs(self.EXTRA, lambda run: {}))
        (runs[0].folder / "samples" / "eval_nearest_training_images.png").write_bytes(b"no picture")
        assert fig_nearest.data(runs).empty


class TestSamples:
    def test_each_arm_shows_the_first_samples_of_its_first_replicate(self, study_runs):
        runs = load_records(study_runs(ARMS + "evaluate: [{grid: 40}]\n", lambda run: {}))
        frame = fig_samples.data(runs)
        assert frame["arm"].tolist() == ["linear", "cosine"]
        assert frame["replicate"].tolist() == [0, 0]
        expected = runs[0].arrays("eval_samples.npz")["samples"][:36]
        np.testing.assert_array_equal(frame["pictures"][0], expected)

    def test_a_conditional_models_columns_are_its_classes(self, study_runs):
        extra = "arms: {conditional: {model.class_cond: true}}\nevaluate: [{grid: 64}]\n"
        runs = load_records(study_runs(extra, lambda run: {}))
        (one,) = fig_samples.data(runs).to_dict("records")
        assert (one["columns"], len(one["pictures"])) == (10, 60)

    def test_tiles_lie_row_by_row_with_a_gap(self):
        pictures = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(32, 2).repeat(32, 3) * 10
        canvas = fig_samples.tile(pictures, 2)
        assert canvas.shape == (66, 66)
        assert (canvas[:32, :32] == 0).all()
        assert (canvas[:32, 34:] == 10).all()
        assert (canvas[34:, :32] == 20).all()
        assert (canvas[32:34] == 255).all()
        assert (canvas[34:, 34:] == 255).all()


class TestStyle:
    def test_the_first_21_arms_all_look_different(self):
        looks = {(str(look["color"]), str(look["linestyle"])) for look in map(style.arm_style, range(21))}
        assert len(looks) == 21

    def test_arrays_stand_in_the_csv_by_their_digest(self, tmp_path):
        write_csv(pd.DataFrame({"a": [1.0], "b": [np.zeros((2, 3))]}), tmp_path / "x.csv")
        row = (tmp_path / "x.csv").read_text().splitlines()[1]
        assert row.startswith("1,float64 2x3 sha256:")

    def test_figures_say_in_their_metadata_which_runs_they_were_made_from(self, tmp_path):
        from PIL import Image

        about = style.Provenance("Title", "small", ("b" * 16, "a" * 16), ("0.1.0",), "harness figures small")
        style.save(fig_alpha_bar.draw(fig_alpha_bar.data()), pd.DataFrame(), tmp_path / "x", about)
        said = Image.open(tmp_path / "x.png").text["Description"]
        for part in (
            "study small",
            "2 runs",
            about.runs_digest,
            "a" * 16,
            "code 0.1.0",
            "harness figures",
        ):
            assert part in said
        pdf = (tmp_path / "x.pdf").read_bytes()
        assert about.runs_digest.encode() in pdf
        assert b"CreationDate" not in pdf


class TestWhatHasOneNameAndOtherValues:
    """Nothing that differs in a value is averaged as if it were a replicate."""

    SWEEP = "{name: NAME, sweep: {num_steps: [5, 10], num_samples: 64, SETTINGS}}"

    def sweeps(self, study_runs, first, second):
        entries = [
            self.SWEEP.replace("NAME", name).replace("SETTINGS", settings)
            for name, settings in (("eval", first), ("eval_other", second))
        ]
        folder = study_runs(f"evaluate: [{', '.join(entries)}]\n", lambda run: {})
        return fig_sampling_steps.data(load_records(folder))

    def test_a_sampler_with_another_parameter_is_another_sampler(self, study_runs):
        frame = self.sweeps(study_runs, "samplers: [{name: ddim, eta: 0.0}]", "samplers: [{name: ddim, eta: 1.0}]")
        assert set(frame["sampler"]) == {"ddim (eta=0.0)", "ddim (eta=1.0)"}
        assert set(frame["n"]) == {1}
        assert isinstance(fig_sampling_steps.draw(frame), Figure)

    def test_another_reference_split_is_another_protocol(self, study_runs):
        frame = self.sweeps(study_runs, "reference: train", "reference: test")
        assert set(frame["protocol"]) == {
            "digitsnet, 64 samples (sweep.reference=train)",
            "digitsnet, 64 samples (sweep.reference=test)",
        }
        assert set(frame["n"]) == {1}

    def test_two_likelihoods_during_training_are_two_curves(self, study_runs):
        folder = study_runs(
            "evaluate: [{name: eval, nll: {}, every: 50}, {name: eval_raw, nll: {}, weights: raw, every: 50}]\n",
            lambda run: {"nll": 3.0},
        )
        [run] = load_records(folder)
        for name, value in (("eval", 3.0), ("eval_raw", 4.0)):
            run.curves[f"{name}/nll_bpd"] = (np.array([50, 100]), np.array([value, value]))
        frame = fig_learning_curves.data([run])
        means = frame[frame["iteration"] == 50].set_index("curve")["mean"]
        assert (means["nll eval"], means["nll eval_raw"]) == (3.0, 4.0)
        assert isinstance(fig_learning_curves.draw(frame), Figure)
