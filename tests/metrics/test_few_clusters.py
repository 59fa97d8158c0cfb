"""Generators that repeat a few images: no interval, no p-value, and folds of single images, with a warning."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from synthscale import parse_config, score_features
from synthscale.metric_names import CORE_METRICS, FAMILIES
from synthscale.statistics.estimates import TOO_FEW_INDEPENDENT

D = 6
NAMES = ("few", "enough", "larger")


def repeated(seed: int, images: int, times: int) -> NDArray[np.float64]:
    """Return rows of ``images`` images, each ``times`` times with a little noise."""
    rng = np.random.default_rng(seed)
    return np.repeat(rng.normal(size=(images, D)), times, axis=0) + 1e-4 * rng.normal(size=(images * times, D))


def scored(real: NDArray[np.float64], **generators: NDArray[np.float64]) -> dict[str, Any]:
    x = np.concatenate([real, *generators.values()])
    kinds = ["real"] * len(real) + ["synthetic"] * (len(x) - len(real))
    names = [None] * len(real) + [name for name, own in generators.items() for _ in own]
    labels = [("cat", "dog")[i % 2] for i in range(len(x))]
    config = parse_config({"metrics": {"families": "all", "frechet_infinity": True}})
    return score_features(x, kinds, generator=names, labels=labels, config=config).metrics


@pytest.fixture(scope="module")
def blocks() -> dict[str, Any]:
    return scored(
        repeated(0, 80, 1),
        few=repeated(1, 9, 8),
        enough=repeated(2, 12, 6),
        larger=repeated(3, 9, 20),
    )


def metrics_of(block: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every metric of a nested block with its path."""
    if isinstance(block, dict) and {"value", "low", "high"} <= block.keys():
        yield path, block
    elif isinstance(block, dict):
        for name, part in block.items():
            yield from metrics_of(part, f"{path}/{name}")


@pytest.mark.parametrize("name", ["few", "larger"])
def test_below_ten_clusters_no_metric_of_the_block_has_an_interval(blocks: dict[str, Any], name: str) -> None:
    own = {part: blocks[name][part] for part in ("metrics", "by_label", "classifier", "families")}
    # Fields of the input are independent, however the images resemble one another.
    own["families"] = {family: part for family, part in own["families"].items() if family != "completeness"}
    if name == "larger":
        own["matched"] = blocks[name]["matched"]
        assert own["matched"]["size"] == 72
    found = dict(metrics_of(own))
    assert {f"/metrics/{metric}" for metric in CORE_METRICS} <= found.keys()
    assert {f"/by_label/cat/{metric}" for metric in CORE_METRICS} <= found.keys()
    assert {f"/classifier/{metric}" for metric in ("auc", "accuracy", "log_loss")} <= found.keys()
    others = {family: names for family, names in FAMILIES.items() if family != "completeness"}
    assert {f"/families/{family}/{metric}" for family, names in others.items() for metric in names} <= found.keys()
    for path, metric in found.items():
        assert (metric["low"], metric["high"]) == (None, None), path
        # Metrics that never have an interval say why; all others have this reason.
        if metric["value"] is not None and "no interval" not in metric["reason"]:
            assert metric["reason"] == TOO_FEW_INDEPENDENT, path
    for path in ("metrics/diversity", "metrics/fidelity", "classifier/auc", "families/manifold/recall"):
        assert found[f"/{path}"]["value"] is not None
        assert found[f"/{path}"]["reason"] == TOO_FEW_INDEPENDENT
    assert blocks[name]["classifier"]["p_value"] == {"value": None, "reason": TOO_FEW_INDEPENDENT}


def test_from_ten_clusters_on_they_have_intervals(blocks: dict[str, Any]) -> None:
    block = blocks["enough"]
    for metric in (
        *block["metrics"].values(),
        block["classifier"]["auc"],
        block["families"]["manifold"]["recall"],
    ):
        assert metric["low"] < metric["high"]
    assert block["classifier"]["p_value"]["value"] is not None
    # Of twelve images six are cats on average, too few for the metrics of that slice's synthetic rows.
    assert block["by_label"]["cat"]["coverage"]["low"] is not None
    assert block["by_label"]["cat"]["precision"]["reason"] == TOO_FEW_INDEPENDENT


def test_several_components_are_kept_together_and_there_is_no_warning_of_folds(blocks: dict[str, Any]) -> None:
    assert all(
        "folds were assigned image by image" not in text for name in NAMES for text in blocks[name]["warnings"]
    )


@pytest.mark.parametrize("real", [80, 3])
def test_one_component_gets_folds_of_single_rows_and_a_warning(real: int) -> None:
    block = scored(repeated(0, real, 1), collapsed=repeated(4, 1, 60))["collapsed"]
    assert block["classifier"]["folds"] == 5
    for name in ("fidelity", "representativeness"):
        assert 0 <= block["metrics"][name]["value"] <= 1
    assert block["metrics"]["diversity"]["value"] == 0
    assert block["metrics"]["unique_share"]["value"] == pytest.approx(1 / 60)
    (warning,) = [text for text in block["warnings"] if "folds were assigned image by image" in text]
    assert "folds" in warning
    assert "too confident" in warning
    assert not [text for text in block["warnings"] if "cross-validated" in text]


def test_one_image_cannot_be_cross_validated_and_is_not_said_to_be_near_others() -> None:
    block = scored(repeated(0, 20, 1), single=repeated(5, 1, 1))["single"]
    assert block["classifier"]["auc"]["value"] is None
    assert [text for text in block["warnings"] if "cross-validated" in text]
    assert not [text for text in block["warnings"] if "folds were assigned image by image" in text]
