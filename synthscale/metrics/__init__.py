"""Scores and metrics of a run: sums that merge over shards, and the figures made of them (the stage reduce)."""
