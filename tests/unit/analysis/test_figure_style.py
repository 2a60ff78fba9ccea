"""How figures look: widths, labels, colours, formats; nothing is cut off in a narrow column."""

import json

import matplotlib.colors
import numpy as np
import pytest
from click.testing import CliRunner

from harness.analysis.figures import fig_search, fitting, style
from harness.analysis.report import report
from harness.analysis.runs import arm_index, load_records, with_arms
from harness.cli.figures import figures
from harness.errors import SpecError
from harness.spec.metrics import OF_THE_GAME
from harness.spec.presentation import FigureStyle
from harness.study.presentation import read_figure_style
from harness.testing import tiny_study, write_finished_run

ARMS = """
arms:
  a-baseline-with-quite-a-long-name: {diffusion.schedule: linear}
  cosine: {diffusion.schedule: cosine}
  learned-variance-and-hybrid-objective: {objective: hybrid}
  larger: {model.channels: 16, train.steps: 24}
  largest: {model.channels: 32, train.steps: 48}
replicates: 2
"""
IMAGES = f"""
{ARMS}
evaluate:
  - name: eval
    nll: {{}}
    grid: 20
    fidelity: {{num_samples: 64, num_steps: 5}}
    sweep: {{num_samples: 64, num_steps: [2, 5, 10], samplers: [ancestral, ddim], metrics: [fid, precision, recall]}}
    trajectories: {{num_samples: 2, num_steps: 9, num_frames: 6}}
    skip: {{num_samples: 64, fractions: [0, 0.1, 0.3]}}
    progressive: {{num_samples: 64, num_frames: 4}}
    reconstruction: {{num_images: 8, num_steps: [5, 10]}}
    rate_distortion: {{num_images: 8, num_steps: 10}}
    interpolation: {{num_pairs: 2, t: [5, 20], num_weights: 4}}
  - {{name: noise, weights: raw, noise_scale: {{batch_size: 4, small_per_big: 2, num_big: 2}}}}
"""
POINTS = """
study: plane
data: mog
diffusion: {num_timesteps: 8, schedule: cosine}
model: {name: mlp, width: 16}
train: {steps: 12, batch_size: 16, ema_rate: 0.8}
arms: {a-rather-long-name: {}, hybrid: {objective: hybrid}}
evaluate: [{modes: {num_samples: 250, num_steps: [1, 2, 4, 8]}, grid: 20,
            trajectories: {num_samples: 12, num_steps: 8, num_frames: 4}}]
"""
LABELS = {"cosine": r"$L_\mathrm{cosine}$, ours"}


def records(folder, extra, **options):
    for run in tiny_study(folder, extra, **options):
        measured = {"nll_bpd": 3.0 + 100 / run.spec.train.steps, "train_multiply_adds": 1e9 * run.spec.train.steps}
        directory = write_finished_run(run, folder / "runs", measured)
        with directory.lock(), directory.open_journal(resumed_from_step=run.spec.train.steps) as journal:
            for step in range(1, 13):
                journal.metrics(step, {f"train/{curve}": 1.0 + step for curve in OF_THE_GAME})
            for step in range(4, 12, 4):  # before the end
                journal.metrics(step, {"eval/nll_bpd": 5.0 - step / 10})
    return load_records(folder / "runs")


