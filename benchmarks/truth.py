"""The truth test: five generators of known flaws, and whether the metrics tell which is which.

python -m benchmarks.truth
"""

import json
import tempfile
from pathlib import Path

from benchmarks.common import claim, python
from synthscale.metric_names import CORE_METRICS

PEER = "what each generator is known to do wrong"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="synthscale-truth-") as top:
        python("-m", "synthscale.cli", "demo", "--data", f"{top}/data", "--output", f"{top}/run")
        generators = json.loads(Path(top, "run", "metrics.json").read_text())["generators"]
    value = {name: {m: block["metrics"][m]["value"] for m in CORE_METRICS} for name, block in generators.items()}
    print(f"{'generator':12}" + "".join(f"{metric:>20}" for metric in CORE_METRICS))
    for name, metrics in value.items():
        print(f"{name:12}" + "".join(f"{metrics[metric]:20.3f}" for metric in CORE_METRICS))

    def lead(flawed: str, metric: str) -> float:
        """How far the flawed generator lies below the next one."""
        return min(value[name][metric] for name in value if name != flawed) - value[flawed][metric]

    def by_label(digits: str) -> float:
        rows = generators["missing"]["by_label"]
        return sum(rows[digit]["representativeness"]["value"] for digit in digits) / len(digits)

    claim("memorised is worst on freshness, by", lead("memorised", "freshness"), 0.0, "higher", PEER)
    claim("collapsed is worst on diversity, by", lead("collapsed", "diversity"), 0.0, "higher", PEER)
    claim("blurry is worst on precision, by", lead("blurry", "precision"), 0.0, "higher", PEER)
    claim("blurry's fidelity is low", value["blurry"]["fidelity"], 0.1, "lower", PEER)
    absent, present = by_label("56789"), by_label("01234")
    claim("missing: representativeness of digits 5-9", absent, 0.10, "lower", PEER)
    claim("missing: that over the one of digits 0-4", absent / present, 1 / 3, "lower", PEER)
    less = value["kde"]["coverage"] - value["missing"]["coverage"]
    claim("missing covers less than kde, by", less, 0.0, "higher", "kde")
    apart = abs(value["missing"]["precision"] - value["kde"]["precision"])
    claim("missing's precision is near kde's: difference", apart, 0.1, "lower", "kde")
    claim("kde's diversity", value["kde"]["diversity"], 0.95, "higher", PEER)
    claim("kde's freshness", value["kde"]["freshness"], 0.95, "higher", PEER)
    confounded = max(block["confounders"]["auc"]["low"] for block in generators.values())
    claim("AUC by file facts alone, lower end, any generator", confounded, 0.6, "lower", PEER)


if __name__ == "__main__":
    main()
