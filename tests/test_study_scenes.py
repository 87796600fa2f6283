"""The study's scenes: made of files in the layouts of COCO and CamVid, loaded, and scored by known answers."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def scripts(repository, monkeypatch):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(repository / "benchmarks/representation"))
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(repository / "benchmarks")):
            del sys.modules[name]


# Making the files


def rectangle(left, top, width, height):
    return [[left, top, left + width, top, left + width, top + height, left, top + height]]


def run_lengths(mask):
    """COCO's uncompressed run lengths: by columns, zeros first."""
    flat = np.concatenate([[0], mask.T.ravel(), [2]])
    changes = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], changes]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def filled(size, *boxes):
    found = np.zeros(size, dtype=np.int64)
    for value, left, top, width, height in boxes:
        found[top : top + height, left : left + width] = value
    return found


@pytest.fixture
def public_files(tmp_path):
    """Two photographs of COCO's train2017 and val2017, and one of CamVid's test part."""
    categories = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}, {"id": 44, "name": "bottle"}]
    panoptic = [{**one, "isthing": 1} for one in categories] + [{"id": 187, "name": "sky", "isthing": 0}]
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    # 600 x 512 pixels become 300 x 256.
    size = (512, 600)
    bottle, crowd = filled(size, (1, 500, 400, 20, 40)), filled(size, (1, 0, 480, 200, 32))
    speck = filled(size, (1, 10, 10, 1, 1))
    objects = [
        {"category_id": 44, "segmentation": run_lengths(speck)},  # gone in the smaller map, and its number with it
        {"category_id": 1, "segmentation": rectangle(120, 120, 40, 80)},  # listed before the car that it lies over
        {"category_id": 3, "segmentation": rectangle(100, 100, 200, 200)},
        {"category_id": 44, "segmentation": run_lengths(bottle)},
        {"category_id": 1, "segmentation": run_lengths(crowd), "iscrowd": 1},
    ]
    segments = filled(size, (70001, 0, 0, 600, 200), (5, 100, 100, 100, 100), (6, 300, 300, 50, 60))
    infos = [
        {"id": 70001, "category_id": 187},
        {"id": 5, "category_id": 3},
        {"id": 6, "category_id": 1, "iscrowd": 1},
    ]
    for part, number in (("train2017", 25), ("val2017", 30)):
        (coco / part).mkdir()
        (coco / "annotations" / f"panoptic_{part}").mkdir()
        name = f"{number:012d}"
        Image.new("RGB", size[::-1], (90, 30, number)).save(coco / part / f"{name}.jpg")
        colours = np.stack([segments % 256, segments // 256 % 256, segments // 65536], axis=-1).astype(np.uint8)
        Image.fromarray(colours).save(coco / f"annotations/panoptic_{part}/{name}.png")
        images = [{"id": number, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]}]
        found = [{"id": n, "image_id": number, "iscrowd": 0, **one} for n, one in enumerate(objects)]
        maps = [{"image_id": number, "file_name": f"{name}.png", "segments_info": infos}]
        for kind, names, entries in (("instances", categories, found), ("panoptic", panoptic, maps)):
            content = {"categories": names, "images": images, "annotations": entries}
            (coco / f"annotations/{kind}_{part}.json").write_text(json.dumps(content))
    for folder in ("test", "testannot"):
        (tmp_path / "camvid" / folder).mkdir(parents=True)
    Image.new("RGB", (480, 360), (9, 99, 199)).save(tmp_path / "camvid/test/0001TP_000001.png")
    # Two cars that touch at a corner, one apart; a pedestrian of 63 pixels; a cyclist, a wall; unlabelled pixels.
    labels = filled((360, 480), (8, 30, 30, 30, 30), (8, 60, 60, 30, 30), (8, 300, 60, 30, 30), (9, 150, 150, 9, 7))
    labels += filled((360, 480), (10, 400, 20, 8, 8), (1, 200, 200, 60, 60), (11, 0, 330, 480, 30))
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "camvid/testannot/0001TP_000001.png")
    both = ["train2017/000000000025", "val2017/000000000030"]
    split = {
        "coco": {
            "things_from_panoptic": both[1:],
            "files": {"coco_things_train": both, "coco_panoptic_val": both[:1]},
        },
        "camvid": {"camvid_train": ["0001TP_000001"]},
    }
    (tmp_path / "split.json").write_text(json.dumps(split))
    return ["--coco", str(coco), "--camvid", str(tmp_path / "camvid"), "--split", str(tmp_path / "split.json")]


