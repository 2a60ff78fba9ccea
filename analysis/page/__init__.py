"""The page of a study: its answer, its tables, its curves, its runs."""
