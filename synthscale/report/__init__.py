"""The report: selected rows of a run's tables, verdicts, charts, thumbnails, the map and the HTML page."""
