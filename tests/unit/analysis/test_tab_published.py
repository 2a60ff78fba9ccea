"""The papers' tables beside a study's results: of the same data alone, with how sure each number is."""

from harness.analysis.runs import load_records
from harness.analysis.tables import tab_published
from harness.testing import tiny_study, write_finished_run

IMAGES = """
study: images
data: cifar10
model: {channels: 8}
train: {steps: 12, batch_size: 16}
"""


def frame_of(folder, *sets):
    for run in tiny_study(folder, sets=sets, study=IMAGES):
        write_finished_run(run, folder / "runs")
    return tab_published.data(load_records(folder / "runs"))


def test_a_study_of_cifar10_has_every_table_of_it_as_printed(tmp_path):
    frame = frame_of(tmp_path)
    sources = ["DDGAN, table 1", "DDGAN, table 2", "DDPM, table 1", "DDPM, table 2"]
    sources += ["IDDPM, table 2", "IDDPM, table 3", "SIDDM, table 2", "SIDDM, table 5a"]
    assert [table["title"].partition(" (")[0] for table in tab_published.tables(frame)] == sources
    ddim = frame[(frame["model"] == "DDIM") & (frame["source"] == "DDGAN, table 1")].iloc[0]
    names = ("inception_score", "fid", "recall", "network_evaluations", "seconds", "nll", "certainty")
    assert [ddim[name] for name in names] == ["8.78", "4.67", "0.53", "50", "4.01", "", "second-hand"]
    text = tab_published.markdown(frame)
    assert "| NVAE | 2.91 |" in text and "| StyleGAN2 + ADA (v1) | – | 3.26 | 9.74 |" in text
    assert "DDGAN, table 1 (second-hand)" in text and "DDGAN, table 1 (second-hand)" in tab_published.as_html(frame)


def test_models_that_know_the_class_stand_beside_such_alone(tmp_path):
    frame = frame_of(tmp_path, "model.class_cond=true", "data=imagenet64")
    assert set(frame["source"]) == {"IDDPM, table 4", "SIDDM, table 4"}
    assert "BigGAN-deep, without truncation" in set(frame["model"])


def test_a_number_that_is_from_memory_says_so_in_its_row(tmp_path):
    text = tab_published.markdown(frame_of(tmp_path, "data=imagenet64"))
    assert "| Glow (unverified) | 3.81 |" in text and "| Sparse Transformer | 3.44 |" in text


def test_other_data_and_a_part_of_these_have_no_such_table(tmp_path):
    for sets in (["data=digits", "model.attention_resolutions=[]"], ["data={name: cifar10, batches: [1]}"]):
        (tmp_path / str(len(sets))).mkdir()
        assert frame_of(tmp_path / str(len(sets)), *sets).empty
