"""Files and PIL images of every mode to RGB images and label maps."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from bad_rows import SIZE, animated, claiming, encoded, exif_of, one_class, with_exif
from c2fmae_hf.images import MAX_IMAGE_PIXELS, map_stride, number_of_frames, open_image, to_label_map, to_rgb
from c2fmae_hf.pictures.photographs import open_photograph


COLOUR = (200, 100, 50)


def pixel(image: Image.Image) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (4, 3), COLOUR), COLOUR),
        (Image.new("L", (4, 3), 77), (77, 77, 77)),
        (Image.new("1", (4, 3), 1), (255, 255, 255)),
        (Image.new("RGBA", (4, 3), (*COLOUR, 255)), COLOUR),
        (Image.new("RGBA", (4, 3), (*COLOUR, 0)), (255, 255, 255)),
        (Image.new("LA", (4, 3), (0, 128)), (127, 127, 127)),
        (Image.new("CMYK", (4, 3), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("YCbCr", (4, 3), (128, 128, 128)), (128, 128, 128)),
        (Image.fromarray(np.full((3, 4), 257 * 90, dtype=np.uint16)), (90, 90, 90)),
        (Image.fromarray(np.full((3, 4), 65535, dtype=np.int32)), (255, 255, 255)),
        (Image.fromarray(np.full((3, 4), 0.2, dtype=np.float32)), (51, 51, 51)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_becomes_rgb(image, expected):
    assert pixel(to_rgb(image)) == expected
    assert to_rgb(image).size == (4, 3)


def test_palette_with_transparency():
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, *COLOUR])
    assert pixel(to_rgb(open_image(encoded(image, "PNG")))) == COLOUR
    assert pixel(to_rgb(open_image(encoded(image, "PNG", transparency=1)))) == (255, 255, 255)
    whole = encoded(Image.new("RGB", (4, 3), COLOUR), "PNG", transparency=COLOUR)  # one colour of it
    assert pixel(to_rgb(open_image(whole))) == (255, 255, 255)


def test_strides_of_small_maps_are_powers_of_two():
    assert map_stride((14, 15), (210, 225)) == 16  # 15 fits, too
    assert map_stride((70, 75), (210, 225)) == 3
    assert map_stride((210, 225), (210, 225)) == 1
    assert map_stride((14, 16), (210, 225)) is None


def test_16_bit_png_is_scaled_not_clipped():
    values = np.array([[0, 257, 32_896, 65_535]], dtype=np.uint16)
    rgb = np.asarray(to_rgb(open_image(encoded(Image.fromarray(values), "PNG"))))
    assert rgb[0, :, 0].tolist() == [0, 1, 128, 255]


def turned(orientation: int, format: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 255, (3, 5, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), format, exif=exif)


@pytest.mark.parametrize("orientation", range(10))
def test_photographs_are_turned_as_their_exif_says(orientation):
    for format in ("PNG", "JPEG", "WEBP", "TIFF"):
        content = turned(orientation, format)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        upright = to_rgb(open_image(content))
        assert upright.size == ((3, 5) if 5 <= orientation <= 8 else (5, 3))
        assert (np.asarray(upright) == np.asarray(expected)).all()
        assert upright.tobytes() == to_rgb(upright).tobytes(), "turned twice"


@pytest.mark.parametrize(("tag", "kind", "value"), [(0x0103, 4, 0xFFFFFF), (0x011A, 2, 0x41), (0x0131, 5, 0)])
def test_a_damaged_entry_of_exif_changes_nothing(tag, kind, value):
    content = with_exif(exif_of(tag, kind, value))
    image = Image.open(io.BytesIO(content))
    with pytest.raises((struct.error, TypeError, AttributeError)):
        ImageOps.exif_transpose(image)
    assert to_rgb(open_image(content)).tobytes() == image.transpose(Image.Transpose.ROTATE_180).tobytes()


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_exif_that_cannot_be_read_is_ignored(format):
    content = with_exif(b"no TIFF at all", format)
    assert to_rgb(open_image(content)).tobytes() == Image.open(io.BytesIO(content)).convert("RGB").tobytes()
    image, notes = open_photograph(content)
    assert image.size == (SIZE, SIZE)
    assert notes == []


def test_pictures_of_a_damaged_file_are_counted_as_one():
    class Damaged(Image.Image):
        @property
        def n_frames(self) -> int:
            raise SyntaxError("no such frame")

    assert number_of_frames(Damaged()) == 1
    assert number_of_frames(Image.open(io.BytesIO(animated("TIFF")))) == 3


def test_cmyk_jpeg():
    photo = Image.new("RGB", (16, 16), COLOUR).convert("CMYK")
    assert np.abs(np.subtract(pixel(to_rgb(open_image(encoded(photo, "JPEG", quality=100)))), COLOUR)).max() < 6


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5, 7.0])
def test_impossible_floating_point_pixels(value):
    image = Image.fromarray(np.full((3, 4), value, dtype=np.float32))
    with pytest.raises(ValueError, match=r"expected floating-point pixels in \[0, 1\]"):
        to_rgb(image)


def test_label_maps():
    values = np.array([[0, 3, 255]], dtype=np.uint8)
    assert to_label_map(Image.fromarray(values)).tolist() == [[0, 3, -100]]
    palette = Image.fromarray(values).convert("P")
    palette.putdata(values.ravel().tolist())
    palette.putpalette([9, 9, 9] * 256)
    assert to_label_map(open_image(encoded(palette, "PNG"))).tolist() == [[0, 3, -100]]  # indices, not colours
    wide = np.array([[0, 255, 300, 65_535]], dtype=np.uint16)
    assert to_label_map(open_image(encoded(Image.fromarray(wide), "PNG"))).tolist() == [[0, 255, 300, -100]]
    assert to_label_map(Image.new("1", (2, 1), 1)).max() == 1
    assert to_label_map(Image.new("L", (2, 1))).dtype == np.int32


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "F", "CMYK"])
def test_what_is_no_label_map(mode):
    with pytest.raises(ValueError, match=f"expected a single-channel 8- or 16-bit label map, got .* '{mode}'"):
        to_label_map(Image.new(mode, (2, 2)))


LOSSY = [
    ("JPEG", {}, "JPEG"),
    ("TIFF", {"compression": "jpeg"}, "TIFF with the compression jpeg"),
    ("JPEG2000", {"irreversible": True}, "JPEG2000"),
    ("WEBP", {"lossless": True}, "WEBP"),
    ("AVIF", {}, "AVIF"),
]


@pytest.mark.parametrize(("format", "options", "named"), LOSSY)
def test_label_maps_that_may_have_losses_are_refused(format, options, named):
    image = open_image(one_class(format, **options))
    with pytest.raises(ValueError, match=f"stored without losses, got {named}: store it as PNG"):
        to_label_map(image)


COMPRESSIONS = ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate")
LOSSLESS = [("TIFF", {"compression": name}) for name in COMPRESSIONS]
LOSSLESS += [(name, {}) for name in ("PNG", "BMP", "DIB", "PPM", "TGA")]


@pytest.mark.parametrize(("format", "options"), LOSSLESS)
def test_label_maps_without_losses(format, options):
    ids = np.random.default_rng(0).integers(0, 255, (7, 9), dtype=np.uint8)
    assert (to_label_map(open_image(encoded(Image.fromarray(ids), format, **options))) == ids).all()


def low_png(bits: int) -> bytes:
    """Greys of fewer than 8 bits, as optimisers of PNG write them: 0, 1, 2, ... in a row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    values = range(min(2**bits, 4))
    row = "".join(format(value, f"0{bits}b") for value in values).ljust(16, "0")
    data = zlib.compress(b"\0" + int(row, 2).to_bytes(2, "big")[: -(-len(values) * bits // 8)])
    header = struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


CHANGED = {
    "GIF, whose writers renumber them": encoded(Image.fromarray(np.array([[7, 200]], np.uint8)), "GIF"),
    "2-bit greys, which are stretched to 255": low_png(2),
    "4-bit greys, which are stretched to 255": low_png(4),
    "greys up to 3, which are stretched": b"P5 4 1 3\n\x00\x01\x02\x03",
    "greys up to 7, which are stretched": b"P2 4 1 7\n0 1 2 3\n",
    "greys up to 1000, which are stretched": b"P5 2 1 1000\n\x00\x01\x03\xe8",
    "greys that are stored inverted": encoded(Image.new("L", (4, 1), 7), "TIFF", tiffinfo={262: 0}),
}


@pytest.mark.parametrize("named", CHANGED)
def test_label_maps_whose_ids_would_be_others_are_refused(named, tmp_path):
    (tmp_path / "map").write_bytes(CHANGED[named])
    for image in (open_image(CHANGED[named]), Image.open(tmp_path / "map")):
        with pytest.raises(
            ValueError, match=f"expected a label map whose ids are kept, got {named}.*store it as 8-bit"
        ):
            to_label_map(image)
    to_rgb(open_image(CHANGED[named]))  # as a photograph it is right


def test_ids_that_pillow_keeps_are_taken():
    assert to_label_map(open_image(low_png(1))).tolist() == [[0, 1]]
    assert to_label_map(open_image(b"P5 4 1 255\n\x00\x01\x02\xff")).tolist() == [[0, 1, 2, -100]]
    assert to_label_map(open_image(b"P2 4 1 255\n0 1 2 3\n")).tolist() == [[0, 1, 2, 3]]
    assert to_label_map(open_image(b"P5 2 1 65535\n\x00\x01\x03\xe8")).tolist() == [[1, 1000]]


PHOTO = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)), "JPEG")


