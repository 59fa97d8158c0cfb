"""Decoding of every format and mode to RGB, the reason of every fault, file metadata, and thumbnails."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from synthscale.embed.images import decode, thumbnail_jpeg
from synthscale.tables.faults import Reason, RowFault

ORIENTATION = 0x0112


def encoded(image, format="PNG", **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def scene(width=48, height=48, seed=0):
    """Make a smooth image with three different channels and no symmetry."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[0:height, 0:width] / max(width, height)
    planes = [
        128 + 100 * np.sin(2 * np.pi * (rng.uniform(0.3, 1.2) * across + rng.uniform(0.3, 1.2) * down))
        for _ in range(3)
    ]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def pixels_of(data, size=48):
    return decode(data, size)[0].astype(int)


def fault_of(data):
    with pytest.raises(RowFault) as caught:
        decode(data, 32)
    assert caught.value.detail
    return caught.value.reason


# --- formats ---


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_the_exact_pixels(format):
    image = scene()
    pixels, metadata = decode(encoded(image, format), 48)
    np.testing.assert_array_equal(pixels, np.asarray(image))
    assert (pixels.dtype, pixels.shape) == (np.uint8, (48, 48, 3))
    assert metadata.format == format


@pytest.mark.parametrize(("format", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_lossy_formats_give_nearly_the_pixels(format, options):
    image = scene()
    pixels, metadata = decode(encoded(image, format, **options), 48)
    assert np.abs(pixels.astype(int) - np.asarray(image).astype(int)).mean() < 3
    assert metadata.format == format


def test_lossless_webp_gives_the_exact_pixels():
    np.testing.assert_array_equal(pixels_of(encoded(scene(), "WEBP", lossless=True)), np.asarray(scene()))


def test_an_animated_gif_gives_its_first_frame():
    red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    data = encoded(red, "GIF", save_all=True, append_images=[blue])
    assert (pixels_of(data, 32) == [255, 0, 0]).all()


def test_images_are_resized_to_a_square_and_not_cropped():
    image = Image.new("RGB", (80, 20), "black")
    image.paste((255, 255, 255), (40, 0, 80, 20))
    pixels = pixels_of(encoded(image), 40)
    assert pixels[:, :17].max() < 20
    assert pixels[:, 23:].min() > 235


# --- orientation ---


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_270),
        (8, Image.Transpose.ROTATE_90),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
    ],
)
def test_exif_orientation_is_applied(orientation, turn):
    image = scene(64, 40)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    expected = encoded(image.transpose(turn))
    np.testing.assert_array_equal(pixels_of(encoded(image, exif=exif)), pixels_of(expected))


# --- modes ---


def test_palette_images_are_converted_by_their_palette():
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 0, 200, 30, 60])
    assert (pixels_of(encoded(image), 32) == [200, 30, 60]).all()


def test_grey_images_have_three_equal_channels():
    ramp = np.tile(np.arange(0, 192, 4, dtype=np.uint8), (48, 1))
    pixels = pixels_of(encoded(Image.fromarray(ramp)))
    np.testing.assert_array_equal(pixels, np.repeat(ramp[..., None], 3, axis=2))