def maps_of(row):
    return tuple(np.asarray(row[name]) for name in ("semantic", "instance"))


def test_the_scenes_are_made_of_the_public_files(scripts, public_files, tmp_path):
    import build_scenes

    build_scenes.main([*public_files, "--output", str(tmp_path / "out")])
    things, panoptic, camvid = (
        datasets.load_dataset("parquet", data_files=str(tmp_path / f"out/{name}.parquet"), split="train")
        for name in ("coco_things_train", "coco_panoptic_val", "camvid_train")
    )
    assert things["image_id"] == ["coco_000000000025", "coco_000000000030"]
    assert things.column_names == ["image", "semantic", "instance", "label", "image_id"]
    assert things["label"] == [-1, -1]
    assert things[0]["image"].size == (300, 256)
    assert np.abs(np.asarray(things[0]["image"]).astype(int) - (90, 30, 25)).max() < 6
    semantic, instance = maps_of(things[0])
    expected = filled((256, 300), (2, 50, 50, 100, 100), (1, 60, 60, 20, 40), (3, 250, 200, 10, 20))
    assert (semantic == expected + filled((256, 300), (1, 0, 240, 100, 16))).all()
    order = [1, 2, 3]  # of the annotations
    numbers = filled(
        (256, 300), (order[1], 50, 50, 100, 100), (order[0], 60, 60, 20, 40), (order[2], 250, 200, 10, 20)
    )
    assert (instance == numbers + filled((256, 300), (255, 0, 240, 100, 16))).all()
    # Without polygons: the things of the panoptic map.
    semantic, instance = maps_of(things[1])
    assert (semantic == filled((256, 300), (2, 50, 50, 50, 50), (1, 150, 150, 25, 30))).all()
    assert (instance == filled((256, 300), (1, 50, 50, 50, 50), (255, 150, 150, 25, 30))).all()
    semantic, instance = maps_of(panoptic[0])
    regions = ((255, 0, 0, 300, 256), (4, 0, 0, 300, 100), (2, 50, 50, 50, 50), (1, 150, 150, 25, 30))
    assert (semantic == filled((256, 300), *regions)).all()
    assert (instance == filled((256, 300), (1, 50, 50, 50, 50), (255, 150, 150, 25, 30))).all()
    semantic, instance = maps_of(camvid[0])
    assert semantic.shape == (256, 341)
    full = np.ix_(*((2 * np.arange(side) + 1) * own // (2 * side) for side, own in ((256, 360), (341, 480))))
    boxes = ((8, 30, 30, 30, 30), (8, 60, 60, 30, 30), (8, 300, 60, 30, 30), (9, 150, 150, 9, 7), (10, 400, 20, 8, 8))
    labels = filled((360, 480), *boxes, (1, 200, 200, 60, 60), (255, 0, 330, 480, 30))
    assert (semantic == labels[full]).all()
    ids = (1, 1, 2, 255, 3)
    assert (instance == filled((360, 480), *((n, *box[1:]) for n, box in zip(ids, boxes)))[full]).all()


def test_what_is_missing_is_named(scripts, public_files, tmp_path):
    import build_scenes

    command = [*public_files, "--output", str(tmp_path / "out")]
    (tmp_path / "coco/val2017/000000000030.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"000000000030.jpg: expected a photograph"):
        build_scenes.main(command)
    (tmp_path / "camvid/test/0001TP_000001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"0001TP_000001.png: expected a photograph"):
        build_scenes.main(command)


def real(shared_data, name):
    return datasets.load_dataset("parquet", data_files=str(shared_data / f"{name}.parquet"), split="train")


def test_the_split_is_that_of_the_files_used(scripts, shared_data):
    from build_data import SPLIT

    split = json.loads(SPLIT.read_text(encoding="utf-8"))
    coco = split["coco"]["files"]
    assert len(coco) + len(split["camvid"]) == 6
    for name, photographs in {**coco, **split["camvid"]}.items():
        source = name.partition("_")[0]
        assert real(shared_data, name)["image_id"] == [f"{source}_{one.split('/')[-1]}" for one in photographs]
    # Maps of things that are those of the panoptic map, and only these.
    for part in ("train", "val"):
        things = {row["image_id"]: row for row in real(shared_data, f"coco_things_{part}")}
        names = {one.split("/")[1]: one for one in coco[f"coco_panoptic_{part}"]}
        for row in real(shared_data, f"coco_panoptic_{part}"):
            regions, instance = maps_of(row)
            semantic, numbers = maps_of(things[row["image_id"]])
            same = (np.where(regions <= 80, regions, 0) == semantic).all() and (instance == numbers).all()
            assert same == (names[row["image_id"][5:]] in split["coco"]["things_from_panoptic"])


def test_connected_regions_are_those_of_the_real_files(scripts, shared_data):
    from build_scenes import MIN_REGION, connected_regions

    agreed = []
    for row in real(shared_data, "camvid_val").select(range(0, 101, 10)):
        semantic, instance = maps_of(row)
        # Regions of the smaller maps, where thin ones may break.
        found = connected_regions(semantic.astype(int), MIN_REGION * semantic.size / (480 * 360))
        found[found == -100] = 255
        agreed.append([(found == 0) == (instance == 0), (found == 255) == (instance == 255)])
        assert abs(len(np.unique(found)) - len(np.unique(instance))) <= 3
    assert np.all([one for one, _ in agreed])
    assert np.mean([one for _, one in agreed]) > 0.9995


# Loading


def picture(size, boxes, ids):
    image = Image.new("RGB", size, (120, 120, 120))
    maps = [np.zeros(size[::-1], dtype=np.uint8) for _ in range(2)]
    for number, (left, top, width, height) in enumerate(boxes, start=1):
        image.paste((20 * number, 200, 30), (left, top, left + width, top + height))
        for own, value in zip(maps, (ids[number - 1], number)):
            own[top : top + height, left : left + width] = value
    return image, *map(Image.fromarray, maps)


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture
def folder(tmp_path, scripts):
    """Six small files: photograph `b` has a panoptic map, too."""
    from build_data import write

    boxes = [(20, 30, 90, 80), (150, 110, 100, 90)]
    rows = {
        "coco_things": {"a": (1, 17), "b": (1, 80), "c": (3, 3)},
        "coco_panoptic": {"b": (1, 133)},
        "camvid": {"d": (8, 255), "e": (10, 2)},
    }
    data = tmp_path / "data"
    data.mkdir()
    for name, photographs in rows.items():
        for part in ("train", "val"):
            made = []
            for image_id, ids in photographs.items():
                image, semantic, instance = map(encoded, picture((320, 240), boxes, ids))
                maps = {"semantic": semantic, "instance": instance}
                made.append({"image": image, **maps, "label": -1, "image_id": image_id})
            write(data / f"{name}_{part}.parquet", made, len(made), None, maps=True)
    return data


def test_the_collection_is_a_labelled_dataset(folder, tmp_path):
    """Classes of all sources under one name each; photographs without maps have none, and held-out ones stay out."""
    import build_collection
    from build_data import write

    from c2fmae_hf.data.dataset import C2FMAEDataset
    from c2fmae_hf.data.rows import semantic_id2label
    from c2fmae_hf.data.transforms import evaluation_transform

    image, semantic, instance = map(encoded, picture((96, 96), [(20, 30, 40, 40), (5, 5, 10, 10)], (5, 9)))
    stl10 = {"image": image, "semantic": semantic, "instance": instance, "label": 4}
    for name in ("train", "test", "val"):
        rows = [{**stl10, "image_id": f"stl10_{name}"}]
        write(folder / f"stl10_seg_{name}.parquet", rows, 1, None, maps=True)
    rows = [{"image": image, "label": 3, "image_id": "caltech"}]
    write(folder / "caltech101_train-00000-of-00001.parquet", rows, 1, ["w", "x", "y", "z"], maps=False)
    build_collection.main(["--data", str(folder), "--output", str(tmp_path / "out")])
    splits = datasets.load_dataset(str(tmp_path / "out"))
    ids = {split: rows["image_id"] for split, rows in splits.items()}
    assert ids["train"] == ["stl10_train", "stl10_test", "b", "a", "c", "d", "e", "caltech"]
    assert ids["validation"] == ["stl10_val", "b", "a", "c", "d", "e"]
    names = semantic_id2label(splits["train"].features)
    assert (len(names), names[0], names[1], names[133]) == (147, "background", "person", "rug-merged")
    found = {row["image_id"]: {names[label] for label in row["semantic_classes"]} for row in splits["train"]}
    assert found["stl10_train"] == {"background", "deer", "boat"}
    assert found["a"] == {"background", "person", "dog"}
    assert found["b"] == {"background", "person", "rug-merged"}  # its panoptic map
    assert found["d"] == {"sky (CamVid)", "car (CamVid)"}
    assert found["caltech"] == set()
    samples = C2FMAEDataset(splits["train"], evaluation_transform((64, 64)), num_semantic_classes=147)
    for row, sample in zip(splits["train"], samples):
        seen = {names[label] for label in sample["semantic"].unique().tolist() if label >= 0}
        assert seen <= found[row["image_id"]]
        assert bool(seen) == (row["image_id"] != "caltech")
    (folder / "stl10_seg_test.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"stl10_seg_test\.parquet: expected the study's data"):
        build_collection.main(["--data", str(folder), "--output", str(tmp_path / "out")])


def test_scenes_are_whole_photographs_with_merged_classes(folder):
    from data import load_study_data
    from pretrain import make_trainer
    from variants import VARIANTS

    data = load_study_data(folder, "scenes")
    assert [row["image_id"] for row in data.pretraining] == ["b", "a", "c", "d", "e"]
    classes = [{0, 1, 133}, {0, 1, 17}, {0, 3}, {134, 142, 255}, {134, 144, 136}]
    assert [set(np.unique(row["semantic"])) for row in data.pretraining] == classes
    assert all(row["image"].size == (320, 240) for row in data.pretraining)
    train, test = data.scored["coco"]
    assert train.images.shape == (3, 3, 224, 224)
    # 320 x 240 becomes 299 x 224, of which columns 37 (or 38) to 261 remain; a box from 150 to 250 is at 102
    # to 196.
    row = train.semantic[0, 30].tolist()
    assert row[:25] == [0] * 25
    assert row[26:48] == [17] * 22
    assert row[50:] == [0] * 6
    assert set(np.unique(train.instance)) == {0, 1, 2}
    assert set(np.unique(data.scored["camvid"][0].semantic)) == {-100, 0, 2, 8, 10}
    assert torch.equal(train.images, test.images)
    trainer = make_trainer(VARIANTS["cascade"], 0, data, 1, folder / "run", 0, "small224", use_cpu=True)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape == (5, 3, 224, 224)
    assert trainer.model.config.num_semantic_classes == 145


# Scores of known answers


class Seeing:
    """An encoder whose tokens are the mean colour of each label cell and the patch's place."""

    config = SimpleNamespace(grid_size=(14, 14))
    device = torch.device("cpu")

    def __call__(self, pixels):
        cells = torch.nn.functional.avg_pool2d(pixels, 4).unflatten(2, (14, 4)).unflatten(4, (14, 4))
        colours = cells.permute(0, 2, 4, 3, 5, 1).reshape(len(pixels), 196, 48)
        places = torch.eye(196).expand(len(pixels), -1, -1)
        tokens = torch.cat([colours, places], dim=-1)
        return SimpleNamespace(last_hidden_state=torch.cat([tokens[:, :1], tokens], dim=1))


def masked(number):
    """Scenes with two objects, at the same places in all, and a third that is not scored."""
    from data import Masked

    semantic, instance = torch.zeros(number, 56, 56, dtype=torch.long), torch.zeros(number, 56, 56, dtype=torch.long)
    for one in range(number):
        for name, place in ((1, np.s_[4:20, 8:28]), (2, np.s_[30:50, 34:52])):
            semantic[one][place], instance[one][place] = 1 + (one + name) % 2, name
    colours = torch.tensor([[0, 0, 0], [255, 0, 0], [0, 0, 255]], dtype=torch.uint8)
    images = colours[semantic].permute(0, 3, 1, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    semantic[:, :2], instance[:, 52:] = -100, -100
    return Masked(images, semantic, instance)


@pytest.fixture
def seeing(monkeypatch):
    from c2fmae_hf import C2FMAEConfig

    monkeypatch.setattr(Seeing, "config", C2FMAEConfig(image_size=224, patch_size=16, hidden_size=48))
    return Seeing()


def test_a_linear_layer_finds_classes_and_instances(scripts, seeing):
    from protocols import judge_patches

    scores = judge_patches(seeing, masked(4), masked(2), 0, 3, with_instances=True, epochs=800)
    assert scores["accuracy"] > 0.99
    assert scores["mean_iou"] > 0.97
    assert scores["pq"] > 0.9
    assert scores["rq"] == 1
    assert scores["foreground_iou"] > 0.97
    assert scores["votes_near_centre"] > 0.97
    classes = judge_patches(seeing, masked(4), masked(2), 0, 3, epochs=2)
    assert set(classes) == {"mean_iou", "accuracy"}


def test_true_offsets_give_the_true_instances(scripts, seeing):
    from protocols import score_instances

    from c2fmae_hf.targets import instance_labels_from_map, patchify

    expected = masked(2).instance
    fields = instance_labels_from_map(expected)
    fields[:, 2] = torch.where(fields[:, 2] > 0.5, 9.0, -9.0)
    perfect = dict.fromkeys(("pq", "sq", "rq", "foreground_iou", "votes_near_centre"), 1)
    assert score_instances(seeing, patchify(fields, 4), expected) == perfect
    fields[:, :2] = 0  # every cell is its own centre
    scores = score_instances(seeing, patchify(fields, 4), expected)
    assert scores["rq"] < 0.5
    assert scores["foreground_iou"] == 1
    assert 0 < scores["votes_near_centre"] < 0.2
    fields[:, 2] = 9  # also of cells that are not scored
    assert score_instances(seeing, patchify(fields, 4), expected)["foreground_iou"] == pytest.approx(680 / (52 * 56))


def test_squares_are_grouped_by_patch(scripts):
    from protocols import to_patches

    squares = torch.arange(16).view(1, 4, 4)
    assert to_patches(squares, 2).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]


def test_layers_are_trained_on_mirrored_scenes_too(scripts, monkeypatch):
    import protocols
    from data import Masked, SceneData

    seen = []
    monkeypatch.setattr(
        protocols, "judge_patches", lambda encoder, train, *rest: seen.append((train, rest[2:])) or {"pq": 0.5}
    )
    scenes = masked(2)
    found = protocols.judge_scenes(None, SceneData([], dict.fromkeys(("coco", "camvid"), (scenes, scenes))), 0)
    assert found == {"coco_panoptic_quality": 0.5, "camvid_panoptic_quality": 0.5}
    assert [rest for _, rest in seen] == [(81, True), (11, False)]
    for train, _ in seen:
        assert isinstance(train, Masked)
        for name in ("images", "semantic", "instance"):
            part, own = getattr(train, name), getattr(scenes, name)
            assert torch.equal(part[2:], own.flip(-1))
            assert torch.equal(part[:2], own)


# The command


def test_an_encoder_that_does_not_fit_is_refused(scripts, tmp_path, capsys):
    import study

    base = ["--data", str(tmp_path)]
    assert study.parse(base).encoder == "small"
    assert study.parse([*base, "--source", "scenes"]).encoder == "small224"
    for options, words in (
        (
            ["--source", "scenes", "--encoder", "tiny"],
            "expected one of 224 pixels for --source scenes, such as small224",
        ),
        (["--encoder", "small224"], "expected one of 96 pixels for --source stl10, such as small, got 224 pixels"),
        (["--source", "scenes", "--variants", "supervised"], "have no class"),
        (["--source", "scenes", "--fine_tune"], "scenes score frozen encoders only"),
    ):
        with pytest.raises(SystemExit):
            study.parse([*base, *options])
        assert words in capsys.readouterr().err
    args = study.parse([*base, "--source", "scenes", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"--encoder small224: expected the step times of reversed"):
        study.read_ratios(args, ["mae", "reversed"])
    (tmp_path / "calibration-small224.json").write_text(json.dumps({"times_mae": {"reversed": 0.5}}))
    assert study.read_ratios(args, ["mae", "reversed"]) == {"mae": 1, "reversed": 0.5}
    # Other maps cost what annotated ones do.
    pairs = {"classical": "cascade", "classical_labels_less": "curriculum_labels_less", "reversed": "reversed"}
    assert {name: study.twin_with_annotated_maps(name) for name in pairs} == pairs
    # Measuring one variant keeps the step times of the others.
    found = {"seconds": {"cascade": 2.0}, "times_mae": {"cascade": 0.7}}
    both = study.with_others(found, tmp_path / "calibration-small224.json")
    assert both == {"seconds": {"cascade": 2.0}, "times_mae": {"reversed": 0.5, "cascade": 0.7}}


def test_runs_in_other_settings_are_other_runs(scripts, tmp_path, capsys):
    """Mixed precision has a file of its own; a run that lacks fine-tuning is not taken for one with it."""
    import study
    import summarise

    base = ["--data", "x", "--epochs", "10", "--output", str(tmp_path)]
    known = {"variant": "mae", "source": "stl10", "encoder": "small", "equal": "compute", "mae_epochs": 10.0}
    (tmp_path / "mae-0-stl10-small-10.json").write_text(json.dumps({**known, "results": {}}))
    study.run(study.parse(base), None, "mae", 0, 1.0)
    assert "there already" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"scored without --fine_tune"):
        study.run(study.parse([*base, "--fine_tune"]), None, "mae", 0, 1.0)
    (tmp_path / "mae-0-stl10-small-10-bf16.json").write_text(json.dumps({**known, "bf16": True, "results": {}}))
    study.run(study.parse([*base, "--bf16"]), None, "mae", 0, 1.0)
    assert "mae-0-stl10-small-10-bf16.json: there already" in capsys.readouterr().out
    assert set(summarise.load(tmp_path)) == {"study-stl10-small-10", "study-stl10-small-10-bf16"}
    runs = [{**known, "seed": seed, "images": images, "results": {}} for seed, images in ((0, 640), (1, 320))]
    with pytest.raises(SystemExit, match=r"mae: expected runs of as many images, found \[640, 320\]"):
        summarise.summarise(runs, {})


def test_an_encoder_of_another_size_is_not_judged(scripts, tmp_path, capsys):
    import judge

    from c2fmae_hf import C2FMAEConfig, C2FMAEModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    for side, patch, words in ((112, 16, "got (112, 112) in 7 x 7"), (224, 32, None), (96, 16, "in 6 x 6 patches")):
        C2FMAEModel(C2FMAEConfig(**sizes, image_size=side, patch_size=patch)).save_pretrained(tmp_path / "encoder")
        # 7 x 7 patches of 224 pixels have 8 x 8 cells each, so that only the data are missing.
        with pytest.raises(FileNotFoundError if words is None else SystemExit, match=None if words else "coco_things"):
            judge.main(["--data", str(tmp_path), str(tmp_path / "encoder")])
        assert words is None or words in capsys.readouterr().err
    C2FMAEModel(C2FMAEConfig(**sizes, image_size=224, patch_size=16)).save_pretrained(tmp_path / "encoder")
    with pytest.raises(SystemExit):
        judge.main(["--data", str(tmp_path), str(tmp_path / "encoder"), "--fine_tune"])
    assert "scenes score frozen ones only" in capsys.readouterr().err


def test_scenes_run_are_judged_and_summarised(folder, tmp_path, capsys):
    import judge
    import study
    import summarise

    results, work = tmp_path / "results", tmp_path / "work"
    common = ["--data", str(folder), "--output", str(results)]
    command = [*common, "--source", "scenes", "--variants", "mae", "cascade", "--work", str(work), "--epochs", "7"]
    study.main([*command, "--num_workers", "0", "--equal", "steps"])
    runs = [json.loads(path.read_text()) for path in sorted(results.glob("*-0-scenes-small224-7-steps.json"))]
    assert [run["variant"] for run in runs] == ["cascade", "mae"]
    scores = {metric for metric in summarise.METRICS if metric.startswith(("coco", "camvid"))}
    for run in runs:
        assert run["steps"] == 1
        assert scores < set(run["results"])
        assert all(0 <= value <= 1 for value in run["results"].values())
    # The protocols give a saved encoder the scores of its run.
    encoder = str(work / "mae-0-scenes-small224-7-steps/encoder")
    with pytest.raises(SystemExit):
        judge.main([*common, encoder, encoder])
    judge.main([*common, encoder, "--untrained"])
    judged, untrained = (
        json.loads((results / f"encoder-{name}mae-0-scenes-small224-7-steps.json").read_text())
        for name in ("", "untrained-")
    )
    assert judged["results"] == pytest.approx(runs[1]["results"], abs=1e-3)
    assert set(untrained["results"]) == set(judged["results"])
    assert untrained["encoder"] != judged["encoder"]
    # One label per patch can be timed, whatever the size of a patch.
    timing = ["--source", "scenes", "--calibrate", "--rounds", "1", "--variants", "label_a_patch"]
    study.main([*common, *timing, "--output", str(tmp_path)])
    assert set(json.loads((tmp_path / "calibration-small224.json").read_text())["times_mae"]) == {
        "mae",
        "label_a_patch",
    }
    summarise.main(["--results", str(results), "--output", str(tmp_path / "tables")])
    text = capsys.readouterr().out
    assert "| images seen | cost of a step | COCO mean IoU | COCO panoptic quality |" in text
    assert "cascade, random masks | 1 | 0 k | 0.6" in text
    assert (tmp_path / "tables/results/study-scenes-small224-7-steps.png").stat().st_size > 1000
