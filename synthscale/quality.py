"""Compute the four quality metrics from a data frame of per-image scores, as in Cleanlab Studio's tutorial."""

from collections.abc import Sequence

import pandas as pd

from synthscale.errors import InputError
from synthscale.tables.schemas import REAL, SYNTHETIC

_REQUIRED_COLUMNS = ("real_or_synthetic", "is_near_duplicate", "near_duplicate_id")


def score_synthetic_data_quality(
    df: pd.DataFrame,
    synthetic_class_names: Sequence[str] | None = None,
    *,
    severity_column: str | None = None,
) -> dict[str, float]:
    """Return fidelity, representativeness, diversity and freshness, each in 0..1 (higher is better).

    Args:
        df: one row per image, for instance one partition of ``scores/``, with the columns ``real_or_synthetic``,
            ``is_near_duplicate``, ``near_duplicate_id`` and ``label_quality_score``.
        synthetic_class_names: the values of ``real_or_synthetic`` for synthetic and for real rows, in this order;
            by default ``synthetic`` and ``real``.
        severity_column: column of label issue severities, 1 - label quality (0..1, high values are issues), to
            use instead of ``label_quality_score``. A column ``label_issue_score`` is used only if it is named
            here, because the meaning of that name was reversed in 2023.

    Returns:
        With q the label quality, the predicted probability of a row's own class: ``fidelity`` and
        ``representativeness`` are 1 - the mean q of the synthetic and of the real rows. ``diversity`` is 1 - the
        fraction of synthetic rows in near-duplicate groups without a real row, ``freshness`` 1 - the fraction in
        groups with a real row.

    Raises:
        InputError: a column is missing, a class has no rows, or ``real_or_synthetic`` has another value.
    """
    missing = [name for name in _REQUIRED_COLUMNS if name not in df]
    if missing:
        raise InputError(f"the data frame has no column {', '.join(missing)}")
    synthetic_name, real_name = synthetic_class_names or (SYNTHETIC, REAL)
    kind = df["real_or_synthetic"].astype(str)
    unknown = sorted(set(kind) - {synthetic_name, real_name})
    if unknown:
        raise InputError(
            f"real_or_synthetic has unknown values {unknown[:3]}; name the two classes with synthetic_class_names"
        )
    is_synthetic = kind == synthetic_name
    if is_synthetic.all() or not is_synthetic.any():
        raise InputError("the data frame needs both real and synthetic rows")
    q = _label_quality(df, severity_column)
    is_duplicate = df["is_near_duplicate"].astype(bool)
    groups_with_real = set(df.loc[is_duplicate & ~is_synthetic, "near_duplicate_id"])
    in_mixed_group = df["near_duplicate_id"].isin(groups_with_real)
    count = int(is_synthetic.sum())
    return {
        "fidelity": 1.0 - float(q[is_synthetic].mean()),
        "representativeness": 1.0 - float(q[~is_synthetic].mean()),
        "diversity": 1.0 - int((is_duplicate & is_synthetic & ~in_mixed_group).sum()) / count,
        "freshness": 1.0 - int((is_duplicate & is_synthetic & in_mixed_group).sum()) / count,
    }


def _label_quality(df: pd.DataFrame, severity_column: str | None) -> "pd.Series[float]":
    if severity_column is not None:
        if severity_column not in df:
            raise InputError(f"the data frame has no column {severity_column}")
        return 1.0 - df[severity_column].astype(float)
    if "label_quality_score" not in df:
        raise InputError(
            "the data frame has no column label_quality_score; if another column has severities (1 - quality), "
            "name it with severity_column"
        )
    return df["label_quality_score"].astype(float)