def test_one_bit_images_are_black_and_white():
    image = Image.new("1", (32, 32), 0)
    image.paste(1, (0, 0, 16, 32))
    pixels = pixels_of(encoded(image), 32)
    assert (pixels[:, :16] == 255).all()
    assert (pixels[:, 16:] == 0).all()


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_images_become_their_rgb_colours(format):
    # Full magenta and yellow without cyan and black are red.
    image = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    pixels = pixels_of(encoded(image, format), 32)
    assert np.abs(pixels - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped_to_white(format):
    ramp = np.tile(np.linspace(0, 65535, 48).astype(np.uint16), (48, 1))
    pixels = pixels_of(encoded(Image.fromarray(ramp), format))
    expected = np.rint(ramp / 257)
    assert np.abs(pixels - expected[..., None]).max() <= 1


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_float_grey_keeps_its_ramp(top):
    ramp = np.tile(np.linspace(0, top, 48).astype(np.float32), (48, 1))
    pixels = pixels_of(encoded(Image.fromarray(ramp), "TIFF"))
    assert np.abs(pixels - (ramp / top * 255)[..., None]).max() <= 1


def test_float_grey_with_nan_does_not_fail():
    values = np.full((32, 32), 0.5, np.float32)
    values[0, 0] = np.nan
    pixels = pixels_of(encoded(Image.fromarray(values), "TIFF"), 32)
    assert np.abs(pixels[8:, 8:] - 128).max() <= 1


@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_alpha_is_composited_over_white(alpha):
    pixels = pixels_of(encoded(Image.new("RGBA", (32, 32), (200, 0, 40, alpha))), 32)
    expected = np.array([200, 0, 40]) * alpha / 255 + 255 * (1 - alpha / 255)
    assert np.abs(pixels - expected).max() <= 1


def test_grey_with_alpha_is_composited_over_white():
    pixels = pixels_of(encoded(Image.new("LA", (32, 32), (0, 64))), 32)
    assert np.abs(pixels - 255 * (1 - 64 / 255)).max() <= 1


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_transparent_palette_entries_are_white(format):
    image = Image.new("P", (32, 32), 0)
    image.putpalette([10, 20, 30, 200, 30, 60])
    image.paste(1, (16, 0, 32, 32))
    pixels = pixels_of(encoded(image, format, transparency=0), 32)
    assert (pixels[:, :16] == 255).all()
    assert (pixels[:, 16:] == [200, 30, 60]).all()


def test_a_transparent_colour_of_an_rgb_image_is_white():
    image = Image.new("RGB", (32, 32), (10, 20, 30))
    image.paste((200, 30, 60), (16, 0, 32, 32))
    pixels = pixels_of(encoded(image, transparency=(10, 20, 30)), 32)
    assert (pixels[:, :16] == 255).all()
    assert (pixels[:, 16:] == [200, 30, 60]).all()


# --- faults ---


def png_header(width, height):
    """Make a PNG file whose header has the given size, with pixel data of a few bytes only."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def bmp_header(width, height):
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info + b"\0" * 64


def test_a_file_without_bytes_has_the_reason_empty():
    assert fault_of(b"") is Reason.EMPTY


@pytest.mark.parametrize(
    "data",
    [b"hello, this is no picture\n" * 20, b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"],
)
def test_text_and_svg_have_the_reason_unsupported(data):
    assert fault_of(data) is Reason.UNSUPPORTED


def test_a_format_that_only_pillow_supports_has_the_reason_unsupported():
    assert fault_of(encoded(scene(32, 32), "ICO")) is Reason.UNSUPPORTED


def noisy(side=128):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_file_that_ends_early_has_the_reason_truncated(format, kept):
    data = encoded(noisy(), format)
    if format == "TIFF":  # without compression the image directory is at the front of the file
        data = encoded(noisy(), format, compression="raw")
    assert fault_of(data[: int(len(data) * kept)]) is Reason.TRUNCATED


@pytest.mark.parametrize("format", ["WEBP", "GIF"])
def test_webp_and_gif_files_that_end_early_are_faults(format):
    data = encoded(noisy(), format)
    assert fault_of(data[: len(data) // 2]) in {Reason.TRUNCATED, Reason.CORRUPT, Reason.UNSUPPORTED}


def test_damaged_compressed_data_has_the_reason_corrupt():
    data = bytearray(encoded(noisy()))
    start = data.index(b"IDAT") + 4
    data[start : start + 40] = b"\xff" * 40
    assert fault_of(bytes(data)) is Reason.CORRUPT


def test_a_png_with_a_damaged_header_is_a_fault():
    data = bytearray(encoded(scene()))
    data[16:24] = b"\0" * 8  # width and height of IHDR
    assert fault_of(bytes(data)) in {Reason.CORRUPT, Reason.UNSUPPORTED}


def test_a_jpeg_with_a_damaged_header_is_a_fault():
    data = encoded(scene(), "JPEG")
    assert fault_of(data[:4] + b"\0" * 60) in {Reason.CORRUPT, Reason.UNSUPPORTED, Reason.TRUNCATED}


@pytest.mark.parametrize("data", [png_header(20000, 20000), bmp_header(20000, 20000)], ids=["png", "bmp"])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(data):
    assert fault_of(data) is Reason.TOO_LARGE


def test_a_decompression_bomb_below_pillows_limit_is_refused():
    # Pillow warns above 89 million pixels and raises above 179 million.
    assert fault_of(png_header(8500, 8500)) is Reason.TOO_LARGE


def test_thumbnails_refuse_a_decompression_bomb():
    with pytest.raises(RowFault) as caught:
        thumbnail_jpeg(png_header(20000, 20000), 64)
    assert caught.value.reason is Reason.TOO_LARGE


def test_faults_survive_pickling():
    import pickle

    again = pickle.loads(pickle.dumps(RowFault(Reason.CORRUPT, "bad")))
    assert (again.reason, again.detail) == (Reason.CORRUPT, "bad")


# --- large JPEGs ---


def test_a_reduced_decode_of_a_large_jpeg_looks_like_the_full_decode():
    image = scene(1600, 1200, seed=3)
    data = encoded(image, "JPEG", quality=90)
    with Image.open(io.BytesIO(data)) as full:
        expected = np.asarray(full.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(pixels_of(data, 64) - expected)
    assert difference.mean() < 0.5
    assert difference.max() <= 4


@pytest.mark.parametrize("side", [130, 260, 520, 1040])
def test_a_reduced_decode_of_a_detailed_jpeg_stays_near_the_full_decode(side):
    """At 520 px, the mean difference is 1.4 grey levels with a decode at 1/4, and 6 at 1/8, close to the target.

    Chroma subsampling is off: enlarging the chroma in the full decode makes a difference itself (2.7 at 260 px).
    """
    detailed = noisy(48).resize((side, side), Image.Resampling.BICUBIC)
    data = encoded(detailed, "JPEG", quality=90, subsampling=0)
    with Image.open(io.BytesIO(data)) as full:
        expected = np.asarray(full.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(pixels_of(data, 64) - expected).mean() < 2


# --- file metadata ---


def test_metadata_have_size_format_mode_and_bytes_of_the_file():
    data = encoded(scene(60, 40), "PNG")
    metadata = decode(data, 16)[1]
    assert (metadata.width_px, metadata.height_px, metadata.format, metadata.mode) == (60, 40, "PNG", "RGB")
    assert metadata.bytes == len(data)
    assert metadata.jpeg_quality is None


def test_metadata_of_a_large_jpeg_have_the_size_in_the_file_and_not_the_reduced_one():
    metadata = decode(encoded(scene(1600, 1200), "JPEG"), 32)[1]
    assert (metadata.width_px, metadata.height_px, metadata.mode) == (1600, 1200, "RGB")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_metadata_have_the_mode_of_the_file(mode):
    assert decode(encoded(scene().convert(mode)), 16)[1].mode == mode


@pytest.mark.parametrize("quality", [50, 60, 75, 80, 85, 90, 95])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_quality_is_estimated_within_2(quality, mode):
    metadata = decode(encoded(scene().convert(mode), "JPEG", quality=quality), 16)[1]
    assert metadata.jpeg_quality == pytest.approx(quality, abs=2)


def test_content_hashes_are_equal_if_and_only_if_the_bytes_are():
    data = encoded(scene())
    other_bytes_same_pixels = encoded(scene(), compress_level=1)
    assert other_bytes_same_pixels != data
    assert decode(data, 16)[1].content_hash == decode(bytes(data), 32)[1].content_hash
    assert decode(data, 16)[1].content_hash != decode(other_bytes_same_pixels, 16)[1].content_hash


# --- thumbnails ---


@pytest.mark.parametrize("size", [(400, 100), (100, 400), (10, 8), (96, 96), (2000, 3)])
def test_thumbnails_have_the_given_longer_side_and_keep_the_aspect_ratio(size):
    with Image.open(io.BytesIO(thumbnail_jpeg(encoded(scene(*size)), 96))) as small:
        assert small.format == "JPEG"
        assert max(small.size) == 96
        assert small.width / small.height == pytest.approx(size[0] / size[1], rel=0.1) or min(small.size) == 1


def test_thumbnails_carry_no_metadata_of_the_original():
    exif = Image.Exif()
    exif[0x010F] = "secret camera"
    exif.get_ifd(0x8825)[1] = "N"
    data = encoded(scene(300, 200), "JPEG", exif=exif, comment=b"secret words")
    small = thumbnail_jpeg(data, 64)
    assert b"secret" in data
    assert b"secret" not in small
    assert b"Exif" not in small
    with Image.open(io.BytesIO(small)) as image:
        assert not image.getexif()


def test_thumbnails_are_upright():
    image = scene(80, 40)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    with Image.open(io.BytesIO(thumbnail_jpeg(encoded(image, exif=exif), 64))) as small:
        assert small.size == (32, 64)


def test_thumbnails_of_an_empty_file_raise_the_fault():
    with pytest.raises(RowFault) as caught:
        thumbnail_jpeg(b"", 64)
    assert caught.value.reason is Reason.EMPTY


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_randomly_damaged_files_give_a_fault_or_an_image(format):
    rng = np.random.default_rng(7)
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(
        out, format, **({"exif": exif} if format in {"JPEG", "PNG", "WEBP"} else {})
    )
    good = out.getvalue()
    for _ in range(1500):
        data = bytearray(good)
        for at in rng.integers(0, len(data), rng.integers(1, 6)):
            data[at] = rng.integers(0, 256)
        try:
            pixels, _ = decode(bytes(data[: rng.integers(1, len(data) + 1)]), 8)
        except RowFault:
            continue
        assert pixels.shape == (8, 8, 3)


def test_an_exif_block_that_makes_pillow_fail_is_a_fault(monkeypatch):
    # Rare damage makes Pillow's EXIF reader raise struct.error; the random damage above does not always cause it.
    def fail(image):
        raise struct.error("unpack requires a buffer of 2 bytes")

    monkeypatch.setattr("synthscale.embed.images.ImageOps.exif_transpose", fail)
    assert fault_of(encoded(scene(), "JPEG")) is Reason.CORRUPT
