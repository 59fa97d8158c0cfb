"""The report: rows selected from a run's tables, verbal verdicts, charts, thumbnails, the map and the HTML page."""
