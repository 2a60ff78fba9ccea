"""What a study gives a paper is compiled by a real TeX."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from harness.analysis.report.report import report
from harness.testing import TINY_STUDY, tiny_study, write_finished_run


def lacking() -> str:
    """Return what of TeX is not installed; empty if all is there."""
    if shutil.which("pdflatex") is None:
        return "pdflatex is not installed"
    packages = ("siunitx.sty", "booktabs.sty", "longtable.sty")
    result = subprocess.run(["kpsewhich", *packages], capture_output=True, text=True, check=False)
    found = {Path(line).name for line in result.stdout.splitlines()}
    return " and ".join(f"{name} is not installed" for name in packages if name not in found)


pytestmark = pytest.mark.skipif(bool(lacking()), reason=f"{lacking()}: texlive-latex-recommended, texlive-science")

PAPER = r"""\documentclass{article}
\usepackage{array, booktabs, graphicx, longtable, siunitx}
\begin{document}
%s
\end{document}
"""
SEEDS = {"one": 1, "two": 2, "five": 5}
IMAGES = r"""
figures: {labels: {"cosine & 50% {x} ~#_^": "$L_\\mathrm{hybrid}$, 50%"}}
arms:
  linear: {diffusion.schedule: linear}
  "cosine & 50% {x} ~#_^": {diffusion.schedule: cosine}
  "中 $x^^5c$ é": {objective: hybrid}
replicates: REPLICATES
evaluate:
  - {name: eval, nll: {}, fidelity: {num_samples: 64, num_steps: 5}}
  - {name: small, fixed_variance: small, nll: {num_images: 8}, fidelity: {num_samples: 32, num_steps: 5}}
"""
POINTS = """
study: plane
data: mog
diffusion: {num_timesteps: 8, schedule: cosine}
model: {name: mlp, width: 16}
train: {steps: 12, batch_size: 16, ema_rate: 0.8}
arms: {simple: {}, hybrid: {objective: hybrid}}
replicates: 4
evaluate: [{modes: {num_samples: 250, num_steps: [1, 2, 8]}}]
"""


def compiled(folder: Path, text: str) -> str:
    """Compile a paper and return TeX's log; the test fails with the log's end where TeX does."""
    (folder / "paper.tex").write_text(PAPER % text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    assert result.returncode == 0, result.stdout[-2000:]
    assert (folder / "paper.pdf").read_bytes().startswith(b"%PDF")
    return (folder / "paper.log").read_text(errors="replace")


@pytest.mark.slow
def test_every_file_for_a_paper_is_compiled_with_any_name_and_number_of_seeds(
    tmp_path: Path, without_closed_forms: None
) -> None:
    of_images = {name: TINY_STUDY.replace("tiny", name) + IMAGES for name in SEEDS}
    for name, study in {**of_images, "points": POINTS}.items():
        (tmp_path / name).mkdir()
        for run in tiny_study(tmp_path / name, study=study.replace("REPLICATES", str(SEEDS.get(name)))):
            wobble = 0.01 * (run.replicate * 7 % 5)
            measured = {"nll_bpd": 3 - wobble - 0.5 * (run.arm != "linear"), "fid": float("nan") if wobble else 10.0}
            write_finished_run(run, tmp_path / "runs", measured | {"frechet": 0.1 + wobble})
    report(tmp_path / "runs", tmp_path / "figures")
    files = sorted((tmp_path / "figures").glob("*/*.tex"))
    names = {file.name for file in files}
    assert names == {"contrasts.tex", "macros.tex", "mixture_by_steps.tex", "reproducibility.tex", "results.tex"}
    assert {file.parent.name for file in files} >= {*SEEDS, "plane"}
    inputs = [rf"\input{{{file}}}" for file in files] + [rf"\{name.title()}LinearNllMean" for name in SEEDS]
    log = compiled(tmp_path, "\n".join(inputs))
    assert "Undefined" not in log and "Missing character" not in log
    tables = [line for line in log.splitlines() if "Overfull" in line and "detected" in line]
    assert not tables, "a table is wider than the text"
    with pytest.raises(AssertionError, match="TwoLinearNllMeen"):
        compiled(tmp_path, rf"\input{{{tmp_path}/figures/two/macros.tex}}\TwoLinearNllMeen")
