"""Detection: objects from label maps and COCO files, Mask R-CNN, Mask2Former, average precision."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torchmetrics.detection import MeanAveragePrecision
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    Mask2FormerForUniversalSegmentation,
    TrainingArguments,
    pipeline,
)

from c2fmae_hf import C2FMAEConfig, C2FMAEModel, MaskRCNNImageProcessor
from c2fmae_hf.transfer.detection import NARROW_MASK2FORMER, NARROW_MASK_RCNN, DetectionTrainer, build_mask_rcnn
from c2fmae_hf.transfer.modeling_mask_rcnn import MaskRCNNForObjectDetection, MaskRCNNOutput
from c2fmae_hf.transfer.objects import (
    CocoObjects,
    DetectionDataset,
    MapObjects,
    boxes_of,
    collate_lists,
    detection_transform,
    find_thing_classes,
    objects_from_maps,
)
from testing_utils import RECIPES, load_command, make_rows, png
from transfer_utils import DISC_CLASSES, save_discs, save_encoders


NAMES = {0: "disc", 1: "square"}
SMALL = {
    "pyramid_channels": 16,
    "num_box_convolutions": 1,
    "num_mask_convolutions": 1,
    "num_rpn_convolutions": 1,
    "box_hidden_size": 32,
    "rpn_pre_nms_top_n": 100,
    "rpn_post_nms_top_n": 50,
    "box_batch_size_per_image": 32,
    "detections_per_image": 20,
}
SMALL_MASK2FORMER = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "dim_feedforward": 32,
    "num_queries": 8,
    "train_num_points": 256,
}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    return save_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    return save_discs(tmp_path_factory.mktemp("data") / "discs")


@pytest.fixture
def example():
    return load_command("detect")


def run(example, model, data, output, *options: str, detector_options: dict | None = None) -> dict:
    return example.main(
        [
            *("--model", str(model), "--output_dir", str(output), "--image_size", "48", "--use_cpu", "true"),
            *("--detector_options", json.dumps(SMALL if detector_options is None else detector_options)),
            *("--disable_tqdm", "true", "--save_strategy", "no", "--per_device_eval_batch_size", "4"),
            *("--per_device_train_batch_size", "4", "--num_drawn", "2", "--dataset_name", str(data), *options),
        ]
    )


# Objects


def test_objects_of_maps():
    instance = np.zeros((8, 10), dtype=np.int32)
    semantic = np.zeros((8, 10), dtype=np.int32)
    instance[1:4, 2:5], semantic[1:4, 2:5] = 1, 3
    instance[5:8, 0:10], semantic[5:8, 0:10] = 2, 7
    instance[0, 9], semantic[0, 9] = -100, 3  # a crowd of class 3
    instance[0, 8], semantic[0, 8] = -100, -100  # unknown
    semantic[4, :] = 5  # stuff
    objects = objects_from_maps(semantic, instance, {3: 0, 7: 1})
    assert objects["class_labels"].tolist() == [0, 1, 0]
    assert objects["iscrowd"].tolist() == [False, False, True]
    assert objects["boxes"].tolist() == [[2, 1, 5, 4], [0, 5, 10, 8], [9, 0, 10, 1]]
    assert [int(mask.sum()) for mask in objects["masks"]] == [9, 30, 1]
    assert objects_from_maps(semantic, instance, {3: 0})["class_labels"].tolist() == [0, 0]
    nothing = objects_from_maps(np.zeros((4, 4), np.int32), np.zeros((4, 4), np.int32), {3: 0})
    assert nothing["masks"].shape == (0, 4, 4)
    assert nothing["boxes"].shape == (0, 4)


def test_thing_classes_and_names():
    rows = make_rows(6)
    classes = find_thing_classes(rows)
    assert classes == [1, 2, 3, 4]  # 0 is the background
    objects = MapObjects(rows, {class_id: DISC_CLASSES[class_id] for class_id in (2, 4)})
    assert objects.id2label == {0: "green", 1: "white"}
    image, found = objects[0]
    semantic, instance = (np.asarray(rows[0][name]) for name in ("semantic", "instance"))
    ids = [i for i in (1, 2, 3) if (instance == i).any() and np.bincount(semantic[instance == i]).argmax() in (2, 4)]
    assert len(found["masks"]) == len(ids)
    assert image.size == (48, 48)
    empty = rows.select([0]).to_list()
    empty[0]["instance"] = png(np.zeros((48, 48), dtype=np.uint8))
    with pytest.raises(ValueError, match="expected at least one instance, got none"):
        find_thing_classes(rows.from_list(empty, features=rows.features))


def test_bad_rows_are_named():
    rows = make_rows(2)
    with pytest.raises(ValueError, match=r"expected the columns \['instance'\]"):
        MapObjects(rows.remove_columns("instance"), {1: "red"})
    broken = rows.to_list()
    broken[1]["instance"] = {"bytes": b"nothing", "path": None}
    rows = rows.from_list(broken, features=rows.features)
    with pytest.raises(ValueError, match="row 1, column 'instance'"):
        MapObjects(rows, {1: "red"})[1]
    with pytest.raises(ValueError, match="row 1"):
        find_thing_classes(rows)


@pytest.fixture
def coco_folder(tmp_path):
    """Three photographs: one with a polygon and a crowd, one with overlapping outlines, one without objects."""
    generator = np.random.default_rng(0)
    crowd = np.zeros((40, 60), dtype=np.uint8, order="F")
    crowd[30:, :] = 1
    runs = coco_mask.encode(crowd)
    annotations = [
        {"image_id": 10, "category_id": 7, "segmentation": [[5, 5, 25, 5, 25, 20, 5, 20]], "iscrowd": 0},
        {"image_id": 10, "category_id": 90, "segmentation": {**runs, "counts": runs["counts"].decode()}, "iscrowd": 1},
        {"image_id": 20, "category_id": 90, "segmentation": [[0, 0, 30, 0, 30, 30, 0, 30]], "iscrowd": 0},
        {"image_id": 20, "category_id": 7, "segmentation": [[10, 10, 59, 10, 59, 39, 10, 39]], "iscrowd": 0},
    ]
    boxes = [[5, 5, 20, 15], [0, 30, 60, 10], [0, 0, 30, 30], [10, 10, 49, 29]]
    for index, (annotation, box) in enumerate(zip(annotations, boxes)):
        annotation.update(id=index + 1, bbox=box, area=box[2] * box[3])
    for split in ("train", "val"):
        (tmp_path / f"{split}2017").mkdir()
        for image_id in (10, 20, 30):
            pixels = generator.integers(0, 255, (40, 60, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{split}2017" / f"{image_id}.png")
        content = {
            "images": [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 60} for i in (10, 20, 30)],
            "annotations": annotations,
            "categories": [{"id": 90, "name": "square"}, {"id": 7, "name": "disc"}],
        }
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return tmp_path


def test_coco_files(coco_folder):
    objects = CocoObjects(coco_folder / "val2017", coco_folder / "annotations" / "instances_val2017.json")
    assert objects.id2label == {0: "disc", 1: "square"}  # in the order of COCO's ids, but without gaps
    _, first = objects[0]
    assert first["class_labels"].tolist() == [0, 1]
    assert first["iscrowd"].tolist() == [False, True]
    assert first["boxes"].tolist() == [[5, 5, 25, 20], [0, 30, 60, 40]]
    assert first["masks"][1].sum() == 600
    _, second = objects[1]
    assert (second["masks"].sum(axis=0) == 2).any()  # outlines may overlap
    assert objects[2][1]["masks"].shape == (0, 40, 60)
    content = json.loads((coco_folder / "annotations" / "instances_val2017.json").read_text())
    content["categories"] = content["categories"][:1]  # the validation split may have fewer classes
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 90]
    fewer = coco_folder / "annotations" / "fewer.json"
    fewer.write_text(json.dumps(content))
    part = CocoObjects(coco_folder / "val2017", fewer, objects)
    assert part.id2label == objects.id2label
    assert part[1][1]["class_labels"].tolist() == [1]
    content["categories"][0]["name"] = "circle"
    fewer.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"fewer\.json: expected the training split's classes"):
        CocoObjects(coco_folder / "val2017", fewer, objects)
    training = DetectionDataset(objects, detection_transform())
    assert len(training[0]["labels"]["boxes"]) == 1  # crowds are left out in training
    assert len(DetectionDataset(objects)[0]["labels"]["boxes"]) == 2


def test_augmentation_moves_boxes_with_masks():
    rows = make_rows(8)
    dataset = DetectionDataset(MapObjects(rows, dict(enumerate(DISC_CLASSES))), detection_transform(64, (0.3, 3.0)))
    numbers = set()
    for index in range(8):
        sample = dataset[index]
        labels = sample["labels"]
        assert sample["pixel_values"].shape == (3, 64, 64)
        assert labels["masks"].shape[1:] == (64, 64)
        assert torch.equal(labels["boxes"], boxes_of(labels["masks"]))
        assert len(labels["boxes"]) == len(labels["class_labels"]) == len(labels["iscrowd"])
        numbers.add(len(labels["boxes"]))
    assert len(numbers) > 1  # some objects are cut away


# Models


@pytest.mark.parametrize("kind", ["c2fmae", pytest.param("vit", marks=pytest.mark.slow)])
def test_mask_rcnn_learns_and_the_result_is_a_pipeline(example, encoders, discs, tmp_path, kind):
    options = ("--max_steps", "80", "--learning_rate", "4e-3", "--lr_scheduler_type", "cosine", "--warmup_steps", "5")
    options += ("--eval_strategy", "no", "--save_strategy", "no")
    results = run(example, encoders[kind], discs, tmp_path / "out", *options)
    assert results["results"]["bbox_map_50"] > 0.25
    assert results["results"]["segm_map_50"] > 0.25
    assert set(results["segm_map_by_class"]) <= set(DISC_CLASSES) - {"ground"}
    assert Image.open(tmp_path / "out" / "detections.png").size[0] > 300

    again = run(example, tmp_path / "out", discs, tmp_path / "again", "--evaluate_only", "true")
    assert again["results"] == pytest.approx(results["results"], abs=1e-6)

    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "out").eval()
    photo = make_rows(1, size=57)[0]["image"]  # not a multiple of the patch size
    detect = pipeline("object-detection", model=str(tmp_path / "out"), device="cpu")
    assert isinstance(detect(photo.convert("L")), list)
    found = detect(photo, threshold=0.2)
    with torch.no_grad():
        pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255
        expected = model([pixels]).detections[0]
    assert len(found) == int((expected["scores"] > 0.2).sum()) > 0
    assert found[0]["label"] == model.config.id2label[int(expected["labels"][0])]
    assert found[0]["box"]["xmin"] == int(expected["boxes"][0, 0])


def test_mask2former_by_auto_backbone(example, encoders, discs, tmp_path):
    options = ("--detector", "mask2former", "--max_steps", "60", "--learning_rate", "2e-3")
    options += ("--eval_strategy", "no", "--save_strategy", "no")
    results = run(example, encoders["c2fmae"], discs, tmp_path / "out", *options, detector_options=SMALL_MASK2FORMER)
    assert results["results"]["segm_map_50"] > 0.02
    model = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "out")
    assert type(model.model.pixel_level_module.encoder).__name__ == "C2FMAEBackbone"


def test_timm_by_changing_one_argument(example, discs, tmp_path):
    options = ("--from_scratch", "true", "--max_steps", "1", "--max_train_samples", "4", "--ema_decay", "0.9")
    results = run(example, "vit_tiny_patch16_224", discs, tmp_path / "out", *options)
    assert -1 <= results["results"]["bbox_map"] <= 1


def test_coco_folder_as_dataset(example, encoders, coco_folder, tmp_path):
    results = example.main(
        [
            *("--model", encoders["c2fmae"], "--coco_dir", str(coco_folder), "--output_dir", str(tmp_path / "out")),
            *("--image_size", "32", "--large_scale_jitter", "true", "--max_steps", "2", "--use_cpu", "true"),
            *("--detector_options", json.dumps(SMALL), "--gradient_checkpointing", "true", "--num_drawn", "0"),
        ]
    )
    assert set(results["segm_map_by_class"]) == {"disc", "square"}


def test_a_fresh_process_loads_detectors(processes, encoders, tmp_path):
    """Importing the package is enough, also for another model's backbone."""
    build_mask_rcnn(encoders["vit"], NAMES, image_size=32, **SMALL).save_pretrained(tmp_path)
    code = (
        "import sys, c2fmae_hf; from transformers import AutoModelForObjectDetection as Auto\n"
        "print(type(Auto.from_pretrained(sys.argv[1]).backbone).__name__)"
    )
    assert processes.run(code, tmp_path).out.strip() == "EncoderBackbone"


