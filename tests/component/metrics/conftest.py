"""An Inception without its training."""

import io

import pytest
import torch


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory):
    """A file of random weights of torch-fidelity's own Inception-V3, of sizes that keep differences between images.

    As it initialises itself, the features of all images are equal but for rounding.
    """
    from harness.metrics.torchvision_compat import torch_fidelity

    class Blank(torch_fidelity().feature_extractor_inceptionv3.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):
            assert not state_dict

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = Blank("blank", ["2048"], empty).state_dict()
        for weight in state.values():
            if weight.ndim == 4:
                torch.nn.init.kaiming_normal_(weight)
        torch.nn.init.normal_(state["fc.weight"])
        torch.save(state, path)
    return path
