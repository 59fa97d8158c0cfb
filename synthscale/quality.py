"""The four metrics from a frame of per-example scores, as Cleanlab Studio's tutorial computes them."""

from collections.abc import Sequence

import pandas as pd

from synthscale.errors import InputError
from synthscale.tables.schemas import REAL, SYNTHETIC

_NEEDED = ("real_or_synthetic", "is_near_duplicate", "near_duplicate_id")


def score_synthetic_data_quality(
    df: pd.DataFrame,
    synthetic_class_names: Sequence[str] | None = None,
    *,
    severity_column: str | None = None,
) -> dict[str, float]:
    """Return fidelity, representativeness, diversity and freshness, each in 0..1 (higher is better).

    Args:
        df: one row an example, for instance one partition of ``scores/``: ``real_or_synthetic``,
            ``is_near_duplicate``, ``near_duplicate_id`` and ``label_quality_score``.
        synthetic_class_names: what synthetic and real rows are called in ``real_or_synthetic``, in this order.
        severity_column: a column of label issue *severity* (1 - q, high means issue) to use where the frame has no
            ``label_quality_score``. A column called ``label_issue_score`` is never taken unasked: its meaning
            flipped in 2023.

    Raises:
        InputError: a column is missing, or a class is empty or unknown.
    """
    missing = [name for name in _NEEDED if name not in df]
    if missing:
        raise InputError(f"the frame lacks the columns {', '.join(missing)}")
    synthetic_name, real_name = synthetic_class_names or (SYNTHETIC, REAL)
    kind = df["real_or_synthetic"].astype(str)
    unknown = sorted(set(kind) - {synthetic_name, real_name})
    if unknown:
        raise InputError(f"real_or_synthetic holds {unknown[:3]}; name the classes with synthetic_class_names")
    is_synthetic = kind == synthetic_name
    if is_synthetic.all() or not is_synthetic.any():
        raise InputError("the frame needs both real and synthetic rows")
    q = _quality(df, severity_column)
    member = df["is_near_duplicate"].astype(bool)
    with_real = set(df.loc[member & ~is_synthetic, "near_duplicate_id"])
    mixed = df["near_duplicate_id"].isin(with_real)
    count = int(is_synthetic.sum())
    return {
        "fidelity": 1.0 - float(q[is_synthetic].mean()),
        "representativeness": 1.0 - float(q[~is_synthetic].mean()),
        "diversity": 1.0 - int((member & is_synthetic & ~mixed).sum()) / count,
        "freshness": 1.0 - int((member & is_synthetic & mixed).sum()) / count,
    }


def _quality(df: pd.DataFrame, severity_column: str | None) -> "pd.Series[float]":
    if severity_column is not None:
        if severity_column not in df:
            raise InputError(f"the frame lacks the column {severity_column}")
        return 1.0 - df[severity_column].astype(float)
    if "label_quality_score" not in df:
        raise InputError(
            "the frame lacks the column label_quality_score; if it holds severities (1 - quality), name their "
            "column with severity_column"
        )
    return df["label_quality_score"].astype(float)
