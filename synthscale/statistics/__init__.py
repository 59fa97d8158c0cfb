"""Jackknife, bootstrap, subsample variance, size matching, estimates with intervals: arrays only."""
