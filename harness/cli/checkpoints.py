"""import-checkpoint, export-checkpoint: weights that come from or go to improved-diffusion."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.common import checkpoint_step, find_run, runs_folder_option, step_option


@click.command("import-checkpoint")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--as", "name", required=True, metavar="NAME", help="Which one: imagenet64_uncond, cifar10_uncond, ...")
@runs_folder_option
def import_checkpoint(file: Path, name: str, runs_folder: Path) -> None:
    """Make a finished run of a checkpoint that openai/improved-diffusion published."""
    from harness.interop import improved_diffusion as published

    directory = published.import_checkpoint(file, name, runs_folder)
    click.echo(f"{directory.key} is {name}; sample it: harness sample {directory.key[:8]} --n 16")
    click.echo(f"evaluate it by a study that says `extends: {directory.path / 'study.yaml'}`, and what to measure")


@click.command("export-checkpoint")
@click.argument("run")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--weights", type=click.Choice(["ema", "raw"]), default="ema", show_default=True)
@step_option
@runs_folder_option
def export_checkpoint(run: str, file: Path, weights: str, step: str | None, runs_folder: Path) -> None:
    """Write a run's weights as a file that openai/improved-diffusion's scripts load."""
    from harness.interop import improved_diffusion as published

    directory = find_run(run, runs_folder)
    done = published.export_checkpoint(directory.path, file, weights=weights, step=checkpoint_step(directory, step))
    click.echo(f"{file}: the {weights} weights of {directory.key} at step {done}")
