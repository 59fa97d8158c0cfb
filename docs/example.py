"""Explore a finished run in Python: the output of `make demo`, or any other run.

    python docs/example.py [RUN] [GENERATOR]

tests/test_report.py runs it.
"""

import sys

import pandas as pd

from synthscale import RunResult

result = RunResult.open(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
generator = sys.argv[2] if len(sys.argv) > 2 else result.generators[0]

# Core metrics, each with its 95 % interval and its reference, the best value to expect.
metrics = result.metrics["generators"][generator]["metrics"]
print(pd.DataFrame(metrics).T[["value", "low", "high", "reference"]])

# The images that lower a metric most, as pandas frames that include your own columns.
columns = ["id", "label", "label_quality_score", "nearest_real_id", "distance_to_nearest_real"]
print(result.worst("fidelity", n=5, generator=generator)[columns])
print(result.worst("coverage", n=5, generator=generator)[["id", "label", "label_quality_score"]])

# Near-duplicate groups, and the members of the two largest.
groups = result.groups(generator)
print(f"{len(groups)} near-duplicate groups, {groups.has_real.sum()} of them with a real image")
scores = result.scores(generator)
for group in groups.near_duplicate_id.head(2):
    print(scores.loc[scores.near_duplicate_id == group, ["id", "real_or_synthetic"]].to_string(index=False))

# Mean score by label, to see whether the generator is weak for some labels only.
synthetic = scores[scores.real_or_synthetic == "synthetic"]
print(synthetic.groupby("label").label_quality_score.mean().sort_values(ascending=False).head())

# In a notebook: result.show(); result.plot_projection()
