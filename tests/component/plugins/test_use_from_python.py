"""The tutorial docs/howto/use_from_python.md, block by block, in one namespace."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "use_from_python.md"
BLOCKS = re.findall(r"```python( my_study\.py)?\n(.*?)```", PAGE.read_text(), re.DOTALL)
STUDY = """
study: tutorial
data: mog
model: {name: mlp, width: 8, depth: 1}
diffusion: {num_timesteps: 30}
train: {steps: 9, batch_size: 8, ema_rate: 0.0}
records: {log_every: 1}
"""


@pytest.fixture(scope="module")
def namespace(tmp_path_factory):
    folder, patch = tmp_path_factory.mktemp("tutorial"), pytest.MonkeyPatch()
    (folder / "study.yaml").write_text(STUDY)
    patch.chdir(folder)
    names = {}
    for is_study, block in BLOCKS:
        if is_study:
            (folder / "my_study.py").write_text(block)
        else:
            exec(compile(block, str(PAGE), "exec"), names)
    yield names
    patch.undo()


def test_the_study_is_planned_and_trained(namespace):
    assert [planned.state for planned in namespace["plan"].runs] == ["new"]
    assert namespace["run"].status().state == "done"
    assert namespace["steps"] == [1, 2, 3, 4] and len(namespace["losses"]) == 4


def test_the_study_in_python_has_its_arms_and_replicates(namespace):
    runs = namespace["widths"].runs
    assert [(run.arm, run.replicate) for run in runs] == [
        (arm, replicate) for arm in ("width-8", "width-16") for replicate in (0, 1)
    ]
