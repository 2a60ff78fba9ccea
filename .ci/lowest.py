"""Print the requirements of `make lowest`: the lowest versions that pyproject.toml promises, and what tests need."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for requirement in project["dependencies"]:
    print(re.sub(r"^([\w.-]+)>=([\w.]+).*", r"\1==\2", requirement))
print(*project["optional-dependencies"]["dev"], sep="\n")