def test_sources(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    path = str(tmp_path / "photo.jpg")
    for value in (
        PHOTO,
        path,
        tmp_path / "photo.jpg",
        {"bytes": PHOTO, "path": None},
        {"bytes": None, "path": path},
        Image.open(path),
    ):
        assert open_image(value).size == (40, 40)


def test_an_empty_file_is_told(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ValueError, match="cannot be opened: the file is empty"):
        open_image(str(tmp_path / "photo.jpg"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (PHOTO[:-400], "cannot be decoded: .*truncated"),
        (b"", "expected an encoded image, got zero bytes"),
        ("", "expected an encoded image, got an empty path"),
        (b"x", "cannot be opened: none of the formats JPEG"),
        (b"\xff\xd8\xff", "cannot be opened"),
        (b"<html>404</html>", "cannot be opened"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "cannot be opened: HEIC is not read: save it as JPEG or PNG"),
        ("/no/such/file", "cannot be opened: .*No such file"),
        ({"bytes": None, "path": None}, "expected an encoded image, a path or a PIL image, got NoneType"),
        (17, "expected an encoded image, a path or a PIL image, got int"),
    ],
)
def test_what_cannot_be_read(value, message):
    with pytest.raises(ValueError, match=message):
        open_image(value)


def test_an_image_larger_than_the_limit_is_not_read(monkeypatch):
    """Within Pillow's own limit, so that this one alone refuses it."""
    monkeypatch.setattr(JpegImageFile, "load", lambda image: pytest.fail("was read"))
    with pytest.raises(ValueError, match="expected at most 1599 pixels, got 40 x 40"):
        open_image(PHOTO, 1599)
    monkeypatch.undo()
    assert open_image(PHOTO, 1600).size == (40, 40)
    claimed = claiming(MAX_IMAGE_PIXELS // 10_000 + 1, 10_000)
    with pytest.raises(ValueError, match=f"expected at most {MAX_IMAGE_PIXELS} pixels, got 15001 x 10000"):
        open_image(claimed)


def test_decompression_bombs(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="expected at most 200 pixels, got an image that claims more"):
        open_image(PHOTO)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", tmp_path):
        with pytest.raises(ValueError, match=r"cannot be opened: expected a file, got .*, which is not one"):
            open_image(str(path))


def test_a_map_of_another_size_is_refused_before_it_is_read(monkeypatch):
    content = encoded(Image.new("L", (1200, 1200)), "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("was read"))
    with pytest.raises(ValueError, match=r"expected the image's size 96x96 .* got 1200x1200"):
        open_image(content, image_size=(96, 96))


def test_there_is_one_door(repository):
    """Photographs and maps of others come in by `open_image` alone."""
    package = repository / "src/c2fmae_hf"
    doors = [path for path in package.rglob("*.py") if "Image.open(" in path.read_text(encoding="utf-8")]
    assert doors == [package / "images.py"]