def test_training_takes_images_without_objects(encoders):
    model = build_mask_rcnn(encoders["c2fmae"], NAMES, image_size=32, max_image_size=64, **SMALL).train()
    nothing = {
        "boxes": torch.zeros((0, 4)),
        "class_labels": torch.zeros(0, dtype=torch.long),
        "masks": torch.zeros((0, 30, 50), dtype=torch.uint8),
    }
    outputs = model([torch.rand(3, 30, 50)], [nothing])
    outputs.loss.backward()
    assert torch.isfinite(outputs.loss)
    assert set(outputs.losses) == {
        "loss_classifier",
        "loss_box_reg",
        "loss_mask",
        "loss_objectness",
        "loss_rpn_box_reg",
    }
    with pytest.raises(ValueError, match="labels: expected boxes, class_labels and masks"):
        model([torch.rand(3, 30, 50)])


def test_boxes_stay_exact_in_mixed_precision(encoders):
    """Boxes in bfloat16 would be off by several pixels."""
    model = build_mask_rcnn(encoders["c2fmae"], NAMES, image_size=32, max_image_size=64, **SMALL).train()
    seen = []
    model.detector.rpn.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs[0][0]))
    model.backbone.c2fmae.blocks[0].mlp.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    masks = torch.zeros(1, 30, 50, dtype=torch.uint8)
    masks[:, 5:20, 5:30] = 1
    labels = {"boxes": boxes_of(masks), "class_labels": torch.zeros(1, dtype=torch.long), "masks": masks}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model([torch.rand(3, 30, 50)], [labels]).loss
    loss.backward()
    features, proposals = seen
    assert features.dtype == torch.bfloat16
    assert proposals.dtype == loss.dtype == torch.float32
    assert not torch.equal(proposals, proposals.bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_in_half_precision_boxes_stay_exact(encoders, tmp_path, dtype):
    torch.manual_seed(0)
    model = build_mask_rcnn(encoders["c2fmae"], NAMES, image_size=32, max_image_size=64, **SMALL).eval()
    model.save_pretrained(tmp_path)
    loaded = MaskRCNNForObjectDetection.from_pretrained(tmp_path, dtype=dtype).eval()
    assert loaded.dtype == loaded.backbone.dtype == dtype
    image = torch.rand(3, 30, 50)
    with torch.no_grad():
        expected = model([image]).detections[0]
        for half in (loaded, MaskRCNNForObjectDetection.from_pretrained(tmp_path).to(dtype).eval()):
            found = half([image.to(dtype)]).detections[0]
            assert found["boxes"].dtype == found["scores"].dtype == torch.float32
            assert not torch.equal(found["boxes"], found["boxes"].to(dtype).float())
            assert len(found["boxes"]) > 0
            assert found["scores"][0] == pytest.approx(float(expected["scores"][0]), abs=0.02)


def test_pipeline_takes_batches(encoders, monkeypatch):
    errors = []
    monkeypatch.setattr("transformers.pipelines.base.logger.error", errors.append)
    torch.manual_seed(0)
    model = build_mask_rcnn(encoders["c2fmae"], NAMES, image_size=32, max_image_size=64, **SMALL).eval()
    detect = pipeline(
        "object-detection", model=model, image_processor=MaskRCNNImageProcessor(), device="cpu", threshold=0.0
    )
    photos = [row["image"] for row in make_rows(3)]
    alone = [detect(photo) for photo in photos]
    assert all(alone)
    for found, expected in zip(detect(photos, batch_size=2), alone):
        assert [entry["box"] for entry in found] == [entry["box"] for entry in expected]
    assert not errors  # such as an unsupported class


def test_detections_do_not_depend_on_earlier_batches(encoders):
    """torchvision infers strides from the first batch; ours are fixed."""
    torch.manual_seed(0)
    model = build_mask_rcnn(encoders["c2fmae"], NAMES, image_size=32, max_image_size=64, **SMALL).eval()
    fresh = build_mask_rcnn(encoders["c2fmae"], NAMES, image_size=32, max_image_size=64, **SMALL).eval()
    fresh.load_state_dict(model.state_dict())
    narrow, square = torch.rand(3, 33, 48), torch.rand(3, 48, 48)
    with torch.no_grad():
        model([narrow])
        after, alone = model([square]).detections[0], fresh([square]).detections[0]
    assert all(torch.equal(after[name], alone[name]) for name in after)
    assert model.detector.roi_heads.box_roi_pool.scales == [1 / 2, 1 / 4, 1 / 8, 1 / 16]


def test_mistakes_in_options(encoders, tmp_path):
    with pytest.raises(ValueError, match=r"detector_options: expected fields of MaskRCNNConfig, got \['channels'\]"):
        build_mask_rcnn(encoders["c2fmae"], NAMES, channels=3)
    config = C2FMAEConfig.from_size("tiny", num_hidden_layers=1, patch_size=14, label_stride=7)
    C2FMAEModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"backbone_config: expected a patch size divisible by 4, .*got 14"):
        build_mask_rcnn(str(tmp_path), NAMES, **SMALL)


