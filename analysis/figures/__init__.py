"""One figure a file: a pure `data(runs) -> DataFrame` and a thin `draw(frame) -> Figure`."""
