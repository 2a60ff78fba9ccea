"""The probe of a device, on the one that every machine has: wrong numbers are noticed, and right ones pass."""

import pytest
import torch

from harness.errors import DeviceError, TrainingError
from harness.job.device_probe import SIZE, fault_of, node_name, probe, sound_device
from harness.job.endings import ending_of_error
from harness.records.directory import RunDirectory
from harness.records.nodes import bad_nodes
from harness.training.distributed import ProcessGroup

CPU = torch.device("cpu")
SMALL = {"size": 64, "memory_bytes": 1 << 12}


def test_a_sound_device_passes_and_its_products_are_exact():
    probe(CPU, **SMALL)
    assert 8 * 8 * SIZE < 2**24  # every partial sum is a whole number that float32 holds


class WrongProduct(torch.overrides.TorchFunctionMode):
    """Adds a number to one element of the n-th product in float32, as a broken multiplier would."""

    def __init__(self, number):
        super().__init__()
        self.left = number

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.Tensor.matmul, torch.Tensor.__matmul__) and result.dtype == torch.float32:
            self.left -= 1
            if not self.left:
                result[3, 5] += 1
        return result


@pytest.mark.parametrize(
    ("number", "message"), [(1, "a product of matrices is wrong"), (4, "differs from one time to the next")]
)
def test_one_wrong_element_of_a_product_is_noticed(number, message):
    with WrongProduct(number), pytest.raises(DeviceError, match=message):
        probe(CPU, **SMALL)


def test_on_the_cpu_a_run_begins_without_a_probe(tmp_path):
    assert sound_device(CPU, ProcessGroup(), RunDirectory(tmp_path / "0123456789abcdef")) == CPU
    assert bad_nodes(tmp_path) == []


def test_what_cuda_says_of_a_broken_gpu_interrupts_the_run_and_lists_its_node(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n5")
    broken = RuntimeError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be ...")
    directory = RunDirectory(tmp_path / "0123456789abcdef")
    state, reason, cause, trace = ending_of_error(broken, directory)
    assert (state, cause, trace) == ("interrupted", "device", "")
    assert reason == "the device of n5 is not sound: CUDA error: uncorrectable ECC error encountered"
    assert [entry.node for entry in bad_nodes(tmp_path)] == ["n5"] == [node_name()]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        TrainingError("the loss is not a number; uncorrectable ECC error"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_what_may_be_the_runs_own_fault_blames_no_node(tmp_path, error):
    assert fault_of(error, tmp_path) == "" and bad_nodes(tmp_path) == []
    assert ending_of_error(error, RunDirectory(tmp_path / "0123456789abcdef"))[0] == "failed"
