from __future__ import annotations

import hashlib
import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from core_family import multiway
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from service.core.errors import InvalidArgumentError, OutOfLimitsError
from service.core.family import ImageResize, InputDtype
from service.core.images import decode, inspect, raw_image
from service.core.resize import check_size, to_network
from service.core.types import Size

# Pillow warns of metadata that it skips.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

PLENTY = 1_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")


def picture(height: int = 20, width: int = 30) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack(
        (rows * 255 // height, columns * 255 // width, (rows + columns) % 256), axis=-1
    ).astype(np.uint8)


def saved(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return decode(inspect(data, max_pixels=PLENTY))


def reason_of(data: bytes, max_pixels: int = PLENTY) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        decode(inspect(data, max_pixels=max_pixels))
    assert caught.value.field is None
    return caught.value.reason


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header is right and whose pixels are missing."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    data = b"\0\0\0\x08IDAT" + bytes(8) + struct.pack(">I", zlib.crc32(b"IDAT" + bytes(8)))
    return b"\x89PNG\r\n\x1a\n" + chunk + data


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(kind: str) -> None:
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    data = saved(picture(), kind, **options)
    source = inspect(data, max_pixels=PLENTY)
    assert (source.size, source.raw) == (Size(20, 30), False)
    assert source.digest == hashlib.sha256(data).hexdigest()
    pixels = decode(source)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_allclose(pixels, picture(), atol=40 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    stored = np.zeros((16, 32, 3), dtype=np.uint8)
    stored[:8, :16] = 255  # the stored top-left corner is white
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = inspect(saved(stored, kind, exif=exif), max_pixels=PLENTY)
    pixels = decode(source)
    assert pixels.shape[:2] == (source.size.height, source.size.width)
    assert source.size == (Size(16, 32) if orientation < 5 else Size(32, 16))
    bright = pixels[..., 0] > 127
    height, width = bright.shape
    corner = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    rows = slice(0, height // 2) if corner[0] == "t" else slice(height // 2, height)
    columns = slice(0, width // 2) if corner[1] == "l" else slice(width // 2, width)
    assert bright[rows, columns].all()
    assert bright.sum() == height * width // 4


def test_rotations_are_not_mirrored() -> None:
    stored = picture(16, 32)
    exif = Image.Exif()
    for orientation, upright in {
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        8: np.rot90(stored),
    }.items():
        exif[0x0112] = orientation
        np.testing.assert_array_equal(decoded(saved(stored, "PNG", exif=exif)), upright)


def test_damaged_exif_data_do_not_matter() -> None:
    data = saved(picture(), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(decoded(data), picture())


def test_grey_becomes_equal_channels() -> None:
    grey = picture()[..., 0]
    np.testing.assert_array_equal(decoded(saved(grey)), np.stack([grey] * 3, axis=-1))


def test_bits_become_black_and_white() -> None:
    bits = picture()[..., 0] > 100
    pixels = decoded(saved(Image.fromarray(bits)))
    np.testing.assert_array_equal(pixels[..., 1], bits * 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    pixels = decoded(saved(values, kind))
    np.testing.assert_array_equal(pixels[..., 2], np.round(values / 257.0))


def test_big_endian_sixteen_bit_tiff_is_read() -> None:
    values = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    image = Image.frombytes("I;16B", (30, 20), values.astype(">u2").tobytes())
    np.testing.assert_array_equal(decoded(saved(image, "TIFF"))[..., 0], np.round(values / 257.0))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_whose_zero_is_white_is_no_negative(dtype: type) -> None:
    stored = np.linspace(0, np.iinfo(dtype).max, 600).astype(dtype).reshape(20, 30)
    # The photometric interpretation (tag 262) of TIFF 6.0, section 4.
    black_is_zero, white_is_zero = (struct.pack("<HHIHxx", 262, 3, 1, zero) for zero in (1, 0))
    data = saved(stored, "TIFF")
    assert data.count(black_is_zero) == 1
    pixels = decoded(data.replace(black_is_zero, white_is_zero))
    levels = np.round(stored / (np.iinfo(dtype).max / 255))
    np.testing.assert_array_equal(pixels[..., 0], 255 - levels)


def test_a_transparent_value_of_a_sixteen_bit_png_shows_white() -> None:
    values = np.full((20, 30), 1000, np.uint16)
    values[:10] = 999
    pixels = decoded(saved(values, transparency=999))
    assert (pixels[:10] == 255).all()
    assert (pixels[10:] == 4).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_white(mode: str) -> None:
    colour = Image.fromarray(picture()).convert(mode)
    alpha = np.zeros((20, 30), dtype=np.uint8)
    alpha[:, 10:20] = 128
    alpha[:, 20:] = 255
    colour.putalpha(Image.fromarray(alpha))
    pixels = decoded(saved(colour)).astype(int)
    opaque = np.asarray(Image.fromarray(picture()).convert(mode).convert("RGB")).astype(int)
    assert (pixels[:, :10] == 255).all()
    assert (pixels[:, 20:] == opaque[:, 20:]).all()
    mixed = (opaque[:, 10:20] * 128 + 255 * 127) / 255
    np.testing.assert_allclose(pixels[:, 10:20], mixed, atol=1)


def test_palettes_become_colours() -> None:
    palette = Image.fromarray((picture()[..., 0] > 100).astype(np.uint8))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    pixels = decoded(saved(palette))
    assert {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()} == {
        (10, 20, 30),
        (200, 100, 50),
    }
    transparent = decoded(saved(palette, transparency=0))
    assert {tuple(colour) for colour in transparent.reshape(-1, 3).tolist()} == {
        (255, 255, 255),
        (200, 100, 50),
    }


def test_a_transparent_colour_of_an_rgb_png_shows_white() -> None:
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    pixels[:2] = (1, 2, 3)
    shown = decoded(saved(pixels, transparency=(1, 2, 3)))
    assert (shown[:2] == 255).all()
    assert (shown[2:] == 0).all()


def test_a_cmyk_jpeg_is_not_inverted() -> None:
    red = Image.new("RGB", (16, 16), (220, 30, 40)).convert("CMYK")
    mean = decoded(saved(red, "JPEG", quality=95)).reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(mean, (220, 30, 40), atol=6)


def test_a_phone_photo_with_attached_pictures_is_its_first_picture() -> None:
    data = saved(
        picture(), "MPO", save_all=True, append_images=[Image.new("RGB", (30, 20))], quality=95
    )
    np.testing.assert_allclose(decoded(data), picture(), atol=40)


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_pixels_without_one_meaning_as_colours_are_refused(mode: str) -> None:
    assert reason_of(saved(Image.new(mode, (8, 8)), "TIFF")) == "UNSUPPORTED_PIXELS"


def test_no_bytes_are_named_so() -> None:
    assert reason_of(b"") == "EMPTY_IMAGE"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_header_is_no_image(kind: str) -> None:
    assert reason_of(saved(picture(), kind)[:20]) == "NOT_AN_IMAGE"


def test_text_is_no_image() -> None:
    assert reason_of(b"hello, world") == "NOT_AN_IMAGE"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (saved(picture(), "GIF"), "GIF"),
        (saved(picture(), "ICO"), "ICO"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "HEIC"),
        (b"%PDF-1.7", "PDF"),
    ],
)
def test_other_formats_are_called_by_name(data: bytes, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=name) as caught:
        inspect(data, max_pixels=PLENTY)
    assert caught.value.reason == "UNSUPPORTED_IMAGE_FORMAT"


def test_a_run_length_bmp_is_refused() -> None:
    grey = bytearray(saved(picture()[..., 0], "BMP"))
    grey[30:34] = struct.pack("<I", 1)  # BI_RLE8
    assert reason_of(bytes(grey)) == "UNSUPPORTED_IMAGE_FORMAT"


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    assert reason_of(data) == "ANIMATED_IMAGE"


@pytest.mark.parametrize("kind", FORMATS)
def test_too_many_pixels_are_refused_from_the_header(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = saved(picture(), kind)
    assert inspect(data, max_pixels=600).size == Size(20, 30)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(OutOfLimitsError) as caught:
        inspect(data, max_pixels=599)
    assert caught.value.reason == "IMAGE_TOO_LARGE"


def test_the_limit_is_the_caller_s_and_not_the_one_of_pillow(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    assert inspect(png_header(30_000, 20_000), max_pixels=10**9).size == Size(20_000, 30_000)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 10)
    np.testing.assert_array_equal(decoded(saved(picture())), picture())
    assert not recwarn.list


@pytest.mark.parametrize("size", [Size(1, 601), Size(601, 1)])
def test_a_long_side_is_refused_from_the_header(size: Size) -> None:
    rgb = bytes(3 * size.pixels)
    assert raw_image(rgb, size, max_pixels=PLENTY, max_side=601).size == size
    file = saved(np.zeros((size.height, size.width, 3), dtype=np.uint8))
    assert inspect(file, max_pixels=PLENTY, max_side=601).size == size
    for refused in (
        lambda: raw_image(rgb, size, max_pixels=PLENTY, max_side=600),
        lambda: inspect(file, max_pixels=PLENTY, max_side=600),
    ):
        with pytest.raises(OutOfLimitsError, match="at most 600 rows or columns") as caught:
            refused()
        assert caught.value.reason == "IMAGE_TOO_LARGE"


def test_twenty_million_pixels_in_a_row_are_no_image_by_default() -> None:
    with pytest.raises(OutOfLimitsError):
        inspect(png_header(20_000_000, 1), max_pixels=50_000_000)


def chunk(kind: bytes, body: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + checksum


def test_packed_texts_of_a_png_are_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "PIL.PngImagePlugin._safe_zlib_decompress", lambda _: pytest.fail("unpacked")
    )
    bomb = zlib.compress(bytes(1_000_000))
    texts = b"".join(
        (
            chunk(b"zTXt", b"a\0\0" + bomb),
            chunk(b"iTXt", b"a\0\1\0\0\0" + bomb),
            chunk(b"iCCP", b"a\0\0" + bomb),
        )
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(picture(), exif=exif)
    laden = data[:33] + texts * 50 + data[33:-12] + texts + data[-12:]
    assert inspect(laden, max_pixels=PLENTY).size == Size(30, 20)
    np.testing.assert_array_equal(decoded(laden), np.rot90(picture(), -1))


@pytest.mark.parametrize("kind", [b"gAMA", b"tEXt", b"IDAT"])
def test_a_png_of_countless_chunks_is_no_image(kind: bytes) -> None:
    data = saved(picture())
    crumbs = chunk(kind, b"") * 100_001
    assert reason_of(data[:33] + crumbs + data[33:]) == "NOT_AN_IMAGE"


@pytest.mark.parametrize("crumb", [b"\xff\xe5\0\2", b"\xff\xfe\0\0", b"\xff", b"\0", b"\xff\xd0"])
def test_a_jpeg_of_countless_segments_is_no_image(crumb: bytes) -> None:
    data = saved(picture(), "JPEG")
    assert reason_of(data[:2] + crumb * 10_001 + data[2:]) == "NOT_AN_IMAGE"


def test_a_jpeg_with_much_to_tell_is_read() -> None:
    data = saved(picture(), "JPEG")
    told = b"\xff\xe5\xff\xff" + bytes(65_533)
    laden = data[:2] + b"\xff" * 100 + told * 100 + data[2:]
    np.testing.assert_array_equal(decoded(laden), decoded(data))


def test_pixels_in_small_chunks_are_read() -> None:
    data = saved(picture())
    start = data.index(b"IDAT") - 4
    pixels = data[start + 8 : start + 8 + int.from_bytes(data[start : start + 4], "big")]
    small = b"".join(chunk(b"IDAT", pixels[at : at + 7]) for at in range(0, len(pixels), 7))
    cut = data[:start] + chunk(b"tEXt", b"a\0b") + small + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decoded(cut), picture())


def test_a_bomb_is_refused_without_decoding() -> None:
    assert reason_of(png_header(2**31 - 1, 2**31 - 1)) == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_an_image_without_pixels_is_refused(size: tuple[int, int]) -> None:
    assert reason_of(png_header(*size)) in {"EMPTY_IMAGE", "NOT_AN_IMAGE"}


@pytest.mark.parametrize("kind", [*FORMATS, "deflated TIFF"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_half_an_image_is_an_error(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    if kind == "deflated TIFF":
        # Its directory comes last: hide it in a hole instead of cutting the end off.
        data = bytearray(saved(noise, "TIFF", compression="tiff_adobe_deflate"))
        data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
        assert reason_of(bytes(data)) == "TRUNCATED_IMAGE"
        return
    data = saved(noise, kind)
    assert reason_of(data[: int(len(data) * share)]) in {"TRUNCATED_IMAGE", "NOT_AN_IMAGE"}


def test_half_a_photograph_is_called_truncated() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for kind in ("JPEG", "PNG", "BMP"):
        data = saved(noise, kind)
        assert reason_of(data[: len(data) // 2]) == "TRUNCATED_IMAGE"


@given(kind=st.sampled_from(FORMATS), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_damage_gives_pixels_or_an_error_of_the_domain(kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    data = bytearray(saved(picture(), kind))
    for _ in range(int(random.integers(1, 20))):
        data[int(random.integers(len(data)))] = int(random.integers(256))
    try:
        source = inspect(bytes(data), max_pixels=PLENTY)
        pixels = decode(source)
    except InvalidArgumentError:
        return
    assert pixels.shape == (source.size.height, source.size.width, 3)


def test_raw_pixels_are_taken_as_they_are() -> None:
    source = raw_image(picture().tobytes(), Size(20, 30), max_pixels=600)
    np.testing.assert_array_equal(decode(source), picture())
    turned = raw_image(picture().tobytes(), Size(30, 20), max_pixels=600)
    assert turned.digest != source.digest


@pytest.mark.parametrize(
    ("length", "size", "reason"),
    [
        (1799, Size(20, 30), "WRONG_RAW_LENGTH"),
        (1803, Size(20, 30), "WRONG_RAW_LENGTH"),
        (0, Size(0, 30), "EMPTY_IMAGE"),
        (3, Size(-1, -1), "EMPTY_IMAGE"),
        (1860, Size(20, 31), "IMAGE_TOO_LARGE"),
    ],
)
def test_raw_pixels_must_fit_their_size(length: int, size: Size, reason: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        raw_image(bytes(length), size, max_pixels=600)
    assert caught.value.reason == reason


@pytest.mark.parametrize("shape", [(20, 30), (33, 33), (64, 100), (5, 200)])
def test_photographs_are_resized_exactly_as_pillow_does(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((48, 33), Image.Resampling.BILINEAR))
    resized = to_network(pixels, multiway(input_size=Size(33, 48)))
    np.testing.assert_array_equal(resized, expected)
    assert resized.flags.c_contiguous


def test_a_family_of_native_size_takes_photographs_as_they_are() -> None:
    family = multiway(input_size=None, image_resize=ImageResize.NONE)
    np.testing.assert_array_equal(to_network(picture(), family), picture())


def test_a_family_of_native_size_refuses_what_its_network_cannot_take() -> None:
    native = multiway(
        input_size=None, image_resize=ImageResize.NONE, min_side=33, max_pixels=100 * 100
    )
    check_size(Size(33, 300), native)
    check_size(Size(100, 100), native)
    with pytest.raises(InvalidArgumentError, match="at least 33 pixels a side") as small:
        check_size(Size(300, 32), native)
    assert small.value.reason == "IMAGE_TOO_SMALL_FOR_MODEL"
    with pytest.raises(OutOfLimitsError, match="at most 10000 pixels") as large:
        check_size(Size(101, 100), native)
    assert large.value.reason == "IMAGE_TOO_LARGE_FOR_MODEL"
    check_size(Size(2, 9000), multiway(input_size=Size(33, 48)))


def test_fixed_point_inputs_hold_values_times_256() -> None:
    family = multiway(
        input_size=None, image_resize=ImageResize.NONE, input_dtype=InputDtype.UINT16_FIXED
    )
    resized = to_network(picture(), family)
    assert resized.dtype == np.uint16
    np.testing.assert_array_equal(resized, picture().astype(int) * 256)


def test_a_file_is_opened_once_for_its_inspection_and_its_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = []

    def counted(file: BytesIO) -> JpegImageFile:
        opened.append(file)
        return JpegImageFile(file)

    monkeypatch.setattr("service.core.images._READ", ((b"\xff\xd8\xff", counted),))
    source = inspect(saved(picture(), "JPEG"), max_pixels=PLENTY)
    first = decode(source)
    assert len(opened) == 1
    np.testing.assert_array_equal(decode(source), first)
