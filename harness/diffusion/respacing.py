"""Choose which steps of a long chain to keep for sampling or evaluating on a shorter one. Needs no NumPy."""

from collections.abc import Sequence


def space_timesteps(num_timesteps: int, section_counts: str | int | Sequence[int]) -> list[int]:
    """Choose the steps to keep of a chain of num_timesteps.

    Args:
        num_timesteps: length of the chain.
        section_counts: one of
            "250" or 250: that many steps, evenly spread over the chain, both ends kept;
            "10,15,20" or [10, 15, 20]: the chain is cut into equal sections, and each keeps so many steps;
            "ddim50": exactly 50 steps at an integer stride from 0 (DDIM, appendix D.2; the last step is left out);
            "quad50": 50 steps, dense near 0: max(i, c i^2) with c such that the last is num_timesteps - 1.
            A section of one step keeps its first, so that "1" keeps t = 0, as in the reference.

    Returns:
        The kept steps, ascending.

    Raises:
        ValueError: no such spacing; the message says which numbers are possible.
    """
    if isinstance(section_counts, str) and section_counts.startswith("ddim"):
        return _integer_stride(num_timesteps, _whole(section_counts[4:], section_counts))
    if isinstance(section_counts, str) and section_counts.startswith("quad"):
        return _quadratic(num_timesteps, _whole(section_counts[4:], section_counts))
    if isinstance(section_counts, str):
        counts = [_whole(part, section_counts) for part in section_counts.split(",")]
    elif isinstance(section_counts, int):
        counts = [section_counts]
    else:
        counts = [int(count) for count in section_counts]
    if not counts or min(counts) < 0 or sum(counts) == 0:
        raise ValueError(f"section counts must be whole numbers, at least one step in all; got {section_counts!r}")

    size, longer = divmod(num_timesteps, len(counts))
    kept, start = [], 0
    for i, count in enumerate(counts):
        section = size + (i < longer)
        if count > section:
            raise ValueError(f"section {i + 1} of {section_counts!r} has {section} steps, cannot keep {count} of them")
        stride = (section - 1) / (count - 1) if count > 1 else 1.0
        # Summed and rounded half to even, not multiplied: the published step sets come from this very rounding.
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += section
    return kept


def _integer_stride(num_timesteps: int, count: int) -> list[int]:
    possible = {len(range(0, num_timesteps, stride)): stride for stride in range(num_timesteps, 0, -1)}
    if count not in possible:  # of equal counts the smallest stride stays: the reference's first match
        nearest = sorted(sorted(possible, key=lambda other: abs(other - count))[:2])
        raise ValueError(
            f"cannot keep exactly {count} of {num_timesteps} steps at an integer stride; "
            f"the nearest possible numbers are {' and '.join(map(str, nearest))}"
        )
    return list(range(0, num_timesteps, possible[count]))


def _quadratic(num_timesteps: int, count: int) -> list[int]:
    if not 1 <= count <= num_timesteps:
        raise ValueError(
            f"cannot keep {count} of {num_timesteps} steps at a quadratic stride; choose 1..{num_timesteps}"
        )
    c = (num_timesteps - 1) / max(count - 1, 1) ** 2
    return [max(i, round(c * i * i)) for i in range(count)]  # i where c i^2 would keep a step twice


def _whole(text: str, section_counts: str) -> int:
    if not text.strip().isdecimal():
        raise ValueError(
            f"cannot read {section_counts!r}; choose a number ('250'), sections ('10,15,20'), 'ddimN' or 'quadN'"
        )
    return int(text)
