"""Scores and metrics of a run: mergeable sums per shard, and the metrics computed from them (the stage reduce)."""
