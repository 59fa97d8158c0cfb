import io
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression

from synthscale.embed.file_metadata import COLUMNS, DIMENSIONS, bytes_per_pixel, metadata_vectors
from synthscale.embed.images import decode
from synthscale.tables.image_formats import FORMATS
from synthscale.tables.schemas import embeddings_schema
from tests.examples import examples

SCHEMA = pa.schema([embeddings_schema(4).field(name) for name in COLUMNS])
PNG = {"width_px": 64, "height_px": 32, "format": "PNG", "mode": "RGB", "bytes": 1024, "jpeg_quality": None}
NUMBERS = 5
"""The last features: log width, log height, log aspect ratio, JPEG quality, and whether it is known."""


def table_of(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), SCHEMA)


def vectors_of(*rows: dict[str, Any]) -> NDArray[np.float32]:
    found = metadata_vectors(table_of(*rows))
    assert found is not None
    assert found.shape == (len(rows), DIMENSIONS)
    assert np.isfinite(found).all()
    return found


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).convert(mode)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def of_file(data: bytes) -> dict[str, Any]:
    """Return the columns of ``embeddings/`` that the embed stage fills from a file."""
    return {name: getattr(decode(data, 8)[1], name) for name in COLUMNS}


def test_size_and_aspect_ratio_are_logarithms_and_the_jpeg_quality_is_last() -> None:
    found = vectors_of(PNG, PNG | {"format": "JPEG", "jpeg_quality": 83})
    expected = [math.log(64), math.log(32), math.log(2), 0, 0]
    np.testing.assert_allclose(found[0, -NUMBERS:], expected, rtol=1e-6)
    np.testing.assert_allclose(found[1, -NUMBERS:], [*expected[:3], 83, 1], rtol=1e-6)


@pytest.mark.parametrize("quality", [1, 30, 100])
def test_jpeg_quality_is_marked_as_known(quality: int) -> None:
    assert vectors_of(PNG | {"format": "JPEG", "jpeg_quality": quality})[0, -2:].tolist() == [quality, 1]


