"""COCO's entries, which are others': checked, and as masks, beside pycocotools."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import Base
from pycocotools import mask as coco_mask

from c2fmae_hf.labelling.job import label_images
from c2fmae_hf.labelling.labellers.annotations import CocoInstancesLabeller
from c2fmae_hf.transfer.objects import CocoObjects
from c2fmae_hf.utils.coco_annotations import check_image_entry, check_object, object_mask


SIZE = (40, 60)
GOOD = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 6, 20, 10], "iscrowd": 0, "area": 200}
POLYGON = [[5.0, 6.0, 25.0, 6.0, 25.0, 16.0, 5.0, 16.0]]
ODD = {
    "no segmentation": {"segmentation": None},
    "an empty one": {"segmentation": []},
    "two points": {"segmentation": [[1, 2, 3, 4]]},
    "an odd number": {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]},
    "a point at 1e9": {"segmentation": [[0, 0, 1e9, 0, 1e9, 1e9]]},
    "not a number": {"segmentation": [[0, 0, float("nan"), 0, 5, 5]]},
    "text": {"segmentation": "polygon"},
    "a nested list": {"segmentation": [[[1, 2], [3, 4], [5, 6]]]},
    "another category": {"category_id": 99, "segmentation": POLYGON},
    "no category": {"category_id": None, "segmentation": POLYGON},
    "no box": {"bbox": None, "segmentation": POLYGON},
    "a box of three": {"bbox": [1, 2, 3], "segmentation": POLYGON},
    "a negative box": {"bbox": [1, 2, -3, 4], "segmentation": POLYGON},
    "runs of another size": {"segmentation": {"size": [4, 4], "counts": [16]}},
    "runs without a size": {"segmentation": {"counts": [2400]}},
    "too many pixels": {"segmentation": {"size": [40, 60], "counts": [0, 99999]}},
    "negative runs": {"segmentation": {"size": [40, 60], "counts": [-1, 2401]}},
    "runs that are no text": {"segmentation": {"size": [40, 60], "counts": "\u00e4\u00f6"}},
    "a size that is a number": {"segmentation": {"size": 5, "counts": [2400]}},
    "a size of truth": {"segmentation": {"size": True, "counts": [2400]}},
    "counts of truth": {"segmentation": {"size": [40, 60], "counts": [True, 2399]}},
    "a point at 1e400": {"segmentation": [[0, 0, 10**400, 0, 5, 5]]},
    "a crowd in words": {"iscrowd": "0", "segmentation": POLYGON},
    "a crowd of lists": {"iscrowd": [1], "segmentation": POLYGON},
    "a box at 1e9": {"bbox": [1, 2, 1e9, 4], "segmentation": POLYGON},
    "a box at 1e400": {"bbox": [1, 2, 10**400, 4], "segmentation": POLYGON},
    "runs that end early": {"segmentation": {"size": [40, 60], "counts": "~"}},
}


@pytest.mark.parametrize("change", ODD.values(), ids=list(ODD))
def test_an_odd_entry_is_refused_before_pycocotools_sees_it(change):
    with pytest.raises(ValueError, match=r"^expected "):
        check_object({**GOOD, **change}, SIZE, {3})


def test_masks_are_those_of_pycocotools():
    generator = np.random.default_rng(0)
    for _ in range(30):
        mask = np.asfortranarray((generator.random(SIZE) > generator.random()).astype(np.uint8))
        compressed = coco_mask.encode(mask)
        flat = mask.flatten(order="F").astype(int)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]]))).tolist()
        counts = np.diff([0, *edges]).tolist()
        for written in (compressed["counts"], compressed["counts"].decode(), counts):
            annotation = {**GOOD, "segmentation": {"size": list(SIZE), "counts": written}}
            check_object(annotation, SIZE, {3})
            assert np.array_equal(object_mask(annotation, SIZE), mask)
    polygon = {**GOOD, "segmentation": POLYGON}
    check_object(polygon, SIZE, {3})
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(POLYGON, *SIZE)))
    assert np.array_equal(object_mask(polygon, SIZE), expected)
    assert expected.sum() == 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": "../../etc/x.jpg"}, "the name of a file within the folder"),
        ({"file_name": "/etc/x.jpg"}, "the name of a file within the folder"),
        ({"file_name": "a\\..\\..\\x.jpg"}, "the name of a file within the folder"),
        ({"file_name": None}, "the name of a file within the folder"),
        ({"height": None}, "a height and a width"),
        ({"width": 2.5}, "a height and a width"),
        ({"height": True}, "a height and a width"),
        ({"file_name": "a" * 300 + ".jpg"}, "at most 255 bytes"),
        ({"file_name": "\ud800.jpg"}, "the name of a file within the folder"),
        ({"file_name": "a\0.jpg"}, "the name of a file within the folder"),
        ({"file_name": "."}, "the name of a file within the folder"),
        ({"height": 0}, "a height and a width"),
        ({"height": 100000, "width": 100000}, "at most 1000 pixels"),
    ],
    ids=str,
)
def test_an_image_entry_that_leads_elsewhere_is_refused(change, message):
    entry = {"file_name": "x.jpg", "height": 10, "width": 20}
    assert check_image_entry(entry, 1000) == (10, 20)
    with pytest.raises(ValueError, match=message):
        check_image_entry({**entry, **change}, 1000)


@pytest.fixture
def coco(tmp_path):
    """A good image beside one for each odd entry: the folder and the file."""
    images, annotations = [], []
    for number, (name, change) in enumerate([("good", {"segmentation": POLYGON}), *ODD.items()], start=1):
        file = f"{name}.png"
        Image.new("RGB", (60, 40), (number, 2, 3)).save(tmp_path / file)
        images.append({"id": number, "file_name": file, "height": 40, "width": 60})
        annotations.append({**GOOD, **change, "id": number, "image_id": number})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "thing"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return tmp_path, tmp_path / "instances.json"


def test_detection_leaves_out_the_images_of_odd_entries_and_says_so(coco, caplog):
    with caplog.at_level(logging.WARNING):
        objects = CocoObjects(*coco)
    assert f"left out {len(ODD)} of {len(ODD) + 1} images: no segmentation.png: expected a segmentation" in caplog.text
    ((image, found),) = [objects[index] for index in range(len(objects))]
    assert image.size == (60, 40)
    assert found["masks"].sum() == 200


def test_labelling_rejects_the_images_of_odd_entries_alone(coco, tmp_path):
    labeller = CocoInstancesLabeller(*coco)
    summary = label_images(labeller.source(), labeller, tmp_path / "out")
    boxes = {name for name, change in ODD.items() if "bbox" in change}  # which maps do not need
    assert summary.rows == 1 + len(boxes)
    lines = (tmp_path / "out/rejects.jsonl").read_text().splitlines()
    reasons = {entry["image_id"]: entry["reason"] for entry in map(json.loads, lines)}
    assert reasons.keys() == {f"{name}.png" for name in ODD.keys() - boxes}
    assert all("expected " in reason for reason in reasons.values())


def test_a_turned_photograph_is_turned_or_refused(tmp_path):
    """Its annotations fit what a viewer shows, or nothing does."""
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    pixels = np.zeros((60, 40, 3), np.uint8)
    pixels[:30] = 255
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)  # shown as 60 x 40
    content = {"annotations": [{**GOOD, "segmentation": POLYGON}], "categories": [{"id": 3, "name": "thing"}]}
    for size, is_right in (((40, 60), True), ((60, 40), False)):
        entry = {"id": 1, "file_name": "turned.png", "height": size[0], "width": size[1]}
        (tmp_path / "file.json").write_text(json.dumps({"images": [entry], **content}))
        objects = CocoObjects(tmp_path, tmp_path / "file.json")
        if is_right:
            assert objects[0][0].size == (60, 40)
            assert np.asarray(objects[0][0])[:, 30:].min() == 255  # the photograph's top is on the right
        else:
            with pytest.raises(
                ValueError, match=r"turned\.png: expected 40 x 60 pixels, .* got 60 x 40 \(width x height as disp"
            ):
                objects[0]
