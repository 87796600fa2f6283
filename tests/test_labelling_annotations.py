"""Annotation layouts: reading each of them gives the maps that it was written from."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from c2fmae_hf.images import open_image, to_label_map
from c2fmae_hf.labelling.job import label_images
from c2fmae_hf.labelling.labellers.annotations import (
    VOC_CLASSES,
    Ade20kLabeller,
    CocoInstancesLabeller,
    CocoPanopticLabeller,
    ColumnsLabeller,
    MirroredFoldersLabeller,
    VocLabeller,
)
from c2fmae_hf.labelling.records import OutputOptions
from c2fmae_hf.labelling.sources.open import open_source
from labelling_utils import encode
from testing_utils import make_rows


class Example:
    """A photograph with its maps as arrays, -100 = ignore."""

    def __init__(self, row: dict) -> None:
        self.name = row["image_id"]
        self.jpeg = row["image"]["bytes"] if row["image"]["bytes"][:2] == b"\xff\xd8" else None
        self.image = open_image(row["image"])
        self.jpeg = self.jpeg or encode(self.image)
        self.semantic = to_label_map(open_image(row["semantic"]))
        self.instance = to_label_map(open_image(row["instance"]))


def read_examples(rows: datasets.Dataset) -> list[Example]:
    for column in ("image", "semantic", "instance"):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return [Example(row) for row in rows]


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return read_examples(make_rows(6))


def write_images(folder: Path, examples: list[Example]) -> None:
    folder.mkdir(parents=True)
    for example in examples:
        (folder / f"{example.name}.jpg").write_bytes(example.jpeg)


def save_map(path: Path, label_map: np.ndarray, ignore: int = 255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(label_map == -100, ignore, label_map).astype(np.uint8)).save(path)


def write_coco(root: Path, examples: list[Example], num_classes: int) -> Path:
    """Write instances as run lengths, with gaps in category and image ids, and ignored pixels as a crowd."""
    write_images(root / "images", examples)
    images, annotations = [], []
    for index, example in enumerate(examples):
        height, width = example.semantic.shape
        entry = {"id": 100 + 7 * index, "file_name": f"{example.name}.jpg", "height": height, "width": width}
        images.append(entry)
        for instance in [*range(1, example.instance.max() + 1), -100]:
            for label in np.unique(example.semantic[example.instance == instance]):
                place = (example.instance == instance) & (example.semantic == label)
                if label <= 0:
                    continue
                run_lengths = coco_mask.encode(np.asfortranarray(place.astype(np.uint8)))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": entry["id"],
                        "category_id": 3 * int(label),
                        "iscrowd": int(instance == -100),
                        "area": int(place.sum()),
                        "segmentation": {"size": [height, width], "counts": run_lengths["counts"].decode()},
                    }
                )
    categories = [{"id": 3 * label, "name": f"thing {label}"} for label in range(1, num_classes)]
    path = root / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def write_panoptic(root: Path, examples: list[Example], things: set[int], num_classes: int) -> Path:
    write_images(root / "images", examples)
    (root / "panoptic").mkdir()
    images, annotations = [], []
    for index, example in enumerate(examples):
        segments = np.zeros(example.semantic.shape, np.int64)
        info = []

        def add(place, label, crowd, segments=segments, info=info):
            if place.any():
                identity = 70_000 + 300 * (len(info) + 1)  # needs all three channels
                segments[place] = identity
                info.append({"id": identity, "category_id": 2 * int(label) + 1, "iscrowd": crowd})

        for instance in range(1, example.instance.max() + 1):
            place = example.instance == instance
            if place.any():
                label = np.bincount(example.semantic[place & (example.semantic >= 0)]).argmax()
                add(place & (example.semantic == label), label, 0)
        for label in np.unique(example.semantic[example.semantic >= 0]):
            here = example.semantic == label
            add(here & (example.instance == -100), label, 1)
            if label not in things:
                add(here & (example.instance == 0), label, 0)
        colours = np.stack([segments % 256, segments // 256 % 256, segments // 65536], axis=-1).astype(np.uint8)
        Image.fromarray(colours).save(root / "panoptic" / f"{example.name}.png")
        images.append({"id": index, "file_name": f"{example.name}.jpg"})
        annotations.append({"image_id": index, "file_name": f"{example.name}.png", "segments_info": info})
    categories = [
        {"id": 2 * label + 1, "name": f"class {label}", "isthing": int(label in things)}
        for label in range(num_classes)
    ]
    path = root / "panoptic.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def label(labeller, source, output: Path) -> dict[str, dict]:
    """Rows of the finished dataset by file name, with maps as arrays."""
    summary = label_images(source, labeller, output, options=OutputOptions(label_stride=1))
    assert summary.rejects == 0
    rows = datasets.load_dataset(str(output), split="train")
    assert rows.features["semantic_classes"].feature.names == list(labeller.id2label.values())
    for column in ("image", "semantic", "instance"):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return {
        Path(row["image_id"]).stem: {
            column: to_label_map(open_image(row[column])) for column in ("semantic", "instance") if row[column]
        }
        for row in rows
    }


def assert_same(found: dict, examples: list[Example], semantic_change=lambda semantic: semantic) -> None:
    assert set(found) == {example.name for example in examples}
    for example in examples:
        assert (found[example.name]["semantic"] == semantic_change(example.semantic)).all()
        assert (found[example.name]["instance"] == example.instance).all()


def drop_ignored(examples: list[Example]) -> list[Example]:
    """Set ignored pixels to 0, for formats that cannot mark them."""
    for example in examples:
        example.semantic = np.where(example.semantic == -100, 0, example.semantic)
        example.instance = np.where(example.semantic == 0, 0, example.instance)
        ids = np.unique(example.instance)
        example.instance = np.searchsorted(ids[ids > 0], example.instance, side="right")
    return examples


def test_coco_instances(tmp_path):
    examples = drop_ignored(read_examples(make_rows(6)))
    labeller = CocoInstancesLabeller(tmp_path / "images", write_coco(tmp_path, examples, 5))
    assert labeller.id2label == {0: "background", **{i: f"thing {i}" for i in range(1, 5)}}
    found = label(labeller, labeller.source(), tmp_path / "out")
    assert_same(found, examples)


def test_coco_polygons_crowds_and_overlaps(tmp_path):
    write_images(tmp_path / "images", read_examples(make_rows(1)))
    square = [[4, 4, 28, 4, 28, 28, 4, 28]]
    inside = [[10, 10, 20, 10, 20, 20, 10, 20]]
    content = {
        "images": [{"id": 1, "file_name": "r0.jpg", "height": 48, "width": 48}],
        "categories": [{"id": 9, "name": "box"}, {"id": 4, "name": "lid"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 4, "iscrowd": 0, "segmentation": inside, "area": 100},
            {"id": 2, "image_id": 1, "category_id": 9, "iscrowd": 0, "segmentation": square, "area": 576},
            {
                "id": 3,
                "image_id": 1,
                "category_id": 9,
                "iscrowd": 1,
                "area": 480,
                "segmentation": {"size": [48, 48], "counts": [48 * 38, 48 * 10]},
            },
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    labeller = CocoInstancesLabeller(tmp_path / "images", tmp_path / "instances.json")
    assert labeller.id2label == {0: "background", 1: "lid", 2: "box"}
    maps = label(labeller, labeller.source(), tmp_path / "out")["r0"]
    # The smaller lid covers the larger box, although it comes first.
    assert (maps["semantic"][15, 15], maps["instance"][15, 15]) == (1, 1)
    assert (maps["semantic"][6, 6], maps["instance"][6, 6]) == (2, 2)
    assert (maps["semantic"][30, 45], maps["instance"][30, 45]) == (2, -100)
    assert (maps["semantic"][40, 2], maps["instance"][40, 2]) == (0, 0)


def test_coco_panoptic(tmp_path):
    examples = drop_ignored(read_examples(make_rows(6)))
    for example in examples:
        example.semantic[-3:] = -100  # unlabelled
        example.instance[-3:] = 0
        example.instance[20:22, :5] = np.where(example.semantic[20:22, :5] > 0, -100, 0)  # a crowd
        ids = np.unique(example.instance[example.instance > 0])
        numbered = np.searchsorted(ids, example.instance, side="right")
        example.instance = np.where(example.instance == -100, -100, numbered)
    path = write_panoptic(tmp_path, examples, things={1, 2, 3, 4}, num_classes=5)
    labeller = CocoPanopticLabeller(tmp_path / "images", path)
    assert_same(label(labeller, labeller.source(), tmp_path / "out"), examples)


def test_voc(tmp_path, examples):
    write_images(tmp_path / "JPEGImages", examples)
    write_images(tmp_path / "more", examples[:1])
    (tmp_path / "more" / "r0.jpg").rename(tmp_path / "JPEGImages" / "without_masks.jpg")
    for example in examples:
        save_map(tmp_path / "SegmentationClass" / f"{example.name}.png", example.semantic)
        save_map(tmp_path / "SegmentationObject" / f"{example.name}.png", example.instance)
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("".join(f"{e.name}\n" for e in examples))
    labeller = VocLabeller(tmp_path, "val")
    assert len(labeller.id2label) == len(VOC_CLASSES) == 21
    assert_same(label(labeller, labeller.source(), tmp_path / "out"), examples)


@pytest.mark.parametrize("has_instances", [True, False])
def test_ade20k(tmp_path, examples, has_instances):
    write_images(tmp_path / "images" / "validation", examples)
    for example in examples:
        path = f"validation/{example.name}.png"
        save_map(tmp_path / "annotations" / path, example.semantic + 1 + 99 * (example.semantic < 0), ignore=0)
        (tmp_path / "annotations" / path).unlink()
        save_map(tmp_path / "annotations" / path, np.where(example.semantic == -100, 0, example.semantic + 1))
        if has_instances:
            (tmp_path / "annotations_instance" / "validation").mkdir(parents=True, exist_ok=True)
            channels = np.stack([example.semantic % 100, example.instance, 0 * example.instance], axis=-1)
            Image.fromarray(channels.astype(np.uint8)).save(tmp_path / "annotations_instance" / path)
    lines = ["Idx\tRatio\tTrain\tVal\tName", *(f"{i + 1}\t0.1\t9\t9\tname {i}, other" for i in range(150))]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    labeller = Ade20kLabeller(tmp_path, "validation")
    assert labeller.id2label[149] == "name 149"
    found = label(labeller, labeller.source(), tmp_path / "out")
    if has_instances:
        assert_same(found, examples)
    else:
        assert all("instance" not in maps for maps in found.values())


def test_mirrored_folders(tmp_path, examples):
    write_images(tmp_path / "images" / "deep" / "er", examples)
    for example in examples:
        save_map(tmp_path / "semantic" / "deep" / "er" / f"{example.name}.png", example.semantic)
        save_map(tmp_path / "instance" / "deep" / "er" / f"{example.name}.png", example.instance)
    with pytest.raises(FileNotFoundError, match=r"names of the classes in .*classes\.txt"):
        MirroredFoldersLabeller(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"names of the classes in .*classes\.txt as UTF-8, got: "):
        MirroredFoldersLabeller(tmp_path)
    (tmp_path / "classes.txt").write_text("ground\nred\nred\n\nblue\n")
    labeller = MirroredFoldersLabeller(tmp_path)
    # A ClassLabel does not accept a name twice.
    assert list(labeller.id2label.values()) == ["ground", "red", "red (2)", "class 3", "blue"]
    assert_same(label(labeller, labeller.source(), tmp_path / "out"), examples)


def test_columns_of_a_dataset(tmp_path, examples):
    make_rows(6).to_parquet(tmp_path / "rows.parquet")
    labeller = ColumnsLabeller(dict(enumerate("abcde")))
    source = open_source(str(tmp_path / "rows.parquet"), columns=labeller.columns)
    assert_same(label(labeller, source, tmp_path / "out"), examples)
    # A row may have no instances.
    rows = make_rows(3)
    columns = {name: rows.with_format("arrow")[:][name].to_pylist() for name in rows.column_names}
    columns["instance"][1] = None
    datasets.Dataset.from_dict(columns, features=rows.features).to_parquet(tmp_path / "some.parquet")
    source = open_source(str(tmp_path / "some.parquet"), columns=labeller.columns)
    found = label(labeller, source, tmp_path / "some")
    both = {"semantic", "instance"}
    assert [set(maps) for maps in found.values()] == [both, {"semantic"}, both]


def test_images_without_annotation_or_with_one_of_another_size_are_rejected(tmp_path, examples):
    write_images(tmp_path / "images", examples)
    for example in examples[2:]:
        save_map(tmp_path / "semantic" / f"{example.name}.png", example.semantic)
    save_map(tmp_path / "semantic" / "r1.png", examples[1].semantic[:-8])
    wrong_class = examples[2].semantic.copy()
    wrong_class[3, 3] = 77
    save_map(tmp_path / "semantic" / "r2.png", wrong_class)
    Image.new("RGB", (48, 48)).save(tmp_path / "semantic" / "r3.png")
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne")
    labeller = MirroredFoldersLabeller(tmp_path)
    summary = label_images(labeller.source(), labeller, tmp_path / "out")
    assert (summary.rows, summary.rejects) == (2, 4)
    reasons = {
        entry["image_id"]: entry["reason"]
        for entry in map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    }
    assert "has no annotation" in reasons["r0.jpg"]
    assert "r1.png: expected the image's size 48x48 (width x height)" in reasons["r1.jpg"]
    assert "expected class ids in [0, 5), got 77" in reasons["r2.jpg"]
    assert "expected a single-channel" in reasons["r3.jpg"]


def test_a_file_that_is_not_coco_json(tmp_path):
    (tmp_path / "a.json").write_text('{"images": 3}')
    with pytest.raises(ValueError, match=r"annotations: expected COCO's instances format in .*a\.json"):
        CocoInstancesLabeller(tmp_path, tmp_path / "a.json")


# --- the annotated sets of real photographs


def load_shared(shared_data: Path, name: str) -> list[Example]:
    rows = datasets.load_dataset("parquet", data_files=str(shared_data / name), split="train")
    return read_examples(rows)


def test_real_coco_instances(tmp_path, shared_data):
    examples = load_shared(shared_data, "coco_things_val.parquet")
    labeller = CocoInstancesLabeller(tmp_path / "images", write_coco(tmp_path, examples, 81))
    assert_same(label(labeller, labeller.source(), tmp_path / "out"), examples)


def test_real_coco_panoptic(tmp_path, shared_data):
    examples = load_shared(shared_data, "coco_panoptic_val.parquet")
    path = write_panoptic(tmp_path, examples, things=set(range(1, 81)), num_classes=134)
    labeller = CocoPanopticLabeller(tmp_path / "images", path)
    assert_same(label(labeller, labeller.source(), tmp_path / "out"), examples)


@pytest.mark.parametrize(
    "name",
    [
        "pennfudan_val",
        pytest.param("camvid_val", marks=pytest.mark.slow),
        pytest.param("stl10_seg_val", marks=pytest.mark.slow),
    ],
)
def test_real_photographs_in_mirrored_folders(tmp_path, shared_data, name):
    examples = load_shared(shared_data, f"{name}.parquet")[:100]
    write_images(tmp_path / "images", examples)
    for example in examples:
        save_map(tmp_path / "semantic" / f"{example.name}.png", example.semantic)
        save_map(tmp_path / "instance" / f"{example.name}.png", example.instance)
    (tmp_path / "classes.txt").write_text("\n".join(f"class {i}" for i in range(11)))
    labeller = MirroredFoldersLabeller(tmp_path)
    assert_same(label(labeller, labeller.source(), tmp_path / "out"), examples)


@pytest.mark.slow
def test_real_photographs_in_columns(tmp_path, shared_data):
    for name in ("coco_things_val", "coco_panoptic_val"):
        labeller = ColumnsLabeller({i: f"class {i}" for i in range(134)})
        source = open_source(str(shared_data / f"{name}.parquet"), columns=labeller.columns)
        assert_same(label(labeller, source, tmp_path / name), load_shared(shared_data, f"{name}.parquet"))


# --- annotations that do not fit


def rejected(labeller, output: Path) -> dict[str, str]:
    """Reasons of rejection by image name."""
    label_images(labeller.source(), labeller, output)
    lines = (output / "rejects.jsonl").read_text().splitlines()
    return {entry["image_id"]: entry["reason"] for entry in map(json.loads, lines)}


PANOPTIC = {
    "an unknown category": lambda entry, colours: entry["segments_info"][0].update(category_id=99),
    "a category that is a list": lambda entry, colours: entry["segments_info"][0].update(category_id=[1]),
    "no id": lambda entry, colours: entry["segments_info"][0].pop("id"),
    "an id as text": lambda entry, colours: entry["segments_info"][0].update(id="70300"),
    "an id of 40 bits": lambda entry, colours: entry["segments_info"][0].update(id=1 << 40),
    "an id twice": lambda entry, colours: entry["segments_info"].append(dict(entry["segments_info"][0])),
    "a segment that is not drawn": lambda entry, colours: entry["segments_info"].append({"id": 9, "category_id": 1}),
    "a drawn segment that is not listed": lambda entry, colours: entry["segments_info"].pop(),
    "segments that are no list": lambda entry, colours: entry.update(segments_info="none"),
    "a file elsewhere": lambda entry, colours: entry.update(file_name="../panoptic/r0.png"),
    "no file": lambda entry, colours: entry.pop("file_name"),
    "a file that is not there": lambda entry, colours: entry.update(file_name="other.png"),
    "greys": lambda entry, colours: Image.open(colours).convert("L").save(colours),
    "another size": lambda entry, colours: Image.open(colours).crop((0, 0, 40, 48)).save(colours),
    "a huge one": lambda entry, colours: Image.new("RGB", (9000, 9000)).save(colours),
    "a JPEG": lambda entry, colours: Image.open(colours).save(colours, "JPEG"),
    "half a file": lambda entry, colours: colours.write_bytes(colours.read_bytes()[:200]),
}


@pytest.mark.parametrize("change", PANOPTIC.values(), ids=list(PANOPTIC))
def test_an_invalid_panoptic_entry_rejects_only_its_image(tmp_path, change):
    examples = drop_ignored(read_examples(make_rows(3)))
    path = write_panoptic(tmp_path, examples, things={1, 2, 3, 4}, num_classes=5)
    content = json.loads(path.read_text())
    change(content["annotations"][0], tmp_path / "panoptic" / "r0.png")
    path.write_text(json.dumps(content))
    reasons = rejected(CocoPanopticLabeller(tmp_path / "images", path), tmp_path / "out")
    assert reasons.keys() == {"r0.jpg"}
    assert (
        "expected " in reasons["r0.jpg"] or "has no annotation" in reasons["r0.jpg"] or "decode" in reasons["r0.jpg"]
    )


FILES = {
    "images that are no list": (lambda content: content.update(images=3), "images: expected a list"),
    "no categories": (lambda content: content.pop("categories"), "categories: expected a list"),
    "a category without a name": (lambda content: content["categories"][0].pop("name"), "expected categories with id"),
    "a category twice": (lambda content: content["categories"][1].update(id=1), "expected the id of categories"),
    "an image without an id": (lambda content: content["images"][0].pop("id"), "expected images with an id"),
    "a name in two spellings": (
        lambda content: content["images"][0].update(file_name="./r1.jpg"),
        "'r1.jpg' occurs 2 times",
    ),
    "a class's name that is no text": (
        lambda content: content["categories"][0].update(name="\ud800"),
        "expected categ",
    ),
    "an image twice": (lambda content: content["images"][0].update(id=1), "expected the id of images to be unique"),
    "a name twice": (lambda content: content["images"][0].update(file_name="r1.jpg"), "'r1.jpg' occurs 2 times"),
    "isthing as text": (lambda content: content["categories"][0].update(isthing="yes"), "isthing (0 or 1)"),
}


@pytest.mark.parametrize(("change", "message"), FILES.values(), ids=list(FILES))
def test_an_unreadable_annotation_file_is_refused_at_once(tmp_path, change, message):
    path = write_panoptic(tmp_path, drop_ignored(read_examples(make_rows(2))), things={1}, num_classes=5)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"annotations: expected COCO's panoptic format in .*panoptic\.json") as error:
        CocoPanopticLabeller(tmp_path / "images", path)
    assert message in str(error.value)


def test_annotations_of_unknown_images_are_counted_and_images_without_one_rejected(tmp_path, caplog):
    path = write_panoptic(tmp_path, drop_ignored(read_examples(make_rows(3))), things={1}, num_classes=5)
    content = json.loads(path.read_text())
    content["annotations"][0]["image_id"] = 77
    content["annotations"].append({"image_id": [3], "file_name": "r0.png"})
    content["annotations"].append(dict(content["annotations"][1]))
    path.write_text(json.dumps(content))
    labeller = CocoPanopticLabeller(tmp_path / "images", path)
    assert "left out 2 annotations of images that it does not list, the first of image_id 77" in caplog.text
    reasons = rejected(labeller, tmp_path / "out")
    assert "expected one annotation in panoptic.json, got 0" in reasons["r0.jpg"]
    assert "expected one annotation in panoptic.json, got 2" in reasons["r1.jpg"]


def test_file_names_outside_the_folder_are_not_read(tmp_path):
    examples = drop_ignored(read_examples(make_rows(3)))
    path = write_coco(tmp_path, examples, 5)
    content = json.loads(path.read_text())
    (tmp_path / "secret.jpg").write_bytes(examples[0].jpeg)
    content["images"][0]["file_name"] = "../secret.jpg"
    content["images"][1]["file_name"] = None
    path.write_text(json.dumps(content))
    reasons = rejected(CocoInstancesLabeller(tmp_path / "images", path), tmp_path / "coco")
    assert reasons.keys() == {"../secret.jpg", "image 107, without a name"}
    assert all("expected the name of a file within the folder" in reason for reason in reasons.values())

    (tmp_path / "images").rename(tmp_path / "JPEGImages")
    for example in examples:
        save_map(tmp_path / "SegmentationClass" / f"{example.name}.png", example.semantic)
        save_map(tmp_path / "SegmentationObject" / f"{example.name}.png", example.instance)
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    names = tmp_path / "ImageSets" / "Segmentation" / "train.txt"
    names.write_text("r1\n\nr2\n../secret\n")
    (reason,) = (rejects := rejected(VocLabeller(tmp_path), tmp_path / "voc")).values()
    assert rejects.keys() == {"../secret.jpg"}
    assert "expected the name of a file within the folder" in reason
    names.write_text("\ufeffr1\n")
    assert VocLabeller(tmp_path).names == ["r1"]
    names.write_text("r1\nr2\nr1\n")
    with pytest.raises(ValueError, match=r"every name in .*train\.txt to be unique, 'r1' occurs 2 times"):
        VocLabeller(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"names of images in .*test\.txt, found no such file"):
        VocLabeller(tmp_path, "test")


def test_ade20k_maps_and_names_that_do_not_fit(tmp_path, examples):
    write_images(tmp_path / "images" / "training", examples[:4])
    lines = ["Idx\tRatio\tTrain\tVal\tName", *(f"{i + 1}\t0.1\t9\t9\tname {i}, other" for i in range(150))]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    folder, instances = tmp_path / "annotations" / "training", tmp_path / "annotations_instance" / "training"
    for example in examples[:4]:
        save_map(folder / f"{example.name}.png", np.where(example.semantic < 0, 255, example.semantic + 1))
        instances.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", example.image.size).save(instances / f"{example.name}.png")
    save_map(folder / "r1.png", np.full(examples[1].semantic.shape, 151))
    Image.new("L", examples[2].image.size).save(instances / "r2.png")
    (instances / "r3.png").unlink()
    reasons = rejected(Ade20kLabeller(tmp_path), tmp_path / "out")
    assert reasons.keys() == {"r1.jpg", "r2.jpg", "r3.jpg"}
    assert "expected class ids in [0, 150), got 150" in reasons["r1.jpg"]
    assert "expected ids as colours" in reasons["r2.jpg"]
    assert "has no annotation" in reasons["r3.jpg"]
    (row,) = datasets.load_dataset(str(tmp_path / "out"), split="train").cast_column("semantic", datasets.Image(False))
    stored = to_label_map(open_image(row["semantic"]))  # 255 is not a class
    assert set(np.unique(stored)) <= {-100, 0, 1, 2, 3, 4}
    for line in ("x\t0.1\t9\t9\tname", "9000000000\t0.1\t9\t9\tname", "1"):
        (tmp_path / "objectInfo150.txt").write_text(f"{lines[0]}\n{line}\n")
        with pytest.raises(ValueError, match=r"expected class 1 and its names in .*objectInfo150\.txt"):
            Ade20kLabeller(tmp_path)
