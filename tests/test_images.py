import base64
import io
import os
import struct
import sys
import zlib

import numpy as np
import pytest

from resnet_tf.data.image_io import UnreadableImageError, cv2, decode_image, read_bytes, read_image
from resnet_tf.data.image_size import JpegInfo, inspect_jpeg, stored_size
from resnet_tf.data.transforms import ResizeCenterCrop, resize

# Pillow 13: Image.new("CMYK", (16, 16), (10, 200, 90, 40)).save(file, "JPEG", quality=95), which it converts to RGB
# (207, 46, 139).
CMYK = base64.b64decode(
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwACAQEBAQECAQEBAgICAgIEAwICAgIFBAQDBAYFBgYGBQYGBgcJCAYHCQcGBggLCAkKCgoKCgYICwwLCg"
    "wJCgoK/8AAFAgAEAAQBEMRAE0RAFkRAEsRAP/EAB8AAAEFAQEBAQEBAAAAAAAAAAABAgMEBQYHCAkKC//EALUQAAIBAwMCBAMFBQQEAAABfQEC"
    "AwAEEQUSITFBBhNRYQcicRQygZGhCCNCscEVUtHwJDNicoIJChYXGBkaJSYnKCkqNDU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dX"
    "Z3eHl6g4SFhoeIiYqSk5SVlpeYmZqio6Slpqeoqaqys7S1tre4ubrCw8TFxsfIycrS09TV1tfY2drh4uPk5ebn6Onq8fLz9PX29/j5+v/aAA4E"
    "QwBNAFkASwAAPwD91K/NuvpSv1coooooooooooor/9k="
)


# pillow-heif 1.8: 16 x 24 pixels, red at the top left and blue at the bottom right, saved with EXIF orientation 6.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAcdtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9jAAAAAE"
    "RAAAIAAQAAAAAB6wABAAAAAAAAANIAAgAAAAACvQABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZlAgAA"
    "AQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABBmlwcnAAAADlaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAA"
    "ADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAAB"
    "AA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAGAAAAAEAAAAQAAAAAf///9gAAAAC////0AAAAAIAAAAQcGl4aQAAAAADCAgIAAAACW"
    "lyb3QDAAAAGWlwbWEAAAAAAAAAAQABBoECAwWEhgAAABppcmVmAAAAAAAAAA5jZHNjAAIAAQABAAAA/m1kYXQAAADOKAGvBjIfsbMwXUCj2+Qb///A"
    "Z9D7SHZ0kf+3jev/bZny4bzpAWrTd76ucIcEeBTfl5atmvNGVfIjMhv9P/2NUMnJCVqisyD0d9+zvtcSRM5TXpBj4XJfm+SZRSa/fc70XHV8nzuuIG"
    "k0gqeAQfqQxan1cSPcGVVa+8ufDC9R6LFEsW4pRIRe8mJ7fbgSqVMt4+cIofR0xmVsFm4gA/zXpGAk0NWU8g7+fz908gJWaHgsXS4mC2AFKldiePOZ"
    "Cj2VT+fz908gRZhUQbqwTP0AAAAGRXhpZgAATU0AKgAAAAgAAQESAAMAAAABAAYAAAAAAAA="
)


