"""Metrics of a model and its samples, one file each; import the file you need."""