def test_patches_of_twelve_pixels(tmp_path):
    """Maps, anchors and RoIAlign use the same strides, even if these are not powers of two."""
    config = C2FMAEConfig.from_size("tiny", num_hidden_layers=1, image_size=48, patch_size=12, label_stride=4)
    C2FMAEModel(config).save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = build_mask_rcnn(str(tmp_path), NAMES, image_size=90, max_image_size=120, **SMALL)
    detector = model.detector
    images, _ = detector.transform([torch.rand(3, 60, 80), torch.rand(3, 60, 60)])
    assert images.tensors.shape == (2, 3, 96, 144)  # whole patches at all levels
    maps = list(detector.backbone(images.tensors).values())
    assert [tuple(level.shape[2:]) for level in maps] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    strides = [3, 6, 12, 24, 48]
    anchors = detector.rpn.anchor_generator(images, maps)[0].split([3 * level[0, 0].numel() for level in maps])
    for stride, boxes in zip(strides, anchors):
        assert (boxes[3] - boxes[0]).tolist() == [stride, 0, stride, 0]  # three anchors per cell
    align = detector.roi_heads.box_roi_pool
    assert align.scales == [1 / stride for stride in strides[:4]]
    # Each map holds the pixel where its column starts, so pooling a box of any size gives the box's centre.
    columns = {
        str(index): (stride * torch.arange(level.shape[3])).float().expand(1, 1, *level.shape[2:])
        for index, (stride, level) in enumerate(zip(strides, maps))
    }
    boxes = torch.tensor([[30.0, 30.0, 40.0, 40.0], [20.0, 10.0, 70.0, 60.0], [12.0, 6.0, 132.0, 90.0]])
    pooled = align(columns, [boxes], [(96, 144)]).mean(dim=(1, 2, 3))
    assert pooled.tolist() == pytest.approx(boxes[:, ::2].mean(dim=1).tolist(), abs=1)
    target = {
        "boxes": boxes[:1] / 1.5,
        "class_labels": torch.tensor([0]),
        "masks": torch.ones(1, 60, 80, dtype=torch.uint8),
    }
    loss = model.train()([torch.rand(3, 60, 80)], [target]).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert model.backbone.c2fmae.patch_embed.proj.weight.grad.abs().sum() > 0