def search(folder):
    space = [
        {"path": path, "kind": "float", "low": 1e-5, "high": 1e-1, "log": True, "step": None}
        for path in ("objective.lambda_vlb", "diffusion.schedule.s", "optim.lr")
    ]
    metrics = [{"name": "eval/nll_bpd", "direction": "minimize"}, {"name": "eval/recall", "direction": "maximize"}]
    home = folder / "runs" / ".search" / "tiny"
    (home / "trials").mkdir(parents=True)
    definition = {"space": space, "metrics": metrics, "rungs": [10_000, 40_000, 160_000], "reduction_factor": 2}
    (home / "search.json").write_text(json.dumps({"study": "tiny", "definition": definition}))
    for number in range(6):
        point = {part["path"]: 10.0 ** -(2 + (number * step) % 4) for step, part in enumerate(space, start=1)}
        values = {"eval/nll_bpd": 4.0 - 0.2 * number, "eval/recall": 0.2 + 0.1 * (number % 3)}
        trial = {"number": number, "point": point, "state": "complete", "ended_seconds": 10.0 + number}
        reached = {"10000": 5.0 - 0.2 * number} | ({"40000": 4.5 - 0.2 * number} if number > 2 else {})
        trial |= {"values": values, "replicate_values": {}, "rung_values": reached}
        (home / "trials" / f"trial-{number:04d}.json").write_text(json.dumps(trial))
    row = {"share": 0.7, "low": 0.5, "high": 0.9}
    shares = {"num_trials": 6, "metrics": {"eval/nll_bpd": {part["path"]: row for part in space}}}
    (home / "importances.json").write_text(json.dumps(shares))


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Return the data of each figure, and of those of points in the plane."""
    folder = tmp_path_factory.mktemp("images")
    images = records(folder, IMAGES)
    search(folder)
    points = records(tmp_path_factory.mktemp("points"), "", study=POINTS)
    result = {name: (module, module.data([])) for name, module in report.WITHOUT_RUNS.items()}
    result |= {name: (module, module.data(images)) for name, module in report.OF_A_STUDY.items()}
    result |= {name: (picture, picture.data(images)) for name, picture in fig_search.FIGURES.items()}
    for name in ("mixture", "samples", "trajectories"):
        result[f"{name} of points"] = report.OF_A_STUDY[name], report.OF_A_STUDY[name].data(points)
    return {name: (module, frame) for name, (module, frame) in result.items() if len(frame)}


NAMES = [
    *(
        name
        for name in (*report.WITHOUT_RUNS, *report.OF_A_STUDY)
        if name not in ("allocation", "mixture", "nearest_training_images", "quality_cost")
    ),
    *fig_search.FIGURES,
    *(f"{name} of points" for name in ("mixture", "samples", "trajectories")),
]


@pytest.mark.slow
@pytest.mark.parametrize("width", ["3.25in", "neurips", None])
@pytest.mark.parametrize("name", NAMES)
def test_no_text_of_a_figure_is_cut_off_or_lies_on_another_at_any_width(frames, name, width):
    module, frame = frames[name]
    with style.chosen(FigureStyle(width=width, labels=LABELS)):
        figure = module.draw(frame)
    assert width is None or figure.get_figwidth() == {"3.25in": 3.25, "neurips": 5.5}[width]
    with style.style():  # ticks that are made now look as when the figure is saved
        figure.draw_without_rendering()
        assert fitting.outside(figure) == []
        assert fitting.overlapping(figure) == []


def test_what_is_cut_off_or_overlaps_is_seen():
    with style.style():
        figure, ((left, right),) = style.subplots(1, 2, width=4.0)
        left.set_title("a title that is much longer than its panel, and reaches into the next")
        right.set_title("right")
        right.set_ylabel("an axis with a label that is too long for the height of the figure by far, so it is cut")
        figure.draw_without_rendering()
        assert set(fitting.outside(figure)) == {f"axis {right.get_ylabel()}", left.get_title(loc="left")}
        assert (left.get_title(loc="left"), "right") in fitting.overlapping(figure)
        fitting.fit(figure)
    assert fitting.outside(figure) == [] and fitting.overlapping(figure) == []
    assert "\n" in left.get_title(loc="left")


def test_panels_are_stacked_where_the_column_is_too_narrow_for_them():
    with style.style():
        assert style.subplots(1, 4)[1].shape == (1, 4)
        with style.chosen(FigureStyle(width="icml")):
            figure, panels = style.subplots(1, 4)
            places = [axes.get_subplotspec().get_position(figure).bounds[:2] for axes in panels[0]]
            assert len({x for x, _ in places}) == 1 and places == sorted(places, key=lambda place: -place[1])
            assert style.is_stacked(panels)
        with style.chosen(FigureStyle(width="neurips")):
            figure, panels = style.subplots(1, 4)
            columns = {round(axes.get_subplotspec().get_position(figure).x0, 3) for axes in panels[0]}
            assert len(columns) == 2, "four panels are two and two, not three and one"


def luminance(colour):
    """Return the relative luminance of WCAG 2, in [0, 1]."""
    channels = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_any_two_arms_differ_in_line_or_marker_and_those_of_one_line_in_grey():
    looks = [style.arm_style(index) for index in range(len(style.COLOURS))]
    for index, first in enumerate(looks):
        for other in looks[:index]:
            assert first["marker"] != other["marker"]
            if first["linestyle"] == other["linestyle"]:  # where there are no markers, grey tells them apart
                grey = [luminance(look["color"]) for look in (first, other)]
                assert max(grey) - min(grey) > 0.09
    assert all(luminance(colour) < 0.5 for colour in style.COLOURS), "lines can be seen on white"


@pytest.mark.parametrize("matrix", ["protanopia", "deuteranopia"])
def test_colours_of_arms_differ_for_the_colour_blind(matrix):
    # Viénot, Brettel and Mollon 1999, on linear RGB.
    simulate = {
        "protanopia": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
        "deuteranopia": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
    }[matrix]
    linear = np.array([matplotlib.colors.to_rgb(colour) for colour in style.COLOURS]) ** 2.2
    seen = np.clip(linear @ np.array(simulate).T, 0, 1) ** (1 / 2.2)
    distances = [np.linalg.norm(seen[a] - seen[b]) for a in range(len(seen)) for b in range(a)]
    assert min(distances) > 0.1  # of the range of a channel; lines and markers differ besides


def test_an_arm_keeps_its_colour_when_others_are_left_out_or_one_is_added(study_runs):
    few = load_records(study_runs("arms: {a: {}, b: {optim.lr: 0.1}}\n", lambda run: {}, "few"))
    more = load_records(study_runs("arms: {a: {}, b: {optim.lr: 0.1}, c: {optim.lr: 0.2}}\n", lambda run: {}, "more"))
    assert arm_index(more) == arm_index(few) | {"c": 2}
    shown = with_arms(more, ["c", "gone", "b"])
    assert [run.arm for run in shown] == ["c", "b"]
    assert arm_index(shown) == {"c": 2, "b": 1}
    assert [run.arm for run in with_arms(more, ["gone"])] == [run.arm for run in more]


def test_labels_are_the_users_formulas_and_text_from_records_is_none():
    with style.chosen(FigureStyle(labels=LABELS, palette=("#000000", "#ff0000"))):
        assert style.arm_label("cosine") == LABELS["cosine"]
        assert style.title_of("cosine (eval)", "cosine") == f"{LABELS['cosine']} (eval)"
        assert style.arm_label("a $x$") == r"a \$x\$"
        assert [style.arm_style(index)["color"] for index in range(3)] == ["#000000", "#ff0000", "#000000"]
    assert style.arm_label("cosine") == "cosine"
    assert style.unusable_labels({"a": r"$L_\mathrm{x}$", "b": r"$L_\mathrm{x$", "c": " "}).keys() == {"b", "c"}


@pytest.mark.slow
def test_every_format_that_is_asked_for_is_written_twice_with_the_same_bytes(tmp_path, frames):
    module, frame = frames["alpha_bar"]
    made_of = style.Provenance(module.TITLE, "schedules", (), (), "harness figures")
    written = []
    for folder in ("first", "second"):
        with style.chosen(FigureStyle(formats=("svg", "pdf"))):
            paths = style.save(module.draw(frame), frame, tmp_path / folder / "x", made_of)
        written.append({path.name: path.read_bytes() for path in paths})
    assert list(written[0]) == ["x.png", "x.pdf", "x.svg", "x.csv"]
    assert written[0] == written[1]


def test_a_file_of_style_is_refused_with_file_and_line(tmp_path):
    path = tmp_path / "style.yaml"
    path.write_text("width: icml\nlabels: {a: $x$}\n")
    look, _ = read_figure_style(path)
    assert look == FigureStyle(width="icml", labels={"a": "$x$"}) and look.model_fields_set == {"width", "labels"}
    path.write_text("width: wide\n\npalete: []\nformats: [gif]\n")
    with pytest.raises(SpecError) as error:
        read_figure_style(path)
    lines = str(error.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{path}:{line}" for line in (1, 4, 3)]
    assert "did you mean 'palette'?" in lines[2]


def test_a_label_that_cannot_be_drawn_is_refused_with_its_line(tmp_path):
    path = tmp_path / "style.yaml"
    path.write_text("width: icml\nlabels:\n  a: $L_\\mathrm{x$\n")
    arguments = ["--runs", str(tmp_path), "--style", str(path)]
    assert f"{path}:3: labels.a: the label cannot be drawn" in str(CliRunner().invoke(figures, arguments).exception)
