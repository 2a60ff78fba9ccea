"""import-checkpoint, export-checkpoint: weights in the formats that others published."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.common import (
    Output,
    checkpoint_option,
    checkpoint_step,
    find_run,
    json_option,
    runs_folder_option,
    weights_option,
)


@click.command("import-checkpoint")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--as",
    "name",
    required=True,
    metavar="NAME",
    help="Its name: cifar10_uncond, imagenet64_uncond, ..., ddgan_cifar10 or ddgan_celebahq256.",
)
@json_option
@runs_folder_option
def import_checkpoint(file: Path, name: str, output: Output, runs_folder: Path) -> None:
    """Make a run of a published checkpoint.

    FILE is one that openai/improved-diffusion published, or a generator that NVlabs/denoising-diffusion-gan did:
    netG_1200.pth of CIFAR-10, netG_550.pth of CelebA-HQ.

    With --json: {"run_key", "name", "run_dir", "study_file"}.
    """
    from harness.interop import checkpoints
    from harness.text import harness_command

    directory = checkpoints.import_checkpoint(file, name, runs_folder)
    family, name, _ = checkpoints.published(name)
    study = directory.path / "study.yaml"
    sample = harness_command("sample", directory.key[:8], "--num-samples", 16, runs_folder=runs_folder)
    click.echo(f"{directory.key} is {name}; to sample: {sample}")
    click.echo(f"to evaluate: submit a study with `extends: {study}` and an `evaluate:` list")
    for network in family.left_initial:
        click.echo(f"its {network} is not in the file: it has its initial weights, which neither of these uses")
    output.document({"run_key": directory.key, "name": name, "run_dir": str(directory.path), "study_file": str(study)})


@click.command("export-checkpoint")
@click.argument("run")
@click.argument("file", type=click.Path(path_type=Path))
@weights_option("ema", "raw")
@checkpoint_option
@json_option
@runs_folder_option
def export_checkpoint(
    run: str, file: Path, weights: str, checkpoint: str | None, output: Output, runs_folder: Path
) -> None:
    """Write weights in a published format.

    FILE can be loaded by openai/improved-diffusion's scripts if the run's network is a U-Net, and by
    NVlabs/denoising-diffusion-gan's if it is an NCSN++ generator.

    With --json: {"file", "run_key", "weights", "step"}.
    """
    from harness.interop import checkpoints

    directory = find_run(run, runs_folder)
    step = checkpoints.export_checkpoint(
        directory.path, file, weights=weights, step=checkpoint_step(directory, checkpoint)
    )
    click.echo(f"{file}: the {weights} weights of {directory.key} at step {step}")
    output.document({"file": str(file), "run_key": directory.key, "weights": weights, "step": step})