def test_a_saved_detector_is_the_same(encoders, tmp_path):
    model = build_mask_rcnn(encoders["c2fmae"], NAMES, image_size=32, max_image_size=64, **SMALL).eval()
    loaded = build_mask_rcnn(encoders["c2fmae"], NAMES, image_size=32, max_image_size=64, **SMALL)
    assert torch.equal(
        model.backbone.c2fmae.blocks[0].attn.qkv.weight, loaded.backbone.c2fmae.blocks[0].attn.qkv.weight
    )
    model.save_pretrained(tmp_path)
    again = AutoModelForObjectDetection.from_pretrained(tmp_path).eval()
    images = [torch.rand(3, 40, 30), torch.rand(3, 31, 57)]
    with torch.no_grad():
        own, other = model(images).detections, again(images).detections
    assert all(torch.equal(a[name], b[name]) for a, b in zip(own, other) for name in a)
    assert own[1]["masks"].shape[1:] == (31, 57)


# Scores


def random_objects(generator, number: int, size: int = 40) -> dict[str, torch.Tensor]:
    masks = torch.zeros((number, size, size), dtype=torch.uint8)
    for mask in masks:
        top, left = generator.integers(0, size - 12, 2)
        height, width = generator.integers(4, 12, 2)
        mask[top : top + height, left : left + width] = 1
    return {
        "masks": masks,
        "boxes": boxes_of(masks),
        "class_labels": torch.from_numpy(generator.integers(0, 2, number)),
        "iscrowd": torch.zeros(number, dtype=torch.bool),
    }


