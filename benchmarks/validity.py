"""What the numbers say, against closed forms, published values and independent code: one claim a line.

``python -m benchmarks.validity`` takes about two minutes on two quiet cores, ``--full`` with more draws longer.
``--only PART`` runs one of manifold, calibration, groups and kid.
"""

import argparse
import json

from benchmarks import validity_calibration, validity_groups, validity_kid, validity_manifold

PARTS = {
    "manifold": validity_manifold.claims,
    "calibration": validity_calibration.claims,
    "groups": validity_groups.claims,
    "kid": validity_kid.claims,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", choices=PARTS)
    parsed = parser.parse_args()
    for name, claims in PARTS.items():
        if parsed.only in {None, name}:
            for line in claims(parsed.full):
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
