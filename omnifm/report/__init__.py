"""Self-contained HTML pages: the report of a run, and what every page is made of."""
