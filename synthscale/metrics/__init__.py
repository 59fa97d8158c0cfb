"""Dataset metrics, pure: sums that merge over shards, and the figures that are made of them."""
