"""A process from its start to its first training step: `python -m benchmarks.peers.first_step NAME`."""

import sys


def main(name: str) -> None:
    """Import a library and train its network of the small setting for one step; "torch" only imports torch."""
    import torch

    if name == "torch":
        return
    torch.set_num_threads(1)
    from benchmarks.peers.settings import SETTINGS

    if name.startswith("ours"):
        from benchmarks.peers.ours import OURS

        build = OURS[name]
    else:
        from benchmarks.peers.theirs import THEIRS

        build = THEIRS[name]
    build(SETTINGS[-1]).train()


if __name__ == "__main__":
    main(sys.argv[1])
