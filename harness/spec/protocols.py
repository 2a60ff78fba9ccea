"""Named protocols: how the papers measured samples, and what makes two measurements comparable.

An evaluation of a study that says `protocol: iddpm` has the fields below, and may not contradict them. It is then as if
they had been written out: an evaluation that has them without the name has the same key, and is the same protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.spec.base import canonical_json, digest, expand_name
from harness.text import did_you_mean

_AVERAGED = {"weights": "ema", "guidance": 1.0}
_PAPERS = {
    "num_samples": 50_000,
    "sampler": {"name": "ancestral"},
    "extractor": "inception",
    "reference": "train",
}

PROTOCOLS: Mapping[str, Mapping[str, Any]] = {
    "ddpm": {**_AVERAGED, "fidelity": {**_PAPERS, "num_steps": None}},
    "iddpm": {**_AVERAGED, "fidelity": {**_PAPERS, "num_steps": 250, "k": 5, "prc_reference": 50_000}},
    "adm": {**_AVERAGED, "fidelity": {**_PAPERS, "num_steps": 250, "k": 3, "prc_reference": 10_000}},
    "laptop": {
        **_AVERAGED,
        "fidelity": {
            "num_samples": 2_000,
            "sampler": {"name": "ddim"},
            "num_steps": 50,
            "extractor": "classifier",
            "reference": "train",
            "k": 3,
        },
    },
}
"""Protocol -> the fields that it fixes; all others are free.

- ddpm: Ho et al. 2020, section 4 and table 1: FID of 50,000 samples of the whole chain against the training set.
- iddpm: Nichol and Dhariwal 2021, section 3 and table 4: 250 steps, EMA, precision and recall with Inception and K = 5.
  How many reference images these have is not stated; here at most 50,000, as there are samples.
- adm: Dhariwal and Nichol 2021, section 4 and the evaluator of openai/guided-diffusion: k = 3 and 10,000 reference
  images for precision and recall. Its FID is against stored statistics: `fidelity.reference: FILE.npz` measures so, and
  is another protocol.
- laptop: minutes on two cores. Its distances are in the features of the data's own classifier, and nobody else's FID.
"""


WHOLE_CHAIN = "the whole chain"


class ProtocolError(ValueError):
    """A field contradicts the protocol, or there is no such protocol; `path` leads to it within the evaluation."""

    def __init__(self, path: tuple[str, ...], message: str):
        super().__init__(message)
        self.path = path


def expand(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return an evaluation's fields as written, with those of its `protocol` instead of the name.

    Raises:
        ProtocolError: no such protocol, or a field contradicts it.
    """
    others = {key: value for key, value in fields.items() if key != "protocol"}
    if "protocol" not in fields:
        return others
    name = fields["protocol"]
    if not isinstance(name, str) or name not in PROTOCOLS:
        raise ProtocolError(("protocol",), f"{name!r}: {did_you_mean(str(name), list(PROTOCOLS))}")
    preset, fidelity = PROTOCOLS[name], others.get("fidelity", {})
    if not isinstance(fidelity, Mapping):
        return others  # which validation refuses
    for parents, given, fixed in (((), others, preset), (("fidelity",), fidelity, preset["fidelity"])):
        for key in fixed.keys() & given.keys() - {"fidelity"}:
            if not _same(key, given[key], fixed[key]):
                raise ProtocolError(
                    (*parents, key),
                    f"protocol {name} has {_shown(fixed[key])}, not {_shown(given[key])}: remove this line, or write "
                    "out the fields instead of protocol",
                )
    return {**preset, **others, "fidelity": {**preset["fidelity"], **fidelity}}


def _same(key: str, given: Any, fixed: Any) -> bool:
    if key == "sampler":
        given = expand_name(given)
    return given == fixed and isinstance(given, bool) == isinstance(fixed, bool)


def _shown(value: Any) -> str:
    match value:
        case None:
            return WHOLE_CHAIN
        case {"name": name}:
            return str(name)
    return str(value)


# -- what is comparable


def compared(evaluation: Mapping[str, Any], num_timesteps: int) -> dict[str, Any]:
    """Return what decides whether metrics of samples are comparable, by the field's name.

    The seed is not in it: other seeds are other samples of the same protocol. Neither are the metrics that are
    measured, nor an ensemble, which is another model.

    Args:
        evaluation: a resolved one with fidelity, as plain values.
        num_timesteps: of the chain. Chains of different lengths, each taken whole, are sampled by one protocol.
    """
    part = evaluation["fidelity"]
    return {
        "extractor": part["extractor"],
        "num_samples": part["num_samples"],
        "reference": part.get("reference_sha256") or part["reference"],
        "k": part["k"],
        "prc_reference": part["prc_reference"],
        "sampler": _settings(part["sampler"]),
        "num_steps": WHOLE_CHAIN if part["num_steps"] in (None, num_timesteps) else part["num_steps"],
        "guidance": evaluation.get("guidance", 1.0),
        "checkpoint": evaluation.get("checkpoint", "last"),
        "weights": evaluation.get("ema") or _TRAINED.get(evaluation["weights"], evaluation["weights"]),
    }


_TRAINED = {"untrained": "ema"}
"""A baseline of untrained weights stands beside what it is one for."""


def protocol_id(evaluation: Mapping[str, Any], num_timesteps: int) -> str:
    """Return the name of the protocol that a resolved evaluation follows, else `custom-` and 8 hex digits.

    Args:
        evaluation, num_timesteps: as in `compared`.
    """
    own = compared(evaluation, num_timesteps)
    for name, preset in PROTOCOLS.items():
        fixed = {**preset["fidelity"], **{key: preset[key] for key in ("weights", "guidance")}, "checkpoint": "last"}
        if fixed["num_steps"] in (None, num_timesteps):
            fixed["num_steps"] = WHOLE_CHAIN
        if all(_same(key, own[key], value) for key, value in fixed.items()):
            return name
    return f"custom-{digest(own)[:8]}"


def difference(ours: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Describe in what two protocols, as of `compared`, differ: `num_samples 10000 against 50000`.

    What only one of them has is not known of the other, and is left out; the text is empty if they differ in nothing.
    """
    keys = [key for key in ours if key in other and canonical_json(ours[key]) != canonical_json(other[key])]
    return ", ".join(f"{key} {_text(ours[key])} against {_text(other[key])}" for key in keys)


def _settings(sampler: Mapping[str, Any]) -> Any:
    """Return a sampler's name, or its name and what is not at its default."""
    from harness.spec.evaluation import Sampler
    from harness.spec.parts import choices

    kinds = choices(Sampler)
    kind = kinds.get(sampler["name"])
    if kind is None:
        return dict(sampler)
    defaults = {key: field.default for key, field in kind.model_fields.items()}
    return {key: value for key, value in sampler.items() if key == "name" or value != defaults.get(key)}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        others = ", ".join(f"{key} {setting}" for key, setting in value.items() if key != "name")
        return f"{value['name']} ({others})" if others else str(value["name"])
    return str(value)
