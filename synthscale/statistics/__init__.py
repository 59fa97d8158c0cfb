"""Uncertainty of metrics: jackknife, bootstrap, subsampling, size matching, intervals. Pure functions."""