class Answers(torch.nn.Module):
    """A fake network that returns given detections, image by image."""

    def __init__(self, config, detections):
        super().__init__()
        self.config, self.detections, self.position = config, detections, 0
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values):
        start, self.position = self.position, self.position + len(pixel_values)
        return MaskRCNNOutput(detections=self.detections[start : self.position])


def reference_scores(samples, detections) -> dict[str, torch.Tensor]:
    """Scores computed by torchmetrics."""
    metric = MeanAveragePrecision(iou_type=("bbox", "segm"), class_metrics=True)
    metric.update(
        [{**found, "masks": found["masks"] > 0.5} for found in detections],
        [
            {
                "boxes": sample["labels"]["boxes"],
                "labels": sample["labels"]["class_labels"],
                "masks": sample["labels"]["masks"].bool(),
                "iscrowd": sample["labels"]["iscrowd"].long(),
            }
            for sample in samples
        ],
    )
    return metric.compute()


@pytest.mark.parametrize("with_crowds", [False, True])
def test_average_precision_agrees_with_torchmetrics(encoders, tmp_path, with_crowds):
    generator = np.random.default_rng(0)
    samples, detections = [], []
    for _ in range(12):
        labels = random_objects(generator, int(generator.integers(0, 5)))
        if with_crowds and len(labels["iscrowd"]):
            labels["iscrowd"][0] = True
        samples.append({"pixel_values": torch.zeros(3, 40, 40), "labels": labels})
        wrong = random_objects(generator, 3)
        # Some detections are right but shifted by a pixel or two, and some are wrong.
        shifted = torch.roll(labels["masks"], tuple(generator.integers(-2, 3, 2)), dims=(1, 2))
        masks = torch.cat([shifted, wrong["masks"]])
        count = len(masks)
        detections.append(
            {
                "boxes": boxes_of(masks),
                "labels": torch.cat([labels["class_labels"], wrong["class_labels"]]),
                "scores": torch.from_numpy(generator.random(count).astype(np.float32)),
                "masks": masks.float(),
            }
        )
    scores = evaluate(encoders, tmp_path, samples, detections)
    expected = reference_scores(samples, detections)
    classes = [NAMES[label] for label in expected["classes"].tolist()]
    for iou_type in ("bbox", "segm"):
        for name in ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_1", "mar_10", "mar_100"):
            full = f"{iou_type}_{name}"
            assert scores[f"eval_{full}"] == pytest.approx(expected[full].item(), abs=1e-6), full
        by_class = dict(zip(classes, expected[f"{iou_type}_map_per_class"].tolist()))
        assert scores[f"eval_{iou_type}_map_per_class"] == pytest.approx(by_class, abs=1e-6)
        assert 0 < scores[f"eval_{iou_type}_map"] < scores[f"eval_{iou_type}_map_50"] < 1


