"""diffusion-harness: ablations and scaling studies of diffusion models, from one YAML file to the papers' figures."""

__version__ = "0.1.0"
