"""Decoding for labelling, maps at a stride, rows."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from c2fmae_hf.images import expand_label_map, map_stride, open_image, to_label_map, to_rgb
from c2fmae_hf.labelling.records import (
    LabelMaps,
    OutputOptions,
    Reject,
    SourceRecord,
    build_row,
    encode_label_map,
    number_instances,
    prepare_image,
    resample_label_map,
)
from labelling_utils import encode, photograph, plant_bad_files, plant_odd_files


def record(value, **options) -> SourceRecord:
    return SourceRecord("id", "place", value, **options)


@pytest.mark.parametrize("size", [(48, 64), (47, 65), (16, 16), (31, 17)])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 7])
def test_a_map_at_a_stride_holds_the_ids_of_cell_centres(size, stride):
    label_map = np.arange(size[0] * size[1], dtype=np.int32).reshape(size)
    stored = resample_label_map(label_map, size, stride)
    assert stored.shape == (-(-size[0] // stride), -(-size[1] // stride))
    for row, column in ((0, 0), (stored.shape[0] - 1, stored.shape[1] - 1), (1, 2)):
        y, x = (min(i * stride + stride // 2, side - 1) for i, side in zip((row, column), size))
        assert stored[row, column] == label_map[y, x]
    expanded = expand_label_map(stored, size)
    assert expanded.shape == size
    # Every pixel has the id of its own cell.
    for y, x in ((0, 0), (size[0] - 1, size[1] - 1), (5, 9)):
        assert expanded[y, x] == stored[y // stride, x // stride]
    if stride == 1:
        assert (expanded == label_map).all()


@pytest.mark.parametrize("size", [(256, 341), (224, 224), (300, 207), (96, 96), (17, 16)])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8])
def test_the_stride_is_known_from_the_sizes(size, stride):
    assert map_stride((-(-size[0] // stride), -(-size[1] // stride)), size) == stride


@pytest.mark.parametrize("map_size", [(24, 64), (48, 32), (64, 48), (96, 128), (25, 32), (1, 1)])
def test_a_map_of_another_shape_belongs_to_another_image(map_size):
    assert map_stride(map_size, (48, 64)) is None
    with pytest.raises(
        ValueError, match=r"expected the image's size 64x48 \(width x height\), or that size at a stride"
    ):
        expand_label_map(np.zeros(map_size, np.int32), (48, 64))


def test_maps_of_another_resolution_stay_aligned():
    # A vertical edge at 3/8 of the width, at four resolutions.
    for width in (64, 128, 640, 200):
        label_map = np.zeros((width // 2, width), np.int32)
        label_map[:, : width * 3 // 8] = 1
        stored = resample_label_map(label_map, (48, 96), 2)
        assert stored.shape == (24, 48)
        assert (stored == (np.arange(48) < 18)).all()


def test_instances_are_numbered_without_gaps():
    ids = np.array([[0, 7, 7], [-100, 300, 2]])
    assert number_instances(ids).tolist() == [[0, 2, 2], [-100, 3, 1]]
    assert number_instances(np.zeros((2, 2), int)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(("highest", "mode"), [(5, "L"), (254, "L"), (255, "I;16"), (40_000, "I;16")])
def test_maps_survive_encoding(highest, mode):
    label_map = np.array([[0, 1, -100], [2, highest, -100]], np.int32)
    encoded = encode_label_map(label_map)
    assert Image.open(io.BytesIO(encoded)).mode == mode
    assert (to_label_map(open_image(encoded)) == label_map).all()
    for label_map in (np.zeros((1, 1), np.int32), np.full((3, 5), -100, np.int32)):
        assert (to_label_map(open_image(encode_label_map(label_map))) == label_map).all()


def test_a_palette_where_it_makes_a_map_smaller():
    y, x = np.mgrid[:300, :400]
    label_map = ((y // 37) * 3 + ((x - 200) ** 2 + (y - 150) ** 2 < 8000)).astype(np.int32)
    encoded, grey = encode_label_map(label_map), io.BytesIO()
    image = Image.open(io.BytesIO(encoded))
    Image.fromarray(label_map.astype(np.uint8)).save(grey, "PNG", optimize=True)
    assert image.mode == "P"
    assert len(encoded) < len(grey.getvalue())
    assert (to_label_map(image) == label_map).all()
    assert len(image.convert("RGB").getcolors()) == len(np.unique(label_map))  # as an image viewer shows it


@pytest.mark.parametrize("wrong", [65535, -1])
def test_ids_that_cannot_be_stored(wrong):
    with pytest.raises(ValueError, match=r"expected ids in \[0, 65534\] or -100"):
        encode_label_map(np.array([[wrong]]))


def test_plain_images_are_stored_as_they_came():
    for kind in ("JPEG", "PNG", "WEBP"):
        content = encode(photograph(0), kind)
        prepared = prepare_image(record(content), OutputOptions())
        assert prepared.encoded == content
        assert prepared.stored_size == (48, 64)


def test_other_images_are_stored_as_a_viewer_shows_them(tmp_path):
    for name in plant_odd_files(tmp_path):
        path = tmp_path / name if "\\" not in name else next(tmp_path.glob("latin*"))
        prepared = prepare_image(record(str(path)), OutputOptions())
        assert not isinstance(prepared, Reject), (name, prepared)
        stored = open_image(prepared.encoded)
        assert stored.mode in ("RGB", "L")
        assert stored.format in ("JPEG", "PNG", "WEBP")
        shown = to_rgb(stored)
        assert (shown.height, shown.width) == prepared.stored_size
        assert (np.asarray(shown) == np.asarray(prepared.image)).all()
    rotated = prepare_image(record(str(tmp_path / "rotated.jpg")), OutputOptions())
    assert rotated.stored_size == (80, 60)


def test_every_bad_file_is_rejected_with_a_reason(tmp_path):
    names = plant_bad_files(tmp_path)
    assert len(names) >= 20
    for name in names:
        result = prepare_image(record(str(tmp_path / name)), OutputOptions())
        assert isinstance(result, Reject), name
        assert len(result.reason) > 8
    for name, reason in {
        "empty.jpg": "is empty",
        "truncated.jpg": "truncated",
        "bomb.png": "an image that claims more",
        "error_page.jpg": "none of the formats JPEG",
        "postscript.jpg": "none of the formats JPEG",
        "broken_link.jpg": "does not exist",
        "pipe.jpg": "is not a file",
        "one_pixel.png": "at least 16 pixels, got 1 x 1",
        "not_a_number.tif": r"in [0, 1], got [nan, nan]",
    }.items():
        assert reason in prepare_image(record(str(tmp_path / name)), OutputOptions()).reason


def test_limits():
    content = encode(photograph(0, 64, 48))
    assert "at most 3000 pixels, got 64 x 48" in prepare_image(record(content), OutputOptions(max_pixels=3000)).reason
    assert "at least 50 pixels" in prepare_image(record(content), OutputOptions(min_side=50)).reason
    assert prepare_image(record(None), OutputOptions()).reason == "has no image"
    assert prepare_image(record(b"", error="was lost"), OutputOptions()).reason == "was lost"


@pytest.mark.parametrize(
    ("name", "value"),
    [("label_stride", 0), ("label_stride", 17), ("shortest_edge", 8), ("jpeg_quality", 101), ("rows_per_shard", 2.5)],
)
def test_options_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected an integer in"):
        OutputOptions(**{name: value})


def test_large_images_are_made_smaller():
    prepared = prepare_image(record(encode(photograph(0, 200, 100), "PNG")), OutputOptions(shortest_edge=50))
    assert prepared.stored_size == (50, 100)
    assert open_image(prepared.encoded).size == (100, 50)
    assert prepared.image.size == (200, 100)
    small = encode(photograph(0, 64, 48))
    assert prepare_image(record(small), OutputOptions(shortest_edge=50)).encoded == small


def test_an_image_too_long_for_jpeg_is_stored_all_the_same():
    image = Image.new("RGB", (70_000, 20), "red")
    prepared = prepare_image(record(encode(image, "PNG")), OutputOptions(shortest_edge=19))
    assert open_image(prepared.encoded).size == (66_500, 19)


def test_a_row_follows_the_data_contract():
    prepared = prepare_image(record(encode(photograph(0, 64, 48)), label=3), OutputOptions())
    semantic = np.zeros((48, 64), np.int32)
    semantic[:, 32:] = 2
    semantic[:10] = -100
    instance = np.zeros((48, 64), np.int32)
    instance[20:30, 10:20], instance[20:30, 40:60] = 5, 9
    row = build_row(prepared, LabelMaps(semantic, instance), 3, OutputOptions(label_stride=2))
    assert row["semantic_classes"] == [0, 2]
    assert row["label"] == 3
    assert row["image_id"] == "id"
    stored = to_label_map(open_image(row["instance"]))
    assert stored.shape == (24, 32)
    assert np.unique(stored).tolist() == [0, 1, 2]
    assert (expand_label_map(to_label_map(open_image(row["semantic"])), (48, 64)) == semantic).all()
    assert build_row(prepared, LabelMaps(semantic, None), 3, OutputOptions())["instance"] is None
    with pytest.raises(ValueError, match=r"semantic: expected class ids in \[0, 2\), got 2"):
        build_row(prepared, LabelMaps(semantic, instance), 2, OutputOptions())
