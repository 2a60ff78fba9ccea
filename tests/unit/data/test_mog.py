import numpy as np
import torch

from harness.data import load_dataset
from harness.data.facts import MOG_MIXTURE
from harness.data.mog import CENTRE, SCALE, modes


def test_the_mixture_is_always_the_same():
    mog = load_dataset("mog")
    assert (
        mog.digest == load_dataset("mog").digest == "ab8bb1999c8bd49ff129fe4453789fc2246839e8a9c36ca5ca2f6a400212e946"
    )
    assert (mog.train.images.shape, mog.test.images.shape) == ((250_000, 2, 1, 1), (50_000, 2, 1, 1))


def test_the_mixture_is_siddms_mapped_onto_minus_one_to_one():
    mog = load_dataset("mog")
    points = mog.train.images[:, :, 0, 0] * SCALE + CENTRE
    centres = np.array([[x, y] for x in range(0, 25, 5) for y in range(0, 25, 5)])
    offsets = points - centres[mog.train.labels]
    assert np.allclose(modes() * SCALE + CENTRE, centres, atol=1e-5)
    assert np.abs(offsets).max() <= 1 + 1e-5  # clamped, where 0.27 % of the normals would lie further out
    assert abs(offsets.std() - 1 / 3) < 0.003
    assert np.abs(mog.train.images).max() <= 1


def test_the_declared_mixture_is_the_one_that_is_drawn():
    assert np.allclose(MOG_MIXTURE.centres, modes(), rtol=0, atol=1e-7)  # float32
    assert np.isclose(MOG_MIXTURE.std, 1 / 3 / SCALE, rtol=1e-15)


def test_continuous_data_are_not_scaled_again():
    mog = load_dataset("mog")
    assert torch.equal(mog.to_unit(mog.test.images), torch.from_numpy(mog.test.images))