modes = st.sampled_from(["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "LA"])


@given(st.lists(st.tuples(st.sampled_from(FORMATS), modes), min_size=1, max_size=20))
@examples(25)
def test_formats_and_modes_are_one_hot_encoded(kinds: list[tuple[str, str]]) -> None:
    found = vectors_of(*(PNG | {"format": name, "mode": mode} for name, mode in kinds))
    format_part, mode_part = np.split(found[:, :-NUMBERS], [len(FORMATS)], axis=1)
    for part, names in ((format_part, [k[0] for k in kinds]), (mode_part, [k[1] for k in kinds])):
        assert set(np.unique(part)) <= {0, 1}
        assert (part.sum(1) == 1).all()
        column = part.argmax(1)
        for i in range(len(names)):
            assert [c == column[i] for c in column] == [name == names[i] for name in names]


def test_unknown_formats_and_modes_are_all_zeros() -> None:
    strange, plain = vectors_of(PNG | {"format": "JPEG2000", "mode": "HDR;99"}, PNG)
    assert (strange[:-NUMBERS] == 0).all()
    np.testing.assert_array_equal(strange[-NUMBERS:], plain[-NUMBERS:])


@pytest.mark.parametrize("name", COLUMNS)
def test_a_value_missing_in_one_row_gives_finite_features_and_does_not_change_other_rows(name: str) -> None:
    found = vectors_of(PNG | {name: None}, PNG)
    np.testing.assert_array_equal(found[1], vectors_of(PNG)[0])


@pytest.mark.parametrize("name", [name for name in COLUMNS if name != "format"])
def test_a_column_without_values_gives_finite_features(name: str) -> None:
    vectors_of(PNG | {name: None}, PNG | {name: None})


def test_rows_without_files_have_no_metadata() -> None:
    without_files = table_of(*[dict.fromkeys(COLUMNS)] * 3)
    assert metadata_vectors(without_files) is None
    assert np.isnan(bytes_per_pixel(without_files)).all()


def test_an_empty_table_has_no_vectors() -> None:
    empty = SCHEMA.empty_table()
    found = metadata_vectors(empty)
    assert found is None or found.shape == (0, DIMENSIONS)
    assert bytes_per_pixel(empty).shape == (0,)


def test_vectors_do_not_depend_on_the_chunks_of_the_table() -> None:
    rows = [PNG | {"width_px": 10 + i, "jpeg_quality": i or None, "bytes": i} for i in range(6)]
    whole, pieces = (
        table_of(*rows),
        pa.concat_tables([table_of(*rows[:1]), table_of(*rows[1:4]), table_of(*rows[4:])]),
    )
    np.testing.assert_array_equal(metadata_vectors(pieces), metadata_vectors(whole))
    np.testing.assert_array_equal(bytes_per_pixel(pieces), bytes_per_pixel(whole))


def test_bytes_per_pixel_is_size_over_area_and_nan_if_either_is_unknown() -> None:
    rows = [PNG, PNG | {"bytes": 3}, PNG | {"bytes": None}, PNG | {"width_px": None}, PNG | {"height_px": None}]
    np.testing.assert_allclose(
        bytes_per_pixel(table_of(*rows)), [1024 / 2048, 3 / 2048, np.nan, np.nan, np.nan], rtol=1e-12
    )


def test_bytes_per_pixel_of_a_huge_file_is_exact() -> None:
    found = bytes_per_pixel(table_of(PNG | {"width_px": 2**31 - 1, "height_px": 2**31 - 1, "bytes": 2**50}))
    np.testing.assert_allclose(found, [2**50 / (2**31 - 1) ** 2], rtol=1e-12)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (encoded("PNG"), encoded("JPEG")),
        (encoded("JPEG", quality=50), encoded("JPEG", quality=90)),
        (encoded("PNG"), encoded("PNG", size=(41, 30))),
        (encoded("PNG"), encoded("PNG", size=(30, 40))),
        (encoded("PNG"), encoded("PNG", mode="L")),
        (encoded("JPEG", mode="CMYK"), encoded("JPEG", mode="L")),
        (encoded("GIF", mode="P"), encoded("PNG", mode="P")),
        (encoded("BMP"), encoded("TIFF")),
    ],
    ids=["format", "quality", "width", "turned", "mode", "jpeg mode", "palette", "bmp"],
)
def test_files_that_differ_in_one_property_have_different_vectors(one: bytes, two: bytes) -> None:
    first, second = vectors_of(of_file(one), of_file(two))
    assert (first != second).any()


def test_vectors_do_not_depend_on_the_image_content_but_bytes_per_pixel_does() -> None:
    grey = io.BytesIO()
    Image.new("RGB", (40, 30), "grey").save(grey, "PNG")
    noisy, flat = vectors_of(of_file(encoded("PNG")), of_file(grey.getvalue()))
    np.testing.assert_array_equal(noisy, flat)
    sizes = bytes_per_pixel(table_of(of_file(encoded("PNG")), of_file(grey.getvalue())))
    # Noise does not compress, so the file size depends on the content. The classifier therefore does not see it.
    assert sizes[0] > 10 * sizes[1]
    assert sizes[0] == len(encoded("PNG")) / 1200


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_vector_of_a_file_has_the_properties_it_was_saved_with(kind: str, mode: str) -> None:
    if (kind, mode) == ("PNG", "CMYK"):
        mode = "RGBA"
    found = vectors_of(of_file(encoded(kind, mode, size=(50, 20), **({"quality": 77} if kind == "JPEG" else {}))))[
        0
    ]
    by_hand = vectors_of(
        PNG
        | {"format": kind, "mode": mode, "width_px": 50, "height_px": 20}
        | ({"jpeg_quality": 77} if kind == "JPEG" else {})
    )[0]
    np.testing.assert_allclose(found[:-2], by_hand[:-2])
    assert found[-2] == pytest.approx(by_hand[-2], abs=2)
    assert found[-1] == (kind == "JPEG")


def test_a_linear_classifier_separates_file_formats() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 60, (40, 2)).tolist()
    files = [encoded("JPEG" if i < 20 else "PNG", size=tuple(size)) for i, size in enumerate(sizes)]
    x, y = vectors_of(*map(of_file, files)), np.arange(40) < 20
    assert LogisticRegression(max_iter=10_000).fit(x[::2], y[::2]).score(x[1::2], y[1::2]) == 1
