import subprocess
import sys

import pytest

from harness.data import DATASET_FACTS, DATASETS


def test_every_data_set_has_declared_facts_and_every_fact_a_data_set():
    assert list(DATASET_FACTS) == list(DATASETS)


@pytest.mark.process
def test_facts_are_read_without_numpy_or_torch():
    program = (
        "import sys; from harness.data import DATASET_FACTS; assert DATASET_FACTS['digits'].levels == 17; "
        "assert not {'numpy', 'torch', 'sklearn', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", ["digits", "mog"])
def test_what_is_loaded_is_what_is_declared(name):
    dataset, facts = DATASETS[name](), DATASET_FACTS[name]
    assert dataset.train.images.shape[1:] == (facts.channels, facts.image_size, facts.image_size)
    assert (dataset.levels, dataset.num_classes) == (facts.levels, facts.num_classes)
    assert (dataset.num_train, dataset.num_test) == (facts.num_train, facts.num_test)
    assert set(dataset.test.labels) == set(range(facts.num_classes))
    if facts.levels:
        assert (dataset.train.images.min(), dataset.train.images.max()) == (0, facts.levels - 1)


def test_padding_of_28_pixels_to_32_is_a_share_of_the_dimensions():
    assert DATASET_FACTS["mnist"].padded_share == 1 - 28 * 28 / (32 * 32)
    assert DATASET_FACTS["cifar10"].padded_share == 0