def picture(height=48, width=64):
    """A smooth RGB picture, so that lossy formats stay close to it."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX)


def encoded(suffix, rgb, *options):
    return cv2.imencode(suffix, rgb[..., ::-1] if rgb.ndim == 3 else rgb, options)[1].tobytes()


def exif(orientation):
    """An APP1 segment that says how the camera was held."""
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    return b"\xff\xe1" + struct.pack(">H", 8 + len(tiff)) + b"Exif\0\0" + tiff


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm"])
def test_lossless_formats_give_the_pixels_in_rgb(tmp_path, suffix):
    # Named .jpg: the content counts.
    (tmp_path / "x.jpg").write_bytes(encoded(suffix, picture()))
    np.testing.assert_array_equal(read_image(tmp_path / "x.jpg"), picture())


def test_jpeg_is_close_to_the_pixels():
    assert np.abs(decode_image(encoded(".jpg", picture())).astype(int) - picture()).mean() < 3


def test_grey_becomes_three_equal_channels_or_stays_one():
    gray = picture()[..., 0]
    for channels in (3, 1):
        np.testing.assert_array_equal(
            decode_image(encoded(".png", gray), channels), np.repeat(gray[..., None], channels, axis=2)
        )


def test_sixteen_bits_are_scaled_to_eight():
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for image in (levels, np.dstack([levels] * 3)):
        pixels = decode_image(encoded(".png", image))
        assert pixels.dtype == np.uint8
        assert np.abs(pixels[..., 0] - levels / 257).max() <= 1
        # k · 257 is exactly level k.
        np.testing.assert_array_equal(pixels[levels % 257 == 0][:, 0], np.arange(256))


def test_transparency_is_dropped_and_the_colors_stay():
    alpha = np.zeros((48, 64, 1), np.uint8)
    rgba = cv2.imencode(".png", np.dstack([picture()[..., ::-1], alpha]))[1].tobytes()
    np.testing.assert_array_equal(decode_image(rgba), picture())


def test_cmyk_becomes_rgb():
    pixels = decode_image(CMYK)
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels.astype(int) - (207, 46, 139)).max() <= 3


TURNS = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_photos_are_turned_as_exif_says(orientation):
    plain = encoded(".jpg", picture())
    turned = decode_image(plain[:2] + exif(orientation) + plain[2:])
    np.testing.assert_array_equal(turned, TURNS[orientation](decode_image(plain)))


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_pictures_of_all_formats_are_turned_as_another_writer_says(kind, orientation):
    image = pytest.importorskip("PIL.Image")
    if not pytest.importorskip("PIL.features").check(kind.lower() if kind in ("WEBP", "AVIF") else "zlib"):
        pytest.skip(f"this Pillow writes no {kind}")
    exif = image.Exif()
    exif[0x112] = orientation
    file = io.BytesIO()
    image.fromarray(picture()).save(file, kind, exif=exif, **({} if kind in ("PNG", "TIFF") else {"quality": 95}))
    turned, expected = decode_image(file.getvalue()), TURNS[orientation](picture())
    assert turned.shape == expected.shape
    assert np.abs(turned.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm", ".jp2"])
@pytest.mark.parametrize(("low", "high"), [(0, 200), (0, 4095), (30_000, 30_250)])
def test_sixteen_bits_of_a_narrow_range_are_stretched(suffix, low, high):
    levels = np.linspace(low, high, 48 * 64).round().astype(np.uint16).reshape(48, 64)
    for channels in (1, 3):
        pixels = decode_image(encoded(suffix, levels), channels)
        assert pixels.shape == (48, 64, channels)
        expected = (levels.astype(float) - low) * 255 / (high - low)
        assert np.abs(pixels - expected[..., None]).max() <= 0.51


def test_a_black_picture_of_sixteen_bits_stays_black_and_color_is_stretched_in_one():
    assert not decode_image(encoded(".png", np.full((8, 8), 100, np.uint16))).any()
    color = np.zeros((8, 8, 3), np.uint16)
    color[:4] = (2550, 1020, 0)
    assert decode_image(encoded(".png", color))[0, 0].tolist() == [255, 102, 0]


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("stored", [1, 3])
def test_tiffs_of_other_depths_are_pictures(dtype, stored):
    values = np.linspace(-100, 100, 48 * 64 * stored).reshape(48, 64, stored).astype(dtype)
    expected = (values.astype(float) + 100) * 255 / 200
    if dtype in (np.float32, np.float64):
        values[0, 0] = np.nan
    content = encoded(".tiff", values if stored == 3 else values[..., 0])
    pixels = decode_image(content)
    assert np.abs(pixels - expected)[1:].max() <= 1
    assert decode_image(content, 1).shape == (48, 64, 1)


def test_floating_point_pictures_from_0_to_1_keep_their_range():
    values = np.linspace(0.25, 0.5, 48 * 64, dtype=np.float32).reshape(48, 64)
    assert (decode_image(encoded(".tiff", values)).min(), decode_image(encoded(".tiff", values)).max()) == (64, 128)


def test_heic_is_named_where_it_cannot_be_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for content in (HEIC, b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(100)):
        with pytest.raises(UnreadableImageError, match=r"^HEIC, which is read after pip install 'resnet_tf\[heif\]'$"):
            decode_image(content)


def test_heic_is_read_and_turned_where_pillow_heif_is_installed():
    pytest.importorskip("pillow_heif")
    pixels = decode_image(HEIC)
    assert (pixels.shape, decode_image(HEIC, 1).shape) == ((24, 16, 3), (24, 16, 1))
    corners = pixels[[2, 2, 20, 20], [2, 13, 2, 13]].astype(int)
    assert np.abs(corners - [(0, 0, 0), (255, 0, 0), (0, 0, 255), (0, 0, 0)]).max() < 8
    for length in range(20, len(HEIC), 40):
        with pytest.raises(UnreadableImageError, match=r"^damaged or truncated$|^no image$"):
            decode_image(HEIC[:length])


@pytest.mark.parametrize("progressive", [0, 1])
def test_a_jpeg_cut_off_anywhere_is_truncated(progressive):
    whole = encoded(".jpg", picture(), cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    assert inspect_jpeg(whole) == JpegInfo(48, 64, True)
    for length in range(4, len(whole)):
        assert not inspect_jpeg(whole[:length]).complete
        # As a download into a file of the full size leaves it.
        assert not inspect_jpeg(whole[:length].ljust(len(whole) + 1, b"\0")).complete
    for length in (10, len(whole) // 2, len(whole) - 1):
        with pytest.raises(UnreadableImageError, match=r"^truncated$"):
            decode_image(whole[:length])


def test_what_follows_the_end_of_a_jpeg_and_what_is_in_its_segments_do_not_count():
    whole = encoded(".jpg", picture())
    thumbnail = b"\xff\xe2" + struct.pack(">H", 2 + len(whole)) + whole
    assert inspect_jpeg(whole[:2] + thumbnail + whole[2:] + b"film") == JpegInfo(48, 64, True)
    assert not inspect_jpeg(whole[:2] + thumbnail + whole[2:-2]).complete


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".webp"])
def test_other_formats_cut_off_are_damaged(suffix, capfd):
    whole = encoded(suffix, picture())
    with pytest.raises(UnreadableImageError, match="damaged"):
        decode_image(whole[: len(whole) // 2])


@pytest.mark.parametrize("content", [b"a text named .jpg", b"\0" * 100, b"<html></html>"])
def test_no_image(content):
    with pytest.raises(UnreadableImageError, match="no image"):
        decode_image(content)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm", ".webp", ".jp2", ".gif", ".avif"])
def test_headers_say_how_large_a_picture_is(suffix):
    assert stored_size(encoded(suffix, picture())) == (64, 48)


@pytest.mark.parametrize("depth", [8, 10, 12])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (48, 64), (700, 900)])
def test_avif_files_of_opencv_are_read(size, channels, depth):
    if depth > 8 and channels == 1:
        pytest.skip("OpenCV writes none")
    image = np.zeros((*size, channels), np.uint8 if depth == 8 else np.uint16)
    content = cv2.imencode(".avif", image, [cv2.IMWRITE_AVIF_DEPTH, depth])[1].tobytes()
    assert stored_size(content) == size[::-1]
    assert decode_image(content).shape == (*size, 3)


def test_avif_files_of_pillow_are_read():
    image_module = pytest.importorskip("PIL.Image")
    if not pytest.importorskip("PIL.features").check("avif"):
        pytest.skip("this Pillow has no AVIF")
    for mode in ("L", "RGB", "RGBA"):
        moving = {"save_all": True, "append_images": [image_module.new(mode, (64, 48))] * 2}
        for options in ({}, {"quality": 100, "subsampling": "4:4:4"}, {"tile_rows": 1, "tile_cols": 1}, moving):
            file = io.BytesIO()
            image_module.new(mode, (64, 48)).save(file, "AVIF", **options)
            assert stored_size(file.getvalue()) == (64, 48)
            assert decode_image(file.getvalue()).shape == (48, 64, 3)


def test_the_three_kinds_of_webp():
    alpha = np.dstack([picture(), np.full((48, 64), 9, np.uint8)])
    kinds = {
        b"VP8 ": encoded(".webp", picture(), cv2.IMWRITE_WEBP_QUALITY, 50),
        b"VP8L": encoded(".webp", picture(), cv2.IMWRITE_WEBP_QUALITY, 101),
        b"VP8X": cv2.imencode(".webp", alpha, [cv2.IMWRITE_WEBP_QUALITY, 50])[1].tobytes(),
    }
    for kind, content in kinds.items():
        assert content[12:16] == kind
        assert stored_size(content) == (64, 48)


def claims_to_be_huge(suffix):
    """A small file of the format whose header says 100,000 × 100,000 pixels, or as many as it can."""
    content = bytearray(encoded(suffix, picture(), *((cv2.IMWRITE_WEBP_QUALITY, 50) if suffix == ".webp" else ())))
    if suffix == ".png":
        content[16:24] = struct.pack(">II", 100_000, 100_000)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    elif suffix == ".bmp":
        content[18:26] = struct.pack("<ii", 100_000, -100_000)
    elif suffix == ".jpg":
        start = content.index(b"\xff\xc0")
        content[start + 5 : start + 9] = struct.pack(">HH", 60_000, 60_000)
    elif suffix == ".ppm":
        content[: content.index(b"255")] = b"P6\n# a comment\n100000 100000\n"
    elif suffix == ".gif":
        content[6:10] = struct.pack("<HH", 60_000, 60_000)
    elif suffix == ".webp":
        content[26:30] = struct.pack("<HH", 16_000, 16_000)
    return bytes(content)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg", ".ppm", ".gif", ".webp"])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(suffix, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(UnreadableImageError, match=r"^too large$"):
        decode_image(claims_to_be_huge(suffix))


def test_a_header_that_ends_early_says_nothing():
    for suffix in (".png", ".bmp", ".tiff", ".webp", ".jp2", ".gif", ".avif"):
        content = encoded(suffix, picture())
        assert {stored_size(content[:length]) for length in range(10)} == {None}
    assert stored_size(b"P6\n100") is None


def test_a_large_jpeg_is_decoded_in_part_when_less_is_needed():
    photo = encoded(".jpg", picture(801, 1200))
    sizes = {min_side: decode_image(photo, min_side=min_side).shape for min_side in (1, 100, 101, 200, 400, 401, 900)}
    # An eighth of 801 is 100.1, a quarter 200.25, half 400.5; libjpeg rounds up.
    assert sizes == {
        1: (101, 150, 3),
        100: (101, 150, 3),
        101: (201, 300, 3),
        200: (201, 300, 3),
        400: (401, 600, 3),
        401: (801, 1200, 3),
        900: (801, 1200, 3),
    }
    halved = decode_image(photo, min_side=400)[:400].astype(int)
    averaged = decode_image(photo)[:800].reshape(400, 2, 600, 2, 3).mean((1, 3))
    # Two roads to half the size: the same picture, if not to the level.
    assert np.abs(halved - averaged).mean() < 1


def test_reduced_photos_are_turned_too():
    plain = encoded(".jpg", picture(80, 120))
    assert decode_image(plain[:2] + exif(6) + plain[2:], min_side=40).shape == (60, 40, 3)


def test_other_formats_are_always_decoded_in_full():
    assert decode_image(encoded(".png", picture()), min_side=1).shape == (48, 64, 3)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    sparse = tmp_path / "sparse.jpg"
    with sparse.open("wb") as file:
        file.truncate(2**30 + 1)
    reasons = {
        "empty.jpg": "^empty$",
        "folder.jpg": "^a folder$",
        "circle.jpg": "^unreadable: Too many levels",
        "pipe.jpg": "^no regular file$",
        "sparse.jpg": "^too large$",
        "none.jpg": "^unreadable: No such file",
        "nul\0.jpg": "^unreadable: embedded null",
    }
    for name, reason in reasons.items():
        with pytest.raises(UnreadableImageError, match=reason):
            read_bytes(tmp_path / name)


def test_a_picture_of_the_right_size_is_left_alone():
    image = picture(32, 32)
    assert resize(image, 32, 32) is image
    np.testing.assert_array_equal(ResizeCenterCrop(32, 32, 32)(image), image)


def test_shrinking_averages_the_pixels_that_fall_together():
    image = picture(48, 64)
    means = image.reshape(16, 3, 16, 4, 3).mean((1, 3))
    # OpenCV rounds to a level.
    assert np.abs(resize(image, 16, 16) - means).max() <= 0.51
    assert resize(image[..., :1], 16, 16).shape == (16, 16, 1)


def test_enlarging_interpolates_between_pixel_centres():
    row = np.array([[[0], [100]]], np.uint8)
    # Centres of 8 pixels over 2 lie at −0.375, −0.125, 0.125 … of the old ones' distance; the ends are level.
    assert resize(row, 1, 8).ravel().tolist() == [0, 0, 13, 38, 63, 88, 100, 100]


def test_a_framing_takes_the_centre_or_squashes_the_whole():
    image = np.zeros((50, 90, 3), np.uint8)
    image[:, :20], image[:, 70:] = 100, 200
    center = ResizeCenterCrop(100, 100, 100)(image)
    assert center.shape == (100, 100, 3)
    assert not center.any()
    squashed = ResizeCenterCrop(None, 18, 9)(image)
    assert squashed[5, :, 0].tolist() == [100, 100, 0, 0, 0, 0, 0, 200, 200]
    # 100 of 128 of the shorter side.
    image[:, :] = 0
    image[11:39, 31:59] = 255
    assert ResizeCenterCrop(50, 28, 28)(image).all()


def test_a_very_long_picture_is_framed():
    assert ResizeCenterCrop(256, 224, 224)(np.zeros((1, 5000, 3), np.uint8)).shape == (224, 224, 3)
