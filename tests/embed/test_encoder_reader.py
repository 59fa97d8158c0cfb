"""What is known of a run's vectors before any of them is read: dimensions, scaling, and how they are compared."""

import pytest

from synthscale.config import Config
from synthscale.embed.encoder_reader import encoder_spec, spec_of
from synthscale.embed.encoders.descriptor import DescriptorEncoder
from synthscale.tables.layout import VectorLayout, VectorSource

EMBEDDING = VectorSource(["v.parquet"], [10], ["embedding"], 6)
COLUMNS = VectorSource(["v.parquet"], [10], ["width", "height", "age"], 3)


def layout_of(source: VectorSource | None, **neighbors: str) -> VectorLayout:
    return encoder_spec(Config(neighbors=neighbors), source).layout


def test_embeddings_are_compared_by_direction_and_columns_by_scaled_differences() -> None:
    embedding, columns = layout_of(EMBEDDING), layout_of(COLUMNS)
    assert (embedding.dimensions, embedding.search, embedding.classify) == (6, (0, 6), (0, 6))
    assert (columns.dimensions, columns.search, columns.classify) == (3, (0, 3), (0, 3))
    assert (embedding.scaled, embedding.columns, embedding.metric("auto")) == (False, False, "cosine")
    assert (columns.scaled, columns.columns, columns.metric("auto")) == (True, True, "euclidean")


def test_filters_have_dimensions_of_different_units_and_are_compared_by_direction() -> None:
    encoder = DescriptorEncoder()
    layout = spec_of(encoder).layout
    assert layout == layout_of(None)
    assert (layout.search, layout.classify) == (encoder.search, encoder.classify)
    assert (layout.scaled, layout.columns, layout.metric("auto")) == (True, False, "cosine")


@pytest.mark.parametrize(
    ("source", "settings", "directed"),
    [
        (COLUMNS, {}, None),
        (COLUMNS, {"metric": "euclidean"}, None),
        (COLUMNS, {"metric": "cosine"}, (0, 3)),
        # Mode datalab compares columns by direction too.
        (COLUMNS, {"mode": "datalab"}, (0, 3)),
        (EMBEDDING, {}, (0, 6)),
        (EMBEDDING, {"mode": "datalab"}, (0, 6)),
        (EMBEDDING, {"metric": "euclidean"}, None),
    ],
)
def test_vectors_need_a_direction_only_where_directions_are_compared(
    source: VectorSource, settings: dict[str, str], directed: tuple[int, int] | None
) -> None:
    config = Config(neighbors=settings)
    spec = encoder_spec(config, source)
    assert spec.layout.directed(config.neighbors.metric_in_force) == directed
    # Rows of zeros are failures of embed or are not, so it has to run again where that changes.
    is_same = directed == encoder_spec(Config(), source).layout.directed("auto")
    assert (spec.fingerprint == encoder_spec(Config(), source).fingerprint) == is_same
