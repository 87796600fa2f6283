"""Labellers that run models: small random models of transformers with their real processors."""

from __future__ import annotations

import json
import pickle

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from c2fmae_hf.labelling.job import label_images
from c2fmae_hf.labelling.labellers.checkpoints import find_things
from c2fmae_hf.labelling.labellers.panoptic import PanopticLabeller
from c2fmae_hf.labelling.labellers.semantic_and_masks import SemanticAndMasksLabeller, resolve_masks
from c2fmae_hf.labelling.records import OutputOptions, SourceRecord, prepare_image, resample_label_map
from c2fmae_hf.labelling.sources.folder import FolderSource
from labelling_models import MASK_GENERATORS, NAMES, UNIVERSAL, save_checkpoint
from labelling_utils import encode, photograph, write_photographs


# A random model is not confident, so accept every prediction.
ANYTHING = {"threshold": 0.0, "mask_threshold": 0.0, "overlap_mask_area_threshold": 0.0}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder, saved = tmp_path_factory.mktemp("checkpoints"), {}

    def get(kind: str) -> str:
        if kind not in saved:
            saved[kind] = str(save_checkpoint(kind, folder / kind))
        return saved[kind]

    return get


def prepare(image: Image.Image, name: str = "x") -> object:
    return prepare_image(SourceRecord(name, name, encode(image, "PNG")), OutputOptions())


