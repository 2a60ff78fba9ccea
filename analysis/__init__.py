"""Figures, tables and claims from records: run directories in, PNG, PDF, CSV and one page out. Never torch or mlflow.

Each figure is one file with a pure `data(runs) -> DataFrame` and a thin `draw(frame) -> Figure`; `report.py` runs them
all. `runs.py` is the only file that reads run directories.
"""
