"""The picture of `harness profile`: where the time of a training step goes."""

from __future__ import annotations

from collections.abc import Sequence

from harness.analysis.figures.style import Figure, arm_style, in_style, label, subplots


@in_style
def draw_profile(
    title: str,
    parts: Sequence[tuple[str, float, float | None]],
    operators: Sequence[tuple[str, float]],
) -> Figure:
    """Draw the parts of a step as bars, and beside them torch's costliest operators.

    Args:
        parts: name, milliseconds of the host, and of the device where there is one.
        operators: name and milliseconds of its own.
    """
    figure, axes = subplots(1, 2, width=9.0, height=3.4, stacks=False)
    left, right = axes[0]
    on_device = any(device_ms is not None for _, _, device_ms in parts)
    height = 0.38 if on_device else 0.7
    for index, (_, host_ms, device_ms) in enumerate(parts):
        left.barh(index - on_device * height / 2, host_ms, height, color=arm_style(0)["color"])
        if device_ms is not None:
            left.barh(index + height / 2, device_ms, height, color=arm_style(1)["color"])
    left.set_yticks(range(len(parts)), [name for name, _, _ in parts])
    if on_device:
        handles = [left.barh(0, 0, color=arm_style(index)["color"]) for index in (0, 1)]
        left.legend(handles, ["host", "device"])
    right.barh(range(len(operators)), [ms for _, ms in operators], 0.7, color=arm_style(2)["color"])
    right.set_yticks(range(len(operators)), [label(name) for name, _ in operators])
    right.set_title("torch's operators, their own time")
    left.set_title("parts of a step")
    for panel in (left, right):
        panel.invert_yaxis()
        panel.set_xlabel("milliseconds a step")
    figure.suptitle(label(title))
    return figure
