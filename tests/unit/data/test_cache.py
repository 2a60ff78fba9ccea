"""The cache folder: where it is, and what happens where it cannot be written."""

import errno
import os
import resource
import tempfile
from pathlib import Path

import numpy as np
import pytest

from harness.data.cache import allocate, cache_folder, cache_root, publish
from harness.errors import DataError


def test_the_cache_is_below_the_first_of_its_three_variables_that_is_set(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HARNESS_CACHE", "~/scratch")
    assert cache_root() == Path("/home/ada/scratch")
    monkeypatch.setenv("HARNESS_CACHE", "")
    assert cache_root() == Path("/xdg/diffusion-harness")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path("/home/ada/.cache/diffusion-harness")


@pytest.mark.parametrize(
    ("folder", "words"),
    [("/proc/cache", "No such file or directory"), ("/dev/null/cache", "Not a directory"), ("~nobody-here/x", "home")],
)
def test_a_cache_that_cannot_be_made_says_so_and_which_variable_sets_another(monkeypatch, folder, words):
    monkeypatch.setenv("HARNESS_CACHE", folder)
    with pytest.raises(DataError, match=f"cache.*{words}.*set HARNESS_CACHE"):
        cache_folder("features")


def test_a_home_that_cannot_be_written_says_so(monkeypatch):
    monkeypatch.delenv("HARNESS_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/proc")
    with pytest.raises(
        DataError, match=r"cache /proc/\.cache/diffusion-harness/features cannot be written.*HARNESS_CA"
    ):
        cache_folder("features")


@pytest.fixture
def limited():
    """Return a function that limits how large a file this process may write, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda num_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_size_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, limited):
    limited(1000)
    refused = pytest.raises(DataError, match="cannot be written: a limit on the size of files")
    with refused, publish(tmp_path / "x") as temporary, temporary.open("wb") as file:
        allocate(file, 5000)
        pytest.fail("it went on to write")
    assert list(tmp_path.iterdir()) == []


def test_what_is_allocated_has_its_size_on_the_disk_and_reads_as_it_was_written(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        file.write(b"head")
        allocate(file, 1 << 20)
        assert os.fstat(file.fileno()).st_blocks * 512 >= 1 << 20
        file.write(b"body")
    assert (tmp_path / "x").read_bytes()[:9] == b"headbody\0"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_called_that_and_no_half_file_is_left(tmp_path, number):
    refused = pytest.raises(DataError, match="the disk or your quota is full; make room, or set HARNESS_CACHE")
    with refused, publish(tmp_path / "x") as temporary:
        temporary.write_bytes(b"half")
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_what_killed_writers_left_is_removed_and_what_others_write_is_not(tmp_path):
    host, dead = os.uname().nodename, 2**22 + 1  # no such process: above the highest id
    names = {f".a.npy.{host}.{dead}": 0, f".b.npy.{host}.{os.getpid()}": 0, f".c.npy.elsewhere.{dead}": 0}
    for name, time in names.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time, time))
    (tmp_path / f".d.npy.{host}.{dead}").touch()  # written a moment ago, perhaps by another container of this name
    with publish(tmp_path / "x") as temporary:
        temporary.write_text("whole")
    assert sorted(path.name[:2] for path in tmp_path.iterdir()) == [".b", ".c", ".d", "x"]


def test_a_cache_that_may_only_be_read_still_serves_what_it_holds(monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        monkeypatch.setenv("HARNESS_CACHE", name)
        np.save(cache_folder("features") / "x.npy", np.arange(3))
        become = os.geteuid() == 0
        (Path(name) / "features").chmod(0o555)
        if become:
            os.seteuid(65534)  # root may write everywhere
        try:
            assert np.load(cache_folder("features") / "x.npy").tolist() == [0, 1, 2]
            refused = pytest.raises(DataError, match="features cannot be written: Permission denied; set HARNESS_CACHE")
            with refused, publish(cache_folder("features") / "y") as temporary:
                temporary.write_text("y")
        finally:
            if become:
                os.seteuid(0)
            (Path(name) / "features").chmod(0o755)
