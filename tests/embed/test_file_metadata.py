import io
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression

from synthscale.embed.file_metadata import COLUMNS, DIMENSIONS, bytes_per_pixel, metadata_vectors
from synthscale.embed.images import decode
from synthscale.tables.image_formats import FORMATS
from synthscale.tables.schemas import embeddings_schema

SCHEMA = pa.schema([embeddings_schema(4).field(name) for name in COLUMNS])
PNG = {"width_px": 64, "height_px": 32, "format": "PNG", "mode": "RGB", "bytes": 1024, "jpeg_quality": None}
NUMBERS = 5
"""Log width, log height, log aspect ratio, JPEG quality and whether it is known, in this order, come last."""


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
    """The columns of embeddings/ that the embed stage fills from a file."""
    return {name: getattr(decode(data, 8)[1], name) for name in COLUMNS}


def test_size_and_aspect_ratio_are_logarithms_and_the_jpeg_quality_is_last() -> None:
    found = vectors_of(PNG, PNG | {"format": "JPEG", "jpeg_quality": 83})
    expected = [math.log(64), math.log(32), math.log(2), 0, 0]
    np.testing.assert_allclose(found[0, -NUMBERS:], expected, rtol=1e-6)
    np.testing.assert_allclose(found[1, -NUMBERS:], [*expected[:3], 83, 1], rtol=1e-6)


@pytest.mark.parametrize("quality", [1, 30, 100])
def test_every_jpeg_quality_counts_as_known(quality: int) -> None:
    assert vectors_of(PNG | {"format": "JPEG", "jpeg_quality": quality})[0, -2:].tolist() == [quality, 1]


modes = st.sampled_from(["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "LA"])


@given(st.lists(st.tuples(st.sampled_from(FORMATS), modes), min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_every_known_format_and_mode_has_an_indicator_of_its_own(kinds: list[tuple[str, str]]) -> None:
    found = vectors_of(*(PNG | {"format": name, "mode": mode} for name, mode in kinds))
    formats, of_mode = np.split(found[:, :-NUMBERS], [len(FORMATS)], axis=1)
    for part, own in ((formats, [k[0] for k in kinds]), (of_mode, [k[1] for k in kinds])):
        assert set(np.unique(part)) <= {0, 1}
        assert (part.sum(1) == 1).all()
        column = part.argmax(1)
        for i in range(len(own)):
            assert [c == column[i] for c in column] == [name == own[i] for name in own]


def test_unknown_formats_and_modes_have_no_indicator_and_no_fault() -> None:
    strange, plain = vectors_of(PNG | {"format": "JPEG2000", "mode": "HDR;99"}, PNG)
    assert (strange[:-NUMBERS] == 0).all()
    np.testing.assert_array_equal(strange[-NUMBERS:], plain[-NUMBERS:])


@pytest.mark.parametrize("name", COLUMNS)
def test_a_fact_that_is_missing_in_one_row_leaves_finite_numbers_and_the_other_rows_alone(name: str) -> None:
    found = vectors_of(PNG | {name: None}, PNG)
    np.testing.assert_array_equal(found[1], vectors_of(PNG)[0])


@pytest.mark.parametrize("name", [name for name in COLUMNS if name != "format"])
def test_a_fact_that_is_missing_in_every_row_leaves_finite_numbers(name: str) -> None:
    vectors_of(PNG | {name: None}, PNG | {name: None})


def test_vectors_without_files_have_no_facts() -> None:
    nothing = table_of(*[dict.fromkeys(COLUMNS)] * 3)
    assert metadata_vectors(nothing) is None
    assert np.isnan(bytes_per_pixel(nothing)).all()


def test_no_rows_have_no_vectors() -> None:
    empty = SCHEMA.empty_table()
    found = metadata_vectors(empty)
    assert found is None or found.shape == (0, DIMENSIONS)
    assert bytes_per_pixel(empty).shape == (0,)


def test_facts_do_not_depend_on_how_the_table_is_cut() -> None:
    rows = [PNG | {"width_px": 10 + i, "jpeg_quality": i or None, "bytes": i} for i in range(6)]
    whole, pieces = (
        table_of(*rows),
        pa.concat_tables([table_of(*rows[:1]), table_of(*rows[1:4]), table_of(*rows[4:])]),
    )
    np.testing.assert_array_equal(metadata_vectors(pieces), metadata_vectors(whole))
    np.testing.assert_array_equal(bytes_per_pixel(pieces), bytes_per_pixel(whole))


def test_bytes_per_pixel_is_the_files_size_over_its_area_and_unknown_where_either_is() -> None:
    rows = [PNG, PNG | {"bytes": 3}, PNG | {"bytes": None}, PNG | {"width_px": None}, PNG | {"height_px": None}]
    np.testing.assert_allclose(
        bytes_per_pixel(table_of(*rows)), [1024 / 2048, 3 / 2048, np.nan, np.nan, np.nan], rtol=1e-12
    )


def test_bytes_per_pixel_of_a_huge_file_neither_overflows_nor_rounds() -> None:
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
def test_real_files_that_differ_in_a_fact_have_different_vectors(one: bytes, two: bytes) -> None:
    first, second = vectors_of(of_file(one), of_file(two))
    assert (first != second).any()


def test_the_same_picture_of_another_content_has_the_same_facts() -> None:
    grey = io.BytesIO()
    Image.new("RGB", (40, 30), "grey").save(grey, "PNG")
    noisy, flat = vectors_of(of_file(encoded("PNG")), of_file(grey.getvalue()))
    np.testing.assert_array_equal(noisy, flat)
    sizes = bytes_per_pixel(table_of(of_file(encoded("PNG")), of_file(grey.getvalue())))
    # Noise does not compress; this is why the size is a figure of its own.
    assert sizes[0] > 10 * sizes[1]
    assert sizes[0] == len(encoded("PNG")) / 1200


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_real_files_vector_says_what_it_was_saved_as(kind: str, mode: str) -> None:
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


def test_a_linear_classifier_reads_the_format_off_the_vectors() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 60, (40, 2)).tolist()
    files = [encoded("JPEG" if i < 20 else "PNG", size=tuple(size)) for i, size in enumerate(sizes)]
    x, y = vectors_of(*map(of_file, files)), np.arange(40) < 20
    assert LogisticRegression(max_iter=10_000).fit(x[::2], y[::2]).score(x[1::2], y[1::2]) == 1
