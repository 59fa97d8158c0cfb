"""What the report shows: rows chosen from a run's tables, words, charts and thumbnails, and the page itself."""
