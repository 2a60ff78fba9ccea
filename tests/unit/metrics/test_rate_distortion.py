"""Progressive coding against the closed form and against the likelihood."""

import numpy as np
import pytest

from harness.metrics.likelihood import full_nll
from harness.metrics.rate_distortion import rate_distortion


@pytest.fixture(scope="module")
def curve(short_chain):
    return rate_distortion(
        short_chain.process, short_chain.predict, short_chain.x_0, seed=0, batch_size=1000, clip=False
    )


def test_rate_and_distortion_meet_the_closed_form(curve, short_chain):
    exact = np.cumsum(short_chain.L_t_bpd.mean(0)[:0:-1])  # from T-1 to 1
    np.testing.assert_allclose(curve.rate_bpd[1:], exact, rtol=0.02, atol=1e-6)
    ratio = curve.distortion_rmse / (127.5 * np.sqrt(short_chain.mse.mean(0)[::-1]))
    np.testing.assert_allclose(ratio, 1, atol=0.05)  # one draw for each of 300 unlike images: a std of 1.6 % at small t
    assert ratio.mean() == pytest.approx(1, abs=0.005)


def test_before_the_first_step_only_the_prior_has_been_received(curve, short_chain):
    assert curve.reverse_steps.tolist() == list(range(1, 101))
    assert curve.rate_bpd[0] == float(short_chain.process.prior_bpd(short_chain.x_0).double().mean())


def test_what_the_last_step_lacks_to_the_bound_is_the_decoder(curve, short_chain):
    whole = full_nll(short_chain.process, short_chain.predict, short_chain.x_0, seed=0, batch_size=1000, clip=False)
    assert curve.rate_bpd[-1] + whole.decoder_bpd == pytest.approx(whole.total_bpd, rel=1e-9)  # the same noise
