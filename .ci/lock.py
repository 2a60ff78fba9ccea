"""Print the packages of the environment that runs this as constraints: names and versions, no paths, no local tags."""

import platform
from importlib.metadata import distributions

LEFT_OUT = ("diffusion-harness", "pip", "setuptools")
version = ".".join(platform.python_version_tuple()[:2])
print(
    f"# Exact versions that are known to install and work together (Python {version}). "
    "The Makefile installs under them; pyproject.toml has the ranges.\n"
    "# torch and torchvision carry no local tag (+cpu, +cu...), so each machine takes its own build of these versions."
)
packages = {package.name: package.version.split("+")[0] for package in distributions()}
for name in sorted(packages, key=str.lower):
    if name not in LEFT_OUT:
        print(f"{name}=={packages[name]}")