def evaluate(encoders, folder, samples, detections) -> dict[str, float]:
    args = TrainingArguments(str(folder), use_cpu=True, report_to="none", per_device_eval_batch_size=5)
    args.remove_unused_columns = False
    config = build_mask_rcnn(encoders["c2fmae"], NAMES, image_size=32, **SMALL).config
    trainer = DetectionTrainer(Answers(config, detections), args, eval_dataset=samples)
    return trainer.evaluate()


def test_average_precision_at_its_limits(encoders, tmp_path):
    generator = np.random.default_rng(0)
    labels = [random_objects(generator, 3) for _ in range(2)]
    samples = [{"pixel_values": torch.zeros(3, 40, 40), "labels": one} for one in labels]
    right = [
        {"boxes": one["boxes"], "labels": one["class_labels"], "scores": torch.ones(3), "masks": one["masks"].float()}
        for one in labels
    ]
    empty = {
        "boxes": torch.zeros((0, 4)),
        "labels": torch.zeros(0, dtype=torch.long),
        "scores": torch.zeros(0),
        "masks": torch.zeros((0, 40, 40)),
    }
    perfect = evaluate(encoders, tmp_path, samples, right)
    assert perfect["eval_bbox_map"] == perfect["eval_segm_map"] == pytest.approx(1, abs=1e-6)
    assert set(perfect["eval_segm_map_per_class"]) == {"disc", "square"}
    nothing_found = evaluate(encoders, tmp_path, samples, [empty, empty])
    assert nothing_found["eval_segm_map"] == 0
    none = [{"pixel_values": torch.zeros(3, 40, 40), "labels": random_objects(generator, 0)}] * 2
    assert evaluate(encoders, tmp_path, none, [empty, empty])["eval_segm_map"] == -1  # undefined


def test_collation():
    samples = [
        {"pixel_values": torch.zeros(3, 4, 5), "labels": {}},
        {"pixel_values": torch.zeros(3, 6, 2), "labels": {}},
    ]
    assert [tuple(image.shape) for image in collate_lists(samples)["pixel_values"]] == [(3, 4, 5), (3, 6, 2)]


