"""Semantic segmentation: inference at any size, scores of whole datasets, fine-tuning of C2FMAE, ViT and timm."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from evaluate import evaluator
from PIL import Image
from torch import nn
from transformers import AutoModelForSemanticSegmentation, EvalPrediction, TrainingArguments, pipeline

from c2fmae_hf.data.splits import load_splits
from c2fmae_hf.metrics import load_metric
from c2fmae_hf.transfer.segmentation import (
    MeanIoUOfBatches,
    SemanticSegmentationDataset,
    SemanticSegmentationTrainer,
    build_segmenter,
    collate_padded,
    segment,
    segmentation_transforms,
    window_starts,
)
from testing_utils import RECIPES, load_command, make_rows, png
from transfer_utils import DISC_CLASSES, save_discs, save_encoders


NAMES = dict(enumerate(DISC_CLASSES))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    return save_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    return save_discs(tmp_path_factory.mktemp("data") / "discs")


@pytest.fixture
def example():
    return load_command("segment")


def run(example, model, data, output, *options: str) -> dict:
    return example.main(
        [
            *("--model", str(model), "--dataset_name", str(data), "--output_dir", str(output)),
            *("--image_size", "32", "--head_channels", "16", "--use_cpu", "true", "--disable_tqdm", "true"),
            *("--save_strategy", "no", "--per_device_eval_batch_size", "3", "--num_drawn", "2", *options),
        ]
    )


TRAINING = (
    "--max_steps",
    "150",
    "--per_device_train_batch_size",
    "8",
    "--learning_rate",
    "5e-3",
    "--min_scale",
    "0.8",
)
TRAINING += ("--max_scale", "1.3", "--photometric", "false", "--eval_strategy", "no", "--save_strategy", "no")


@pytest.mark.parametrize(
    ("kind", "head"),
    [("c2fmae", "upernet"), ("c2fmae", "light"), pytest.param("vit", "upernet", marks=pytest.mark.slow)],
)
def test_fine_tuning_learns_and_the_result_is_a_pipeline(example, encoders, discs, tmp_path, kind, head):
    results = run(example, encoders[kind], discs, tmp_path / "out", "--head", head, *TRAINING)
    assert results["results"]["mean_iou"] > 0.45
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(saved["iou"]) == set(DISC_CLASSES)
    assert saved["settings"]["head"] == head
    assert Image.open(tmp_path / "out" / "predictions.png").size[0] > 300
    again = run(example, tmp_path / "out", discs, tmp_path / "again", "--evaluate_only", "true")
    assert again["results"] == pytest.approx(results["results"], abs=1e-6)
    assert not (tmp_path / "again" / "model.safetensors").exists()

    # The pipeline gets the same score as evaluation.
    rows = load_splits(str(discs))["validation"]
    scores = evaluator("image-segmentation").compute(
        str(tmp_path / "out"), data=rows, metric=load_metric("mean_iou"), device=-1
    )
    assert scores["mean_iou"] == pytest.approx(results["results"]["mean_iou"], abs=0.01)
    segment_image = pipeline("image-segmentation", model=str(tmp_path / "out"), device="cpu")
    odd = Image.fromarray(np.full((37, 61), 90, np.uint8))  # grey, and not a multiple of the patch size
    segments = segment_image(odd, subtask="semantic")
    assert all(part["mask"].size == (61, 37) and part["label"] in DISC_CLASSES for part in segments)


def test_timm_by_changing_one_argument(example, discs, tmp_path):
    options = ("--from_scratch", "true", "--max_steps", "1", "--per_device_train_batch_size", "4")
    results = run(example, "vit_tiny_patch16_224", discs, tmp_path / "out", *options)
    assert 0 <= results["results"]["mean_iou"] <= 1
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert again.backbone.config.encoder_config.architecture == "vit_tiny_patch16_224"


def test_only_the_head_is_new(encoders):
    loaded = build_segmenter(encoders["c2fmae"], NAMES, head_channels=16).backbone.c2fmae.state_dict()
    light = build_segmenter(encoders["c2fmae"], NAMES, head="light").c2fmae.state_dict()
    scratch = build_segmenter(encoders["c2fmae"], NAMES, head_channels=16, from_scratch=True)
    assert all(torch.equal(value, light[name]) for name, value in loaded.items())
    assert not torch.equal(scratch.backbone.c2fmae.blocks[0].attn.qkv.weight, loaded["blocks.0.attn.qkv.weight"])


# Inference


class PointwiseModel(nn.Module):
    """A model whose scores depend on single pixels, so that windows must not change them."""

    def forward(self, pixel_values: torch.Tensor):
        logits = torch.cat([pixel_values, -pixel_values], dim=1)
        return type("Output", (), {"logits": logits})


@pytest.mark.parametrize("size", [(16, 16), (16, 37), (50, 23)])
@pytest.mark.parametrize("stride", [None, 1, 5, 16])
def test_sliding_windows_cover_the_image(size, stride):
    pixel_values = torch.randn(2, 3, *size)
    scores = segment(PointwiseModel(), pixel_values, window=16, stride=stride)
    assert torch.allclose(scores, torch.cat([pixel_values, -pixel_values], dim=1), atol=1e-5)
    for side in size:
        starts = window_starts(side, 16, stride or 10)
        assert sorted(set(starts)) == starts
        assert {pixel for start in starts for pixel in range(start, start + 16)} == set(range(side))


def test_windows_that_do_not_fit():
    with pytest.raises(ValueError, match="window: expected at most the image's shorter side"):
        segment(PointwiseModel(), torch.randn(1, 3, 8, 20), window=16)
    with pytest.raises(ValueError, match="stride=17"):
        segment(PointwiseModel(), torch.randn(1, 3, 20, 20), window=16, stride=17)


def test_evaluation_scores_the_whole_set_at_the_size_of_the_labels(encoders, tmp_path):
    """The score counts all pixels of all images, whatever their sizes and batches, and no padding."""
    rows = make_rows(5, size=40)
    rows = [*rows, *make_rows(2, size=56)]
    rows[0]["image"] = rows[0]["image"].crop((0, 0, 27, 40))
    rows[0]["semantic"] = rows[0]["semantic"].crop((0, 0, 27, 40))

    class Rows(list):
        column_names = ("image", "semantic")
        features = None

        def select_columns(self, names):
            return self

    encoded = Rows({name: png(np.asarray(row[name])) for name in ("image", "semantic")} for row in rows)
    _, transform = segmentation_transforms(32, 8)
    dataset = SemanticSegmentationDataset(encoded, transform, 5)
    model = build_segmenter(encoders["c2fmae"], NAMES, head_channels=16)
    scores = []
    for batch_size in (1, 3):
        args = TrainingArguments(str(tmp_path), use_cpu=True, per_device_eval_batch_size=batch_size, report_to="none")
        args.remove_unused_columns = False
        trainer = SemanticSegmentationTrainer(model, args, eval_dataset=dataset, compute_metrics=MeanIoUOfBatches(5))
        scores.append(trainer.evaluate())
    assert scores[0]["eval_per_category_iou"] == pytest.approx(scores[1]["eval_per_category_iou"], nan_ok=True)

    predictions, references = [], []
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample["labels"].shape == np.asarray(rows[index]["semantic"]).shape
        assert all(side % 8 == 0 for side in sample["pixel_values"].shape[1:])
        with torch.no_grad():
            own = segment(model.eval(), sample["pixel_values"][None])
        own = nn.functional.interpolate(own, size=sample["labels"].shape, mode="bilinear", align_corners=False)
        predictions.append(own[0].argmax(dim=0).numpy())
        references.append(sample["labels"].numpy())
    expected = load_metric("mean_iou").compute(predictions=predictions, references=references, num_labels=5)
    assert scores[0]["eval_mean_iou"] == pytest.approx(expected["mean_iou"], abs=1e-6)


def test_sums_of_batches_start_anew():
    metric = MeanIoUOfBatches(2)
    right, wrong = torch.tensor([[[8, 0], [0, 8]]]), torch.tensor([[[0, 8], [8, 0]]])
    assert metric(EvalPrediction(right, None), compute_result=False) == {}
    assert metric(EvalPrediction(wrong, None), compute_result=True)["overall_accuracy"] == 0.5
    assert metric(EvalPrediction(torch.cat([right, right]), None), compute_result=True)["overall_accuracy"] == 1.0


# Data


def test_training_crops_keep_image_and_labels_together():
    """The image shows the label map, so after any crop, scale and flip its pixels must match the labels."""
    training, evaluation = segmentation_transforms(32, 8, photometric=False, scale_range=(0.5, 2.0))
    generator = np.random.default_rng(0)
    label_map = np.kron(generator.integers(0, 2, (6, 8)), np.ones((10, 10))).astype(np.int32)
    image = Image.fromarray((label_map * 255).astype(np.uint8)).convert("RGB")
    padded = 0
    for _ in range(20):
        sample = training(image, label_map)
        assert sample["pixel_values"].shape == (3, 32, 32)
        known = sample["labels"] >= 0
        padded += int((~known).sum())
        bright = sample["pixel_values"][0] > 0
        assert (bright[known] == (sample["labels"][known] == 1)).float().mean() > 0.85
        assert (sample["pixel_values"][:, ~known].abs() < 0.02).all()  # padding has the mean colour
    assert padded > 0  # at small scales
    sample = evaluation(image, label_map)
    assert sample["pixel_values"].shape == (3, 32, 40)  # 60 x 80 at a shorter side of 32 is 32 x 42.7
    assert sample["labels"].shape == (60, 80)


def test_padding_of_batches():
    samples = [
        {"pixel_values": torch.ones(3, 8, 16), "labels": torch.ones(5, 9, dtype=torch.long)},
        {"pixel_values": torch.ones(3, 16, 8), "labels": torch.ones(7, 3, dtype=torch.long)},
    ]
    batch = collate_padded(samples)
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["labels"].shape == (2, 7, 9)
    assert batch["sizes"].tolist() == [[8, 16], [16, 8]]
    assert batch["label_sizes"].tolist() == [[5, 9], [7, 3]]
    assert (batch["labels"] == 1).sum() == 45 + 21
    assert (batch["labels"] == -100).sum() == 2 * 63 - 66


def test_bad_rows_are_named():
    rows = make_rows(3)
    transform, _ = segmentation_transforms(32, 8)
    with pytest.raises(ValueError, match=r"row 0, column 'semantic': expected class ids in \[0, 2\), got 4"):
        SemanticSegmentationDataset(rows, transform, 2)[0]
    with pytest.raises(ValueError, match=r"expected the columns \['semantic'\]"):
        SemanticSegmentationDataset(rows.remove_columns("semantic"), transform, 5)
    broken = rows.to_list()
    broken[1]["image"] = {"bytes": b"nothing", "path": None}
    broken[2]["semantic"] = None
    dataset = SemanticSegmentationDataset(rows.from_list(broken, features=rows.features), transform, 5)
    with pytest.raises(ValueError, match="row 1, column 'image'"):
        dataset[1]
    with pytest.raises(ValueError, match="row 2, column 'semantic': expected a map of classes, got none"):
        dataset[2]


def test_a_batch_without_labels_gives_no_nan(encoders, tmp_path):
    model = build_segmenter(encoders["c2fmae"], NAMES, head_channels=16)
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = SemanticSegmentationTrainer(model, args)
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.full((2, 32, 32), -100)}
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_mistakes(example, encoders, discs, tmp_path):
    with pytest.raises(ValueError, match="classes: expected at least two"):
        build_segmenter(encoders["c2fmae"], {0: "all"})
    with pytest.raises(ValueError, match="head: expected 'upernet' for a vit, got 'light'"):
        build_segmenter(encoders["vit"], NAMES, head="light")
    with pytest.raises(ValueError, match="head: expected 'upernet' or 'light', got 'deeplab'"):
        build_segmenter(encoders["vit"], NAMES, head="deeplab")
    with pytest.raises(ValueError, match="image_size: expected a multiple of the patch size 8, got 30"):
        run(example, encoders["c2fmae"], discs, tmp_path, "--image_size", "30")
    with pytest.raises(ValueError, match=r"dataset: expected the split 'test', got \['train', 'validation'\]"):
        run(example, encoders["c2fmae"], discs, tmp_path, "--validation_split", "test")


def test_scoring_sees_images_as_in_training(example, encoders, discs, tmp_path):
    options = ("--head", "light", "--max_steps", "2", "--image_size", "48", "--num_drawn", "0")
    trained = run(example, encoders["c2fmae"], discs, tmp_path / "out", *options)
    words = [str(tmp_path / "out"), str(discs), "--output_dir", str(tmp_path / "scores"), "--evaluate_only"]
    again = example.main([*words, "--use_cpu", "--disable_tqdm", "true", "--num_drawn", "0"])
    assert again["settings"]["image_size"] == 48
    assert again["results"] == pytest.approx(trained["results"], abs=1e-6)
    words[0] = encoders["c2fmae"]
    with pytest.raises(ValueError, match=r"expected a segmenter to evaluate, got .*, whose head would be random"):
        example.main([*map(str, words), "--use_cpu"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min_scale", "3"], "--min_scale: expected a value above 0, up to 2 (--max_scale), got 3"),
        (["--min_scale", "0"], "--min_scale: expected a value above 0"),
        (["--window_stride", "8"], "--window_stride is for --sliding_window"),
        (["--head", "light", "--out_indices", "1", "2"], "--out_indices is for --head upernet"),
    ],
)
def test_options_that_would_be_ignored(example, options, message, capsys):
    with pytest.raises(SystemExit):
        example.parse(["model", "data", *options])
    assert message in capsys.readouterr().err


def test_what_would_fail_after_training_is_refused(example, encoders, discs, tmp_path):
    options = ("--sliding_window", "--window_stride", "33", "--head", "light")
    with pytest.raises(ValueError, match=r"stride: expected a value in \[1, window\], got window=32, stride=33"):
        run(example, encoders["c2fmae"], discs, tmp_path / "x", *options)
    with pytest.raises(ValueError, match=r"metric_for_best_model: expected one of \['mean_iou', .*, got 'loss'"):
        run(example, encoders["c2fmae"], discs, tmp_path / "y", "--head", "light", "--metric_for_best_model", "loss")


def test_the_light_head_learns_every_class(encoders):
    names = {index: f"class {index}" for index in range(300)}
    model = build_segmenter(encoders["c2fmae"], names, head="light").train()
    labels = torch.full((1, 8, 8), 255)  # an id of 16-bit maps, and transformers' default of what is ignored
    assert model(torch.zeros(1, 3, 32, 32), labels).loss > 1
    assert model(torch.zeros(1, 3, 32, 32), torch.full((1, 8, 8), -100)).loss == 0
    model.config.semantic_loss_ignore_index = 255
    with pytest.raises(ValueError, match="expected no label of the 300 classes, got 255"):
        model(torch.zeros(1, 3, 32, 32), labels)


def test_batches_of_one_image_are_left_out_or_refused(example, encoders, tmp_path):
    """UperNet's pooled branch cannot normalise a batch of one image, which 9 rows in batches of 4 leave."""
    data = save_discs(tmp_path / "discs", num_train=9, num_validation=5)
    options = ("--num_train_epochs", "1", "--per_device_train_batch_size", "4", "--learning_rate", "1e-3")
    results = run(example, encoders["c2fmae"], data, tmp_path / "out", *options)
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 2
    again = run(example, tmp_path / "out", data, tmp_path / "x", "--evaluate_only", "true", "--num_drawn", "0")
    assert again["iou"] == pytest.approx(results["iou"])
    with pytest.raises(ValueError, match="per_device_train_batch_size: expected at least 2"):
        run(example, encoders["c2fmae"], data, tmp_path / "y", "--per_device_train_batch_size", "1")


def test_a_class_absent_from_validation(example, encoders, tmp_path, caplog):
    data = save_discs(tmp_path / "discs", num_train=8, num_validation=1)
    names = tmp_path / "names.txt"
    names.write_text("\n".join([*DISC_CLASSES, "purple"]))
    options = ("--max_steps", "1", "--class_names", str(names), "--sliding_window", "true", "--ema_decay", "0.9")
    results = run(example, encoders["c2fmae"], data, tmp_path / "out", *options)
    assert np.isfinite(results["results"]["mean_iou"])
    if results["iou"]["purple"] is None:
        assert "purple" in caplog.text
    assert "NaN" not in (tmp_path / "out" / "results.json").read_text()


@pytest.mark.parametrize("path", sorted((RECIPES / "segment").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_valid(example, path):
    args, training_args, _ = example.parse([str(path), "--use_cpu", "true"])
    assert args.model
    assert args.image_size % 16 == 0
    assert training_args.max_steps in (300, 160000)
