"""Dataset metrics, pure: sums that merge over shards, and the figures that are made of them."""

CORE_METRICS = ("fidelity", "representativeness", "diversity", "freshness", "precision", "coverage")
"""The metrics of every run, in the order in which people are shown them."""
