import pytest

from harness.spec.evaluation import Evaluation
from harness.spec.protocols import PROTOCOLS, ProtocolError, compared, difference, expand, protocol_id


def stored(**changes):
    """Return a resolved evaluation by the protocol iddpm as plain values, with some fields of fidelity changed."""
    fields = expand({"name": "eval", "protocol": "iddpm"})
    fields["fidelity"] |= changes.pop("fidelity", {})
    return Evaluation(**(fields | changes)).model_dump(mode="json")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_fills_in_its_fields_and_is_known_by_them(name):
    by_name = Evaluation(**expand({"name": "eval", "nll": {}, "protocol": name}))
    preset = PROTOCOLS[name]
    written_out = Evaluation(
        name="eval",
        nll={},
        **{key: value for key, value in preset.items() if key != "fidelity"},
        fidelity=preset["fidelity"],
    )
    assert by_name == written_out and by_name.key == written_out.key
    assert protocol_id(by_name.model_dump(mode="json"), 4000) == name


def test_the_papers_protocols_have_the_papers_numbers():
    numbers = {
        name: (
            preset["fidelity"]["num_samples"],
            preset["fidelity"]["num_steps"],
            preset["fidelity"].get("k"),
            preset["fidelity"].get("prc_reference"),
        )
        for name, preset in PROTOCOLS.items()
    }
    assert numbers == {
        "ddpm": (50_000, None, None, None),
        "iddpm": (50_000, 250, 5, 50_000),
        "adm": (50_000, 250, 3, 10_000),
        "laptop": (2_000, 50, 3, None),
    }


def test_what_a_protocol_does_not_fix_is_free():
    fields = expand({"protocol": "iddpm", "seed": 3, "grid": 64, "fidelity": {"metrics": ["kid"], "k": 5}})
    assert fields["fidelity"]["metrics"] == ["kid"] and fields["fidelity"]["num_steps"] == 250
    assert "protocol" not in fields and fields["seed"] == 3
    assert expand({"name": "eval", "nll": {}}) == {"name": "eval", "nll": {}}
    assert expand({"protocol": "ddpm", "fidelity": {"sampler": "ancestral"}})["fidelity"]["sampler"] == "ancestral"


@pytest.mark.parametrize(
    ("fields", "path", "words"),
    [
        ({"fidelity": {"k": 3}}, ("fidelity", "k"), "protocol iddpm has 5, not 3"),
        ({"fidelity": {"num_steps": None}}, ("fidelity", "num_steps"), "protocol iddpm has 250, not the whole chain"),
        ({"fidelity": {"sampler": "ddim"}}, ("fidelity", "sampler"), "protocol iddpm has ancestral, not ddim"),
        ({"weights": "raw"}, ("weights",), "protocol iddpm has ema, not raw"),
        ({"guidance": 2}, ("guidance",), "protocol iddpm has 1.0, not 2"),
        ({"protocol": "idppm"}, ("protocol",), "did you mean 'iddpm'?"),
        ({"protocol": 3}, ("protocol",), "choices: ddpm, iddpm, adm, laptop"),
    ],
)
def test_what_contradicts_a_protocol_is_refused_with_its_place(fields, path, words):
    with pytest.raises(ProtocolError) as refusal:
        expand({"protocol": "iddpm"} | fields)
    assert refusal.value.path == path and words in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fidelity": {"num_samples": 10_000}}, "num_samples 50000 against 10000"),
        ({"fidelity": {"extractor": "classifier"}}, "extractor inception against classifier"),
        ({"fidelity": {"reference": "test"}}, "reference train against test"),
        ({"fidelity": {"k": 3}}, "k 5 against 3"),
        ({"fidelity": {"prc_reference": 100}}, "prc_reference 50000 against 100"),
        ({"fidelity": {"num_steps": 50}}, "num_steps 250 against 50"),
        ({"fidelity": {"sampler": {"name": "ddim", "eta": 0.5}}}, "sampler ancestral against ddim (eta 0.5)"),
        ({"weights": "raw"}, "weights ema against raw"),
        ({"ema": 0.999}, "weights ema against 0.999"),
        ({"guidance": 2.0}, "guidance 1.0 against 2.0"),
        ({"checkpoint": "best"}, "checkpoint last against best"),
    ],
)
def test_a_change_of_any_field_that_matters_is_another_protocol_and_is_named(change, words):
    ours, other = stored(), stored(**change)
    assert protocol_id(ours, 4000) == "iddpm" != protocol_id(other, 4000)
    assert difference(compared(ours, 4000), compared(other, 4000)) == words


def test_other_seeds_metrics_and_names_are_the_same_protocol():
    other = stored(seed=5, name="again", grid=16, fidelity={"metrics": ["kid", "fid"]})
    assert protocol_id(other, 4000) == "iddpm"
    assert difference(compared(stored(), 4000), compared(other, 4000)) == ""


def test_the_whole_chain_is_its_length():
    chain = stored(fidelity={"num_steps": None, "k": 3})
    assert protocol_id(chain, 1000) == "ddpm" == protocol_id(stored(fidelity={"num_steps": 1000, "k": 3}), 1000)
    assert protocol_id(stored(fidelity={"num_steps": 500, "k": 3}), 1000).startswith("custom-")
