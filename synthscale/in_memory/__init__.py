"""``score_features``: the rooms' pure modules chained on arrays in memory, without Ray."""