@pytest.mark.parametrize("kind", UNIVERSAL)
def test_panoptic_end_to_end(kind, checkpoints, tmp_path):
    # Different sizes, so that batches are padded.
    for index, (width, height) in enumerate([(64, 48), (48, 64), (96, 40), (56, 56), (40, 40)]):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{index}.png").write_bytes(encode(photograph(index, width, height), "PNG"))
    labeller = PanopticLabeller(checkpoints(kind), thing_classes="person; 1", batch_size=2, **ANYTHING)
    assert labeller.id2label == NAMES
    assert labeller.things == {0, 1}
    summary = label_images(FolderSource(tmp_path / "photos"), labeller, tmp_path / "out")
    assert (summary.rows, summary.rejects) == (5, 0)
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert rows.features["semantic_classes"].feature.names == list(NAMES.values())
    for row in rows:
        semantic, instance = np.asarray(row["semantic"]), np.asarray(row["instance"])
        assert semantic.shape == instance.shape == (-(-row["image"].height // 2), -(-row["image"].width // 2))
        assert set(np.unique(semantic)) <= {0, 1, 2, 3, 255}
        assert ((semantic == 255) == (instance == 255)).all()
        # Things have instances, stuff has none, and an instance lies in one class.
        assert (np.isin(semantic, (0, 1)) == ((instance > 0) & (instance < 255))).all()
        for name in np.unique(instance[(instance > 0) & (instance < 255)]):
            assert len(np.unique(semantic[instance == name])) == 1
    # A pickled labeller gives the same result in another folder.
    labeller = pickle.loads(pickle.dumps(labeller))
    label_images(FolderSource(tmp_path / "photos"), labeller, tmp_path / "again")
    name = "data/train-00000-0000.parquet"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    settings = json.loads((tmp_path / "out" / ".labelling" / "train" / "job.json").read_text())["labeller"]["settings"]
    assert len(settings["weights_sha256"]["model.safetensors"]) == 64


class SeesBrightness(torch.nn.Module):
    """A fake trained model: query 0 masks bright pixels, query 1 dark ones, at a quarter of the input size."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.names = ("logits", "pred_masks") if kind == "detr" else ("class_queries_logits", "masks_queries_logits")

    def forward(self, pixel_values, **inputs):
        bright = torch.nn.functional.avg_pool2d(pixel_values.mean(dim=1, keepdim=True), 4)
        masks = torch.cat([bright - 0.1, 0.1 - bright], dim=1).sign() * 20
        classes = torch.full((len(masks), 2, len(NAMES) + 1), -20.0)
        classes[:, 0, 1] = classes[:, 1, 3] = 20
        return dict(zip(self.names, (classes, masks)))


@pytest.mark.parametrize("kind", UNIVERSAL)
def test_maps_lie_on_the_image_however_batches_are_padded(kind, checkpoints):
    """Check the processors' resizing, padding and post-processing with a model whose output is known."""
    labeller = PanopticLabeller(checkpoints(kind), thing_classes="car", batch_size=4)
    labeller.start()
    labeller.model = SeesBrightness(kind)
    batch, expected = [], []
    for width, height in ((128, 64), (64, 128), (100, 70), (64, 64)):
        pixels = np.full((height, width, 3), 90, np.uint8)
        place = np.zeros((height, width), bool)
        place[: height * 5 // 8, width // 4 : width * 3 // 4] = True
        pixels[place] = 255
        batch.append(prepare(Image.fromarray(pixels)))
        expected.append(place)
    for maps, place in zip(labeller(batch), expected):
        assert maps.semantic.shape == place.shape
        assert (maps.semantic == np.where(place, 1, 3)).mean() > 0.9
        assert (maps.instance == place).mean() > 0.9
        # Edges are where they are in the image, to a few pixels.
        rows = np.flatnonzero((maps.semantic == 1).mean(axis=1) > 0.25)
        assert abs(rows.max() + 1 - place.any(axis=1).sum()) <= 5
        columns = np.flatnonzero((maps.semantic == 1).mean(axis=0) > 0.25)
        assert abs(columns.min() - place.any(axis=0).argmax()) <= 5


def test_photographs_of_many_pixels_get_smaller_maps(checkpoints):
    labeller = PanopticLabeller(checkpoints("eomt"), thing_classes="all", map_size=50, **ANYTHING)
    labeller.start()
    (maps,) = labeller([prepare(photograph(0, 200, 100))])
    assert maps.semantic.shape == (25, 50)
    assert resample_label_map(maps.semantic, (100, 200), 2).shape == (50, 100)


@pytest.mark.parametrize("kind", MASK_GENERATORS)
def test_semantic_and_masks_end_to_end(kind, checkpoints, tmp_path):
    write_photographs(tmp_path / "photos", 3)
    labeller = SemanticAndMasksLabeller(
        checkpoints("segformer"),
        checkpoints(kind),
        thing_classes="0-2",
        points_per_side=4,
        pred_iou_thresh=-100.0,
        stability_score_thresh=0.0,
        min_purity=0.0,
        batch_size=2,
    )
    summary = label_images(FolderSource(tmp_path / "photos"), labeller, tmp_path / "out")
    assert (summary.rows, summary.rejects) == (3, 0)
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert sum(np.asarray(row["instance"]).max() for row in rows) > 0
    for row in rows:
        semantic, instance = np.asarray(row["semantic"]), np.asarray(row["instance"])
        for name in np.unique(instance[instance > 0]):
            (label,) = np.unique(semantic[instance == name])
            assert label in (0, 1, 2)


def test_overlapping_masks():
    semantic = np.zeros((10, 10), np.int32)
    semantic[:, 5:] = 1
    semantic[9] = -100
    large, small, stuff, mixed, speck = (np.zeros((10, 10), bool) for _ in range(5))
    large[0:8, 5:10] = True
    small[2:4, 6:8] = True
    stuff[0:5, 0:4] = True
    mixed[0:9, 0:10] = True
    speck[0, 5] = True
    maps = resolve_masks(semantic, [small, stuff, mixed, speck, large], frozenset({1}), min_area=2, min_purity=0.6)
    assert (maps.instance[2:4, 6:8] == maps.instance[2, 6]).all()
    assert maps.instance[2, 6] != maps.instance[6, 6] != 0
    assert maps.instance[1, 1] == 0  # stuff
    assert maps.instance[0, 5] == 0  # covered by a speck that is too small
    assert maps.instance[8, 0] == 0  # half of each class, so not an instance
    assert maps.semantic[9, 9] == -100
    # The outline of a mask corrects the semantics under it.
    wide = np.zeros((10, 10), bool)
    wide[0:8, 4:10] = True
    maps = resolve_masks(semantic, [wide], frozenset({1}), min_area=2, min_purity=0.6)
    assert maps.semantic[3, 4] == 1
    assert maps.instance[3, 4] == maps.instance[3, 9] == 1
    maps = resolve_masks(semantic, [], frozenset({1}), min_area=2, min_purity=0.6)
    assert (maps.semantic == semantic).all()
    assert not maps.instance.any()


def names(*given: str, number: int) -> dict[int, str]:
    return {i: given[i] if i < len(given) else f"other {i}" for i in range(number)}


@pytest.mark.parametrize(
    ("id2label", "number", "some_thing", "some_stuff"),
    [
        (names("person", number=133), 80, 79, 80),  # COCO panoptic
        (names("wall", number=150), 100, 149, 145),  # ADE20K
        (names("wall, partition", number=150), 100, 7, 0),
        (names("road", number=19), 8, 11, 10),  # Cityscapes
    ],
)
def test_things_of_known_datasets(id2label, number, some_thing, some_stuff):
    things = find_things(id2label, None)
    assert len(things) == number
    assert some_thing in things
    assert some_stuff not in things


def test_things_given_by_name_id_or_range():
    assert find_things(NAMES, "all") == {0, 1, 2, 3}
    assert find_things(NAMES, "none") == frozenset()
    assert find_things(NAMES, "Sky; 0-1") == {0, 1, 2}
    with pytest.raises(ValueError, match=r"thing_classes: expected which of the checkpoint's 4 classes are things"):
        find_things(NAMES, None)
    with pytest.raises(ValueError, match=r"thing_classes: expected names or ids .* got 'dog'"):
        find_things(NAMES, "person;dog")
    with pytest.raises(ValueError, match=r"thing_classes: expected ids .* got \[4, 5\]"):
        find_things(NAMES, "3-5")


def test_dtype_is_checked(checkpoints):
    with pytest.raises(ValueError, match="dtype: expected float32, bfloat16 or float16, got 'int8'"):
        PanopticLabeller(checkpoints("eomt"), thing_classes="all", dtype="int8")


def test_half_precision(checkpoints):
    labeller = PanopticLabeller(checkpoints("mask2former"), thing_classes="all", dtype="bfloat16", **ANYTHING)
    labeller.start()
    assert labeller.model.dtype == torch.bfloat16
    (maps,) = labeller([prepare(photograph(0))])
    assert maps.semantic.shape == (48, 64)