@pytest.mark.parametrize("path", sorted((RECIPES / "detect").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_valid(example, path):
    args, training_args, _ = example.parse([str(path), "--use_cpu", "true"])
    assert example.find_mistake(args) is None
    if args.detector == "mask_rcnn" and args.detector_options:
        assert set(json.loads(args.detector_options)) <= set(SMALL)
    assert training_args.num_train_epochs == 100 or training_args.max_steps == 300


def test_wrong_arguments(example, encoders, discs, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(example, encoders["c2fmae"], discs, tmp_path, "--detector", "yolo")
    assert "--detector: expected mask_rcnn or mask2former, got 'yolo'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(example, encoders["c2fmae"], discs, tmp_path, "--coco_dir", "somewhere")
    assert "expected one of --dataset_name and --coco_dir" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"thing_classes: expected some of \[1, 2, 3, 4\]"):
        run(example, encoders["c2fmae"], discs, tmp_path, "--thing_classes", "77")


def test_validation_rows_need_objects(example, encoders, tmp_path, caplog):
    rows = make_rows(8)
    crowds = rows.map(lambda row: {"instance": png(255 * (np.array(row["instance"]) > 0).astype(np.uint8))})
    for name, held_out in (("nothing", crowds), ("something", rows.select([0]))):
        datasets.DatasetDict({"train": rows, "validation": held_out}).save_to_disk(tmp_path / name)
    with pytest.raises(ValueError, match=r"validation: expected an object of .*, got none"):
        run(example, encoders["c2fmae"], tmp_path / "nothing", tmp_path / "x")
    train, held_out = example.load_objects(example.parse([encoders["c2fmae"], str(tmp_path / "something")])[0], 0)
    absent = [name for label, name in train.id2label.items() if label not in held_out.present()]
    assert absent
    assert f"Classes without an object in the validation split: {', '.join(absent)}." in caplog.text


def test_scoring_needs_a_detector_and_follows_the_options(example, encoders, discs, tmp_path):
    with pytest.raises(ValueError, match=r"expected a Mask R-CNN to evaluate, got .*, a c2fmae"):
        run(example, encoders["c2fmae"], discs, tmp_path / "x", "--evaluate_only")
    build_mask_rcnn(str(encoders["c2fmae"]), NAMES, image_size=48, max_image_size=64, **SMALL).save_pretrained(
        tmp_path / "detector"
    )
    words = [str(tmp_path / "detector"), str(discs), "--evaluate_only", "--use_cpu"]
    with pytest.raises(ValueError, match=r"expected a Mask2Former to evaluate, got .*, a vit_mask_rcnn"):
        example.main([*words, "--detector", "mask2former", "--output_dir", str(tmp_path / "y")])
    options = ["--image_size", "32", "--detector_options", '{"score_threshold": 0.9}', "--output_dir", str(tmp_path)]
    config = example.build(example.parse([*words, *options])[0], NAMES)[0].config
    assert (config.image_size, config.max_image_size, config.score_threshold) == (32, 42, 0.9)
    config = example.build(example.parse([*words, "--output_dir", str(tmp_path)])[0], NAMES)[0].config
    assert (config.image_size, config.max_image_size) == (48, 64)


@pytest.mark.parametrize(
    "options", [["--thing_classes", "1"], ["--train_split", "test"], ["--validation_share", "0.5"]]
)
def test_options_that_coco_files_would_ignore(example, options, capsys):
    with pytest.raises(SystemExit):
        example.parse(["model", "--coco_dir", "coco", *options])
    assert f"{options[0]} is for --dataset_name only" in capsys.readouterr().err


@pytest.mark.parametrize("detector", ["mask_rcnn", "mask2former"])
def test_defaults_follow_the_encoder(example, encoders, detector):
    """Image size and width of the heads follow the encoder; options override them."""
    words = [encoders["c2fmae"], "dataset", "--use_cpu", "--detector", detector]
    args, training_args, _ = example.parse(words)
    model, _, options = example.build(args, {0: "disc"})
    assert args.image_size == 32
    narrow = NARROW_MASK_RCNN if detector == "mask_rcnn" else NARROW_MASK2FORMER
    assert {name: getattr(model.config, name) for name in narrow} == narrow
    assert training_args.metric_for_best_model == "segm_map"
    if detector == "mask_rcnn":
        assert (model.config.image_size, model.config.max_image_size) == (32, 42)
    else:
        assert options["processor"].size.shortest_edge == 32
    field = next(iter(narrow))
    args, _, _ = example.parse([*words, "--detector_options", json.dumps({field: 32}), "--image_size", "64"])
    model, _, _ = example.build(args, {0: "disc"})
    assert getattr(model.config, field) == 32
    assert args.image_size == 64


def test_detections_above_a_score():
    found = {
        "scores": torch.tensor([0.9, 0.4]),
        "labels": torch.tensor([3, 1]),
        "boxes": torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 9.0, 9.0]]),
        "masks": torch.stack([torch.full((4, 5), 0.6), torch.full((4, 5), 0.4)]),
    }
    outputs = MaskRCNNOutput(detections=[found, {name: values[:0] for name, values in found.items()}])
    first, second = MaskRCNNImageProcessor().post_process_object_detection(outputs, threshold=0.5)
    assert first["labels"].tolist() == [3]
    assert first["boxes"].tolist() == [[0.0, 1.0, 2.0, 3.0]]
    assert first["masks"].all()
    assert len(second["scores"]) == 0
    with pytest.raises(ValueError, match="outputs: expected detections, got none"):
        MaskRCNNImageProcessor().post_process_object_detection(MaskRCNNOutput(loss=torch.zeros(())))


def coco_annotations() -> list[dict]:
    """Two images, 20 x 30 and 24 x 16 (height x width), with a polygon, both kinds of run lengths, and a crowd."""
    square = np.zeros((20, 30), np.uint8, order="F")
    square[4:10, 5:12] = 1
    runs = coco_mask.encode(square)
    plain = {"size": [20, 30], "counts": [0, 600]}
    polygon = [[2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0]]
    first = [
        {"bbox": [2, 3, 10, 6], "category_id": 1, "segmentation": polygon, "iscrowd": 0, "area": 60},
        {"bbox": [5, 4, 7, 6], "category_id": 0, "segmentation": runs, "iscrowd": 0, "area": 42},
        {"bbox": [0, 0, 30, 20], "category_id": 0, "segmentation": plain, "iscrowd": 1, "area": 600},
    ]
    return [{"image_id": 7, "annotations": first}, {"image_id": 8, "annotations": []}]


