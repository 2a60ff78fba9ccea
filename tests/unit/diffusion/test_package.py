"""The package loads lazily: plans and figures read schedules without waiting for torch."""

import subprocess
import sys

import pytest

import harness.diffusion


@pytest.mark.process
def test_schedules_tables_and_respacing_do_not_import_torch():
    code = (
        "import sys; from harness.diffusion import SCHEDULES, space_timesteps, tables;"
        "tables(SCHEDULES['cosine'](10)); space_timesteps(10, '5'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", harness.diffusion.__all__)
def test_every_public_name_loads_and_is_documented(name):
    public = getattr(harness.diffusion, name)
    assert public.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="GaussianDifusion"):
        _ = harness.diffusion.GaussianDifusion
