"""The four scores as the tutorial "Scoring the quality of synthetic data" defines them, on its ``cleanset_df``.

Written from the tutorial's words alone. Its issue column is read as the label *quality* score, which is what its
arithmetic needs, and a frame without near-duplicates is let through.
"""

import pandas as pd


def _unrealistic(frame: pd.DataFrame) -> float:
    """Mean score of the synthetic examples: how easily they are told to be synthetic."""
    scores = [row.label_quality_score for row in frame.itertuples() if row.real_or_synthetic == "synthetic"]
    return sum(scores) / len(scores)


def _unrepresentative(frame: pd.DataFrame) -> float:
    """Mean score of the real examples."""
    scores = [row.label_quality_score for row in frame.itertuples() if row.real_or_synthetic == "real"]
    return sum(scores) / len(scores)


def _synthetic_in_sets(frame: pd.DataFrame) -> tuple[int, int]:
    """Synthetic examples in near-duplicate sets that hold none but synthetic ones, and in sets that hold both."""
    sets: dict[int, list[str]] = {}
    for row in frame.itertuples():
        if row.is_near_duplicate:
            sets.setdefault(int(row.near_duplicate_id), []).append(row.real_or_synthetic)
    alone = sum(len(kinds) for kinds in sets.values() if "real" not in kinds)
    mixed = sum(kinds.count("synthetic") for kinds in sets.values() if "real" in kinds)
    return alone, mixed


def scores(frame: pd.DataFrame) -> dict[str, float]:
    """The four scores of one generator's frame."""
    count = sum(1 for kind in frame["real_or_synthetic"] if kind == "synthetic")
    unvaried, unoriginal = _synthetic_in_sets(frame)
    return {
        "fidelity": 1 - _unrealistic(frame),
        "representativeness": 1 - _unrepresentative(frame),
        "diversity": 1 - unvaried / count,
        "freshness": 1 - unoriginal / count,
    }