def test_annotations_become_the_model_s_labels():
    photos = [np.full((20, 30, 3), 255, np.uint8), Image.new("RGB", (16, 24))]
    batch = MaskRCNNImageProcessor()(photos, annotations=coco_annotations(), return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 24, 30)
    assert batch["pixel_values"][0, :, :20].min() == 1
    assert batch["pixel_values"][0, :, 20:].max() == 0
    assert [(int(mask[:, 0].sum()), int(mask[0].sum())) for mask in batch["pixel_mask"]] == [(20, 30), (24, 16)]
    first, empty = batch["labels"]
    assert first["boxes"].tolist() == [[2, 3, 12, 9], [5, 4, 12, 10]]
    assert first["class_labels"].tolist() == [1, 0]
    assert first["masks"].shape == (2, 20, 30)
    assert first["masks"].dtype == torch.uint8
    assert first["masks"][0, 3:9, 2:12].all()
    assert first["masks"].sum(dim=(1, 2)).tolist() == [60, 42]
    assert (first["image_id"].item(), first["orig_size"].tolist()) == (7, [20, 30])
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"].shape == (0, 24, 16)
    whole = MaskRCNNImageProcessor()(photos, do_pad=False)["pixel_values"]
    assert [tuple(image.shape) for image in whole] == [(3, 20, 30), (3, 24, 16)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": None}, r"annotations\[0\], object 0: expected a segmentation.*C2FMAEBackbone"),
        ({"bbox": [1, 2, 3]}, r"annotations\[0\], object 0: expected a bbox of left, top, width and height"),
        ({"bbox": [1, 2, 0, 3]}, r"object 0: expected a bbox with a width and a height above 0, got \[1, 2, 0, 3\]"),
        (
            {"segmentation": {"size": [4, 4], "counts": [0, 16]}},
            r"expected run lengths of the image's size \(20, 30\)",
        ),
        ({"segmentation": [[1.0, 2.0]]}, r"object 0: expected a polygon of three points or more"),
    ],
    ids=str,
)
def test_bad_annotations_are_named(change, message):
    (entry, _) = coco_annotations()
    entry["annotations"][0].update(change)
    with pytest.raises(ValueError, match=message):
        MaskRCNNImageProcessor()(Image.new("RGB", (30, 20)), annotations=entry)
    with pytest.raises(ValueError, match="annotations: expected those of 1 images, got 2"):
        MaskRCNNImageProcessor()(Image.new("RGB", (30, 20)), annotations=coco_annotations())


def test_stock_batches_train_and_padding_changes_no_detection(encoders, tmp_path):
    """Batches as in transformers' object-detection script: stacked images, a padding mask, a list of labels."""
    torch.manual_seed(0)
    model = build_mask_rcnn(encoders["c2fmae"], {0: "a", 1: "b"}, image_size=32, max_image_size=64, **SMALL)
    model.save_pretrained(tmp_path)
    MaskRCNNImageProcessor().save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, MaskRCNNImageProcessor)
    photos = [row["image"].resize(size) for row, size in zip(make_rows(2), [(30, 20), (16, 24)])]
    batch = processor(photos, annotations=coco_annotations(), return_tensors="pt")
    loss = model.train()(**batch).loss
    loss.backward()
    assert loss.isfinite()
    assert model.backbone.c2fmae.patch_embed.proj.weight.grad.any()
    model.eval()
    with torch.no_grad():
        padded = model(**processor(photos, return_tensors="pt")).detections
        whole = model(processor(photos, do_pad=False)["pixel_values"]).detections
    for found, expected in zip(padded, whole):
        assert len(expected["boxes"]) > 0
        assert torch.allclose(found["boxes"], expected["boxes"], atol=1e-3)


def test_the_processor_refuses_steps_that_the_model_does():
    for step in ("do_resize", "do_center_crop", "do_normalize"):
        with pytest.raises(ValueError, match=f"{step}: expected False, got True. The model resizes"):
            MaskRCNNImageProcessor(**{step: True}, size={"height": 9, "width": 9})
        with pytest.raises(ValueError, match=f"{step}: expected False, got True"):
            MaskRCNNImageProcessor()(Image.new("RGB", (30, 20)), **{step: True})
    padded = MaskRCNNImageProcessor()(Image.new("RGB", (30, 20)), pad_size={"height": 40, "width": 50})
    assert padded["pixel_values"][0].shape == (3, 40, 50)
    assert int(padded["pixel_mask"][0].sum()) == 600
    with pytest.raises(ValueError, match="pad_size: expected at least 20 x 30"):
        MaskRCNNImageProcessor()(Image.new("RGB", (30, 20)), pad_size={"height": 10, "width": 50})
    grey = MaskRCNNImageProcessor()(np.full((20, 30), 255, np.uint8))["pixel_values"][0]
    assert grey.shape == (3, 20, 30)
    with pytest.raises(ValueError, match=r"annotations\[0\]: expected image_id and annotations"):
        MaskRCNNImageProcessor()(Image.new("RGB", (30, 20)), annotations={"annotations": []})


def test_class_ids_out_of_range_are_errors_and_maps_may_have_two_strides():
    rows = make_rows(3)
    assert find_thing_classes(rows, 5) == find_thing_classes(rows)
    with pytest.raises(ValueError, match=r"row \d: expected class ids in \[0, 3\), got 4"):
        find_thing_classes(rows, 3)
    with pytest.raises(ValueError, match=r"row 0, column 'semantic': expected class ids in \[0, 2\), got [34]"):
        MapObjects(rows, {1: "red"}, 2)[0]
    halved = rows.map(lambda row: {"semantic": row["semantic"].resize((24, 24), Image.Resampling.NEAREST)})
    assert set(find_thing_classes(halved)) >= set(find_thing_classes(rows))  # edges may fall into other cells
