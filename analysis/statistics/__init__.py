"""Statistics of runs: intervals, pairs and their corrections, what a metric's noise is, power laws."""
