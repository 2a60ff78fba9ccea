"""One table a file, as Markdown, CSV, HTML and LaTeX, and what else goes into a paper."""
