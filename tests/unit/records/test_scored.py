"""Arms that are not ours: stored beside a study's manifest, and believed only where each value is of its type."""

import json

import pytest

from harness.errors import RecordError
from harness.records.scored import read_scored, write_scored

SCORED = {
    "metrics": {"fid": 3.17, "precision": 0.5},
    "num_images": 50_000,
    "source": "their/samples.npz",
    "extractor": {"name": "inception"},
    "fidelity": {"reference": "train", "k": 3},
}


def test_what_was_scored_last_under_a_name_is_read(tmp_path):
    write_scored(tmp_path, "study", "ADM", SCORED | {"num_images": 1})
    path = write_scored(tmp_path, "study", "ADM", SCORED)
    assert path.relative_to(tmp_path).as_posix() == ".studies/study/scored/ADM.json"
    [scored] = read_scored(tmp_path, "study")
    assert (scored.arm, scored.num_images, scored.metrics) == ("ADM", 50_000, {"fid": 3.17, "precision": 0.5})
    assert (scored.extractor, scored.reference, scored.k) == ("inception", "train", 3)
    assert read_scored(tmp_path, "other") == []
    with pytest.raises(RecordError, match="cannot be a file name"):
        write_scored(tmp_path, "study", "../ADM", SCORED)


@pytest.mark.parametrize(
    "change", [{"metrics": {"fid": "3"}}, {"num_images": 0}, {"fidelity": {}}, {"format": 2}, {"extractor": None}]
)
def test_one_that_is_odd_is_left_out_with_a_warning(tmp_path, change, caplog):
    write_scored(tmp_path, "study", "right", SCORED)
    odd = write_scored(tmp_path, "study", "odd", SCORED)
    odd.write_text(json.dumps(json.loads(odd.read_text()) | change))
    assert [scored.arm for scored in read_scored(tmp_path, "study")] == ["right"]
    assert f"left out: {odd}" in caplog.text
