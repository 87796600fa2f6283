"""Classification: fine-tuning, linear probe and k-NN, of C2FMAE, ViT and timm."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
from evaluate import evaluator
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BeitConfig,
    HieraConfig,
    SiglipConfig,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from c2fmae_hf import C2FMAEConfig, C2FMAEForImageClassification, C2FMAEImageProcessor, C2FMAEModel
from c2fmae_hf.data.splits import load_train_and_validation
from c2fmae_hf.metrics import load_metric
from c2fmae_hf.publishing.records import figures_of, load_run, run_of_weights
from c2fmae_hf.transfer.classification import (
    ImageClassificationTrainer,
    ImageLabelDataset,
    build_classifier,
    classification_transforms,
    ranked_accuracy,
)
from c2fmae_hf.transfer.detection import build_mask_rcnn
from c2fmae_hf.transfer.encoders import saved_view
from c2fmae_hf.transfer.fine_tuning_args import FineTuningArguments
from c2fmae_hf.transfer.segmentation import build_segmenter
from labelling_utils import encode
from testing_utils import RECIPES, load_command


NAMES = {0: "dark", 1: "middle", 2: "bright"}
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def make_labelled(number: int, seed: int = 0) -> datasets.Dataset:
    """Grey and coloured photographs whose class is their brightness; sizes differ."""
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(number):
        label = index % 3
        size = (int(generator.integers(20, 70)), int(generator.integers(20, 70)), 3)
        pixels = np.clip(generator.normal(40 + 80 * label, 12, size), 0, 255).astype(np.uint8)
        image = Image.fromarray(pixels)
        image = image.convert("L") if index % 5 == 0 else image
        rows.append({"image": {"bytes": encode(image, "PNG"), "path": None}, "label": label})
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(NAMES.values())))
    return datasets.Dataset.from_list(rows, features=features)


@pytest.fixture
def dataset_folder(tmp_path) -> Path:
    splits = {"train": make_labelled(48), "validation": make_labelled(24, seed=1)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "labelled")
    return tmp_path / "labelled"


@pytest.fixture
def folders(model, tmp_path) -> dict[str, str]:
    """A pre-training checkpoint of C2FMAE, and a ViT, both of patches of 8 pixels at 32."""
    model.save_pretrained(tmp_path / "c2fmae")
    C2FMAEImageProcessor.from_config(model.config).save_pretrained(tmp_path / "c2fmae")
    vit = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    ViTForImageClassification(vit).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    return {"c2fmae": str(tmp_path / "c2fmae"), "vit": str(tmp_path / "vit")}


@pytest.fixture
def example():
    return load_command("classify")


def run(example, model: str, data: Path, output: Path, *options: str) -> dict:
    return example.main(
        [
            *("--model", model, "--dataset_name", str(data), "--output_dir", str(output)),
            *("--use_cpu", "true", "--disable_tqdm", "true", "--per_device_train_batch_size", "16", *options),
        ]
    )


@pytest.mark.parametrize("kind", ["c2fmae", "vit"])
def test_fine_tuning_learns_and_the_result_is_a_pipeline(example, folders, dataset_folder, tmp_path, kind, capsys):
    options = [
        "--num_train_epochs",
        "12",
        "--learning_rate",
        "5e-3",
        "--min_crop_scale",
        "0.5",
        "--save_strategy",
        "no",
    ]
    if kind == "c2fmae":
        options += ["--mixup_alpha", "0.2", "--cutmix_alpha", "0.2", "--drop_path_rate", "0.1", "--pooling", "mean"]
    results = run(example, folders[kind], dataset_folder, tmp_path / "out", *options)
    (scores,) = results["results"].values()
    assert scores["top1_accuracy"] > 0.8
    right = round(24 * scores["top1_accuracy"])
    assert f"top1_accuracy {scores['top1_accuracy']:.4f} ({right} of 24)" in capsys.readouterr().out
    assert set(scores) == {"top1_accuracy"}  # top 5 of 3 classes says nothing
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    assert saved["protocol"] == "fine_tuning"
    assert saved["settings"]["model"] == folders[kind]
    assert saved["settings"]["image_size"] == 32  # the model's own
    classify = pipeline("image-classification", model=str(tmp_path / "out"), device="cpu")
    for level, name in ((40, "dark"), (200, "bright")):
        photo = Image.fromarray(np.full((50, 37, 3), level, np.uint8))
        assert classify(photo)[0]["label"] == name
    again = run(example, str(tmp_path / "out"), dataset_folder, tmp_path / "again", "--evaluate_only", "true")
    assert again["results"] == results["results"]
    # With an evaluator of `evaluate`: the pipeline's answers, scored by our metric.
    found = evaluator("image-classification").compute(
        str(tmp_path / "out"),
        data=make_labelled(24, seed=1),
        metric=load_metric("top_k_accuracy"),
        label_mapping=classify.model.config.label2id,
        device=-1,
    )
    assert found["top1_accuracy"] == pytest.approx(scores["top1_accuracy"])


@pytest.mark.parametrize("kind", ["c2fmae", "vit"])
@pytest.mark.parametrize("protocol", ["--linear_probe", "--knn"])
def test_frozen_protocols(example, folders, dataset_folder, tmp_path, kind, protocol):
    options = {"--linear_probe": ["--probe_epochs", "30", "--probe_views", "1"], "--knn": ["--k", "5"]}
    options = [protocol, *options[protocol]]
    results = run(example, folders[kind], dataset_folder, tmp_path / "out", *options)["results"]
    assert set(results) == {"cls", "mean"}
    # Even random features know brightness.
    assert results["mean"]["top1_accuracy"] > 0.8
    if kind == "c2fmae" and protocol == "--linear_probe":
        classify = pipeline("image-classification", model=str(tmp_path / "out"), device="cpu")
        rows = make_labelled(24, seed=1)
        right = sum(classify(row["image"].convert("RGB"))[0]["label"] == NAMES[row["label"]] for row in rows)
        assert right / len(rows) == pytest.approx(results["mean"]["top1_accuracy"], abs=1 / len(rows))
        # A card of it gives the score of the other probe as that of another head.
        model = C2FMAEForImageClassification.from_pretrained(tmp_path / "out")
        figures = figures_of(run_of_weights(load_run(tmp_path / "out", "training"), model))
        assert {(figure.place.split(".")[1], figure.is_last) for figure in figures} == {("mean", True), ("cls", False)}
        assert all(("head not included" in figure.task) is not figure.is_last for figure in figures)
        assert {figure.split for figure in figures} == {"validation"}


def test_neighbours_are_those_of_the_training_split(example, folders, tmp_path):
    """The training labels are wrong, so a k-NN that learnt from the validation split would score higher."""
    rows = make_labelled(24)
    wrong = rows.remove_columns("label").add_column(
        "label", [(i + 1) % 3 for i in rows["label"]], feature=rows.features["label"]
    )
    datasets.DatasetDict({"train": wrong, "validation": rows}).save_to_disk(tmp_path / "wrong")
    results = run(example, folders["c2fmae"], tmp_path / "wrong", tmp_path / "out", "--knn", "--k", "1")
    assert results["results"]["mean"]["top1_accuracy"] == 0


def test_a_probe_learns_from_the_central_crop_and_augmented_views(
    example, folders, dataset_folder, tmp_path, monkeypatch
):
    seen, extract = [], example.extract_features

    def recorded(encoder, loader, description):
        seen.append(torch.cat([batch["pixel_values"] for batch in loader]))
        return extract(encoder, loader, description)

    monkeypatch.setattr(example, "extract_features", recorded)
    options = ["--linear_probe", "--probe_epochs", "2", "--probe_views", "2"]
    run(example, folders["c2fmae"], dataset_folder, tmp_path / "out", *options)
    central, *views, validation = seen
    assert [len(one) for one in seen] == [48, 48, 48, 24]
    for view in views:
        assert (view != central).flatten(1).any(dim=1).float().mean() > 0.9
    assert not torch.equal(*views)
    seen.clear()
    run(example, folders["c2fmae"], dataset_folder, tmp_path / "knn", "--knn")
    assert torch.equal(seen[0], central)  # neighbours are those of central crops alone
    assert torch.equal(seen[1], validation)


def test_a_frozen_encoder_is_not_trained(example, folders, dataset_folder, tmp_path):
    run(example, folders["c2fmae"], dataset_folder, tmp_path / "out", "--linear_probe", "--probe_epochs", "2")
    before = build_classifier(folders["c2fmae"], NAMES).c2fmae.state_dict()
    after = C2FMAEForImageClassification.from_pretrained(tmp_path / "out").c2fmae.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_only_the_head_is_new(folders, model):
    classifier = build_classifier(folders["c2fmae"], NAMES, drop_path_rate=0.2, pooling="cls")
    assert classifier.config.id2label == NAMES
    assert classifier.config.pooling == "cls"
    assert classifier.config.drop_path_rate == 0.2
    assert torch.equal(classifier.c2fmae.blocks[0].attn.qkv.weight, model.c2fmae.blocks[0].attn.qkv.weight)
    fresh = build_classifier(folders["c2fmae"], NAMES, from_scratch=True)
    assert not torch.equal(fresh.c2fmae.blocks[0].attn.qkv.weight, model.c2fmae.blocks[0].attn.qkv.weight)
    timm_model = build_classifier("vit_tiny_patch16_224", NAMES, from_scratch=True, image_size=64, pooling="mean")
    assert timm_model(torch.randn(2, 3, 64, 64)).logits.shape == (2, 3)
    with pytest.raises(ValueError, match="architecture without weights"):
        build_classifier("vit_tiny_patch16_224", NAMES)
    with pytest.raises(ValueError, match="classes: expected a unique name for each"):
        build_classifier(folders["vit"], {0: "a", 1: "b", 2: "b"})


def test_training_mixes_and_evaluation_does_not(folders, tmp_path):
    classifier = build_classifier(folders["c2fmae"], NAMES)
    trainer = ImageClassificationTrainer(
        model=classifier,
        args=TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", weight_decay=0.05, learning_rate=1e-3),
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        label_smoothing=0.1,
        layer_decay=0.5,
    )
    inputs = {"pixel_values": torch.randn(8, 3, 32, 32), "labels": torch.arange(8) % 3}
    classifier.eval()
    loss, outputs = trainer.compute_loss(classifier, dict(inputs), return_outputs=True)
    expected = torch.nn.functional.cross_entropy(classifier(inputs["pixel_values"]).logits, inputs["labels"])
    assert torch.allclose(loss, expected)
    assert outputs["logits"].shape == (8, 3)
    classifier.train()
    losses = {trainer.compute_loss(classifier, dict(inputs)).item() for _ in range(4)}
    assert len(losses) == 4
    optimizer = trainer.create_optimizer()
    rates = sorted({group["lr"] for group in optimizer.param_groups})
    assert rates == pytest.approx([1e-3 * 0.5**3, 1e-3 * 0.5**2, 1e-3 * 0.5, 1e-3])
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.05}


def test_bad_rows_are_named():
    training, evaluation = classification_transforms(32)
    rows = make_labelled(4)
    assert ImageLabelDataset(rows, training)[0]["pixel_values"].shape == (3, 32, 32)
    items = list(rows.cast_column("image", datasets.Image(decode=False)))
    items[1]["label"] = -1
    items[2]["image"] = {"bytes": b"no image", "path": None}
    broken = ImageLabelDataset(datasets.Dataset.from_list(items, features=rows.features), evaluation)
    with pytest.raises(ValueError, match="row 1, column 'label': expected a class, got -1"):
        broken[1]
    with pytest.raises(ValueError, match="row 2, column 'image': cannot be opened"):
        broken[2]
    with pytest.raises(ValueError, match=r"dataset: expected the columns \['label'\]"):
        ImageLabelDataset(rows.remove_columns("label"), training)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "bool"])
def test_labels_of_any_integers(example, folders, tmp_path, dtype):
    rows = make_labelled(24)
    values = [label > 0 if dtype == "bool" else label for label in rows["label"]]
    rows = rows.remove_columns("label").add_column("label", values, feature=datasets.Value(dtype))
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "rows")
    results = run(example, folders["c2fmae"], tmp_path / "rows", tmp_path / "out", "--knn", "--k", "1")
    assert results["results"]["mean"]["top1_accuracy"] == 1
    run(example, folders["c2fmae"], tmp_path / "rows", tmp_path / "tuned", "--max_steps", "2")


def test_one_class_and_absent_classes(example, folders, tmp_path, caplog):
    rows = make_labelled(24)
    one = rows.filter(lambda label: label == 0, input_columns="label")
    datasets.DatasetDict({"train": rows, "validation": one}).save_to_disk(tmp_path / "absent")
    results = run(example, folders["c2fmae"], tmp_path / "absent", tmp_path / "out", "--knn", "--k", "3")
    assert results["results"]["mean"]["top1_accuracy"] > 0.5
    assert "do not occur in the validation split: middle, bright." in caplog.text
    named = one.cast_column("label", datasets.ClassLabel(names=["only"]))
    datasets.DatasetDict({"train": named, "validation": named}).save_to_disk(tmp_path / "one")
    results = run(example, folders["c2fmae"], tmp_path / "one", tmp_path / "one_out", "--max_steps", "2")
    assert next(iter(results["results"].values()))["top1_accuracy"] == 1.0


def test_without_a_validation_split_a_share_of_every_class_is_held_out(example, folders, tmp_path, caplog):
    rows = make_labelled(40)
    rows.save_to_disk(tmp_path / "single")
    run(example, folders["c2fmae"], tmp_path / "single", tmp_path / "x", "--knn", "--validation_share", "0.25")
    assert "has no split 'validation': 10 of the 40 rows of 'train' are held out" in caplog.text
    train, validation = load_train_and_validation(str(tmp_path / "single"), validation_share=0.25)
    assert sorted([*train["label"], *validation["label"]]) == sorted(rows["label"])
    counts = [list(validation["label"]).count(label) for label in range(3)]
    assert max(counts) - min(counts) <= 1
    assert (
        load_train_and_validation(str(tmp_path / "single"), validation_share=0.25)[1]["label"] == validation["label"]
    )
    train, validation = load_train_and_validation(str(tmp_path / "single"), "train", "train")
    assert sorted([*train["label"], *validation["label"]]) == sorted(rows["label"])  # no row is in both
    assert "trains on the split it scores: 8 of the 40 rows of 'train' are held out" in caplog.text
    words = ["model", str(tmp_path / "single"), "--use_cpu", "--evaluate_only", "--validation_split", "train"]
    assert len(example.load_rows(example.parse(words)[0], 0)[1]) == 40  # nothing trains
    with pytest.raises(ValueError, match=r"expected the split 'test', got \['train'\]"):
        run(example, folders["c2fmae"], tmp_path / "single", tmp_path / "y", "--knn", "--validation_split", "test")
    with pytest.raises(ValueError, match=r"validation_share: expected a number between 0 and 1, got 1.0"):
        run(example, folders["c2fmae"], tmp_path / "single", tmp_path / "y", "--knn", "--validation_share", "1")


def test_a_folder_of_class_folders(example, folders, tmp_path):
    rows = make_labelled(30)
    for i, row in enumerate(rows):
        (tmp_path / "photos" / str(row["label"])).mkdir(parents=True, exist_ok=True)
        row["image"].save(tmp_path / "photos" / str(row["label"]) / f"{i}.png")
    results = run(example, folders["c2fmae"], tmp_path / "photos", tmp_path / "out", "--knn", "--k", "3")
    assert results["run"]["rows"] == {"train": 24, "validation": 6}


def test_without_any_option_a_few_photographs_are_learnt(folders, dataset_folder, tmp_path, caplog, capsys):
    """And no worse than nearest neighbours of the same encoder learn them."""
    caplog.set_level("INFO")
    command, arguments = load_command("classify").main, [folders["c2fmae"], str(dataset_folder), "--use_cpu"]
    neighbours = command([*arguments, "--knn", "--output_dir", str(tmp_path / "knn")])["results"]["mean"]
    tuned = command([*arguments, "--output_dir", str(tmp_path / "tuned")])["results"]["mean"]
    assert tuned["top1_accuracy"] >= neighbours["top1_accuracy"] > 0.6
    printed = capsys.readouterr().out
    assert re.search(
        r"Training \S+ \(C2FMAEForImageClassification, \d\.\d M parameters, new head\) on 48 rows of \S+, "
        r"24 held out, 3 classes\. The epoch with the best accuracy, then loss is kept\. "
        rf"120 steps of 8 images \(20 epochs\) on cpu, learning rate 0\.00035\. Output folder: {tmp_path}/tuned\.\n",
        printed,
    )
    assert "LOAD REPORT" not in caplog.text  # a new head is no news
    assert re.search(r"Kept: epoch \d+ of 20, chosen by its accuracy, then loss\.", caplog.text)


@pytest.mark.parametrize("path", sorted((RECIPES / "classify").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_valid(example, path):
    args, training_args, _ = example.parse([str(path), "--use_cpu", "true"])
    assert args.model
    assert args.image_size % 8 == 0
    assert training_args.num_train_epochs in (5, 100)


def test_mae_augmentations():
    """RandAugment and erasing change images in training only, and keep their size and type."""
    training, evaluation = classification_transforms(32, rand_augment=True, random_erasing=1.0, min_crop_scale=1.0)
    image = Image.fromarray(np.full((32, 32, 3), 128, np.uint8))
    samples = [training(image) for _ in range(8)]
    assert all(sample.shape == (3, 32, 32) and sample.dtype == torch.float32 for sample in samples)
    assert all(sample.std() > 0.1 for sample in samples)  # a rectangle of noise
    assert evaluation(image).std(dim=(1, 2)).max() < 1e-6


def test_classes_must_be_the_same_in_both_splits(example, folders, tmp_path):
    train, other = make_labelled(6), make_labelled(6)
    other = other.cast_column("label", datasets.ClassLabel(names=["bright", "dark", "middle"]))
    datasets.DatasetDict({"train": train, "validation": other}).save_to_disk(tmp_path / "shuffled")
    with pytest.raises(ValueError, match="column 'label': expected the same classes in both splits"):
        run(example, folders["c2fmae"], tmp_path / "shuffled", tmp_path / "x", "--knn")
    texts = [rows.cast_column("label", datasets.Value("string")) for rows in (train, train)]
    datasets.DatasetDict(dict(zip(("train", "validation"), texts))).save_to_disk(tmp_path / "texts")
    with pytest.raises(ValueError, match="column 'label': expected class names or integers"):
        run(example, folders["c2fmae"], tmp_path / "texts", tmp_path / "x", "--knn")


def test_scoring_checks_that_the_classes_are_the_model_s(example, folders, dataset_folder, tmp_path):
    run(example, folders["c2fmae"], dataset_folder, tmp_path / "out", "--max_steps", "2")
    model = str(tmp_path / "out")
    rows = make_labelled(12)
    renamed = rows.cast_column("label", datasets.ClassLabel(names=["bright", "dark", "middle"]))
    larger = rows.remove_columns("label").add_column("label", [5, *[0] * 11])
    numbers = rows.cast_column("label", datasets.Value("int64"))
    for name, one in {"renamed": renamed, "larger": larger, "numbers": numbers}.items():
        datasets.DatasetDict({"train": one, "validation": one}).save_to_disk(tmp_path / name)
    for name in ("renamed", "larger"):
        with pytest.raises(ValueError, match=r"classes: expected the model's, \{0: 'dark', .*, got the dataset's"):
            run(example, model, tmp_path / name, tmp_path / "scores", "--evaluate_only", "true")
    run(example, model, tmp_path / "numbers", tmp_path / "scores", "--evaluate_only", "true")


@pytest.mark.parametrize("kind", ["c2fmae", "vit"])
def test_scoring_sees_images_as_in_training(example, folders, dataset_folder, tmp_path, kind):
    options = ("--max_steps", "2", "--image_size", "48", "--save_strategy", "no", "--crop_pct", "1.0")
    trained = run(example, folders[kind], dataset_folder, tmp_path / "out", *options)
    again = run(example, str(tmp_path / "out"), dataset_folder, tmp_path / "scores", "--evaluate_only")
    assert again["settings"]["image_size"] == 48
    assert again["settings"]["crop_pct"] == pytest.approx(1.0)
    assert again["results"] == trained["results"]
    # A pipeline sees them so, too.
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    photo = make_labelled(1)[0]["image"].convert("RGB")
    _, evaluation = classification_transforms(48, processor.image_mean, processor.image_std, crop_pct=1.0)
    pixels = processor(photo, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(pixels, evaluation(photo), atol=0.05, rtol=0)
    assert pipeline("image-classification", model=str(tmp_path / "out"), device="cpu")(photo)
    if kind == "c2fmae":
        assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).pretrained_cfg["crop_pct"] == 1.0
    options = ("--evaluate_only", "--image_size", "32")
    given = run(example, str(tmp_path / "out"), dataset_folder, tmp_path / "x", *options)
    assert given["settings"]["image_size"] == 32


def test_the_best_epoch_and_a_resumed_run_have_the_weights_of_their_checkpoint(
    example, folders, dataset_folder, tmp_path
):
    """transformers saves ViT's weights under other names than its trainer looks for."""
    options = ("--num_train_epochs", "3", "--learning_rate", "5e-3", "--save_total_limit", "9", "--layer_decay", "1")
    run(example, folders["vit"], dataset_folder, tmp_path / "out", *options, "--metric_for_best_model", "loss")
    state = json.loads((tmp_path / "out/trainer_state.json").read_text())
    best = Path(state["best_model_checkpoint"])
    found, expected, last = (
        ViTForImageClassification.from_pretrained(folder).state_dict()
        for folder in (tmp_path / "out", best, tmp_path / f"out/checkpoint-{state['global_step']}")
    )
    assert all(torch.equal(found[name], expected[name]) for name in found)
    # At a rate of nearly 0, a resumed run keeps what it resumes from.
    shutil.copytree(tmp_path / f"out/checkpoint-{state['global_step']}", tmp_path / "again/checkpoint-6")
    more = ("--num_train_epochs", "4", "--learning_rate", "1e-12", "--resume_from_checkpoint", "last")
    run(
        example,
        folders["vit"],
        dataset_folder,
        tmp_path / "again",
        *options,
        *more,
        "--load_best_model_at_end",
        "false",
    )
    resumed = ViTForImageClassification.from_pretrained(tmp_path / "again").state_dict()
    start = ViTForImageClassification.from_pretrained(folders["vit"]).state_dict()
    name = next(name for name in last if "layer" in name and last[name].ndim == 2)
    torch.testing.assert_close(resumed[name], last[name], atol=1e-3, rtol=0)
    assert not torch.allclose(resumed[name], start[name], atol=1e-3)


@pytest.mark.parametrize(
    ("config", "image_size"),
    [
        (BeitConfig(image_size=32, patch_size=8, **SIZES), 48),
        (SiglipConfig(vision_config={"image_size": 32, "patch_size": 8, **SIZES}), 32),
        (HieraConfig(image_size=[32, 32], embed_dim=16, num_heads=[1, 2, 4, 8], depths=[1, 1, 1, 1]), 32),
        (ViTConfig(image_size=[32, 32], patch_size=8, **SIZES), 32),
    ],
    ids=["beit", "siglip", "hiera", "pairs"],
)
def test_models_without_vit_s_table_of_positions_are_built_as_they_are(tmp_path, config, image_size):
    config.save_pretrained(tmp_path)
    assert build_classifier(str(tmp_path), NAMES, from_scratch=True, image_size=image_size).config.num_labels == 3


def test_a_saved_view_that_is_not_square_is_nobody_s_side(tmp_path):
    for size, expected in (((32, 32), 32), ((32, 64), None)):
        C2FMAEImageProcessor(size=size, patch_size=8, label_stride=4).save_pretrained(tmp_path)
        assert saved_view(str(tmp_path))[0] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--knn", "--k", "0"], "--k and --temperature: expected at least 1 and above 0, got 0 and 0.07"),
        (["--knn", "--temperature", "-0.07"], "--k and --temperature: expected at least 1 and above 0, got 20"),
        (["--linear_probe", "--evaluate_only"], "--evaluate_only and --linear_probe: --evaluate_only scores"),
        (["--evaluate_only", "--push_to_hub"], "--evaluate_only and --push_to_hub: publish the model and its score"),
        (["--knn", "--mixup_alpha", "0.8"], "--mixup_alpha: expected none for knn, which does not use it"),
        (["--linear_probe", "--k", "5"], "--k: expected none for linear probe, which does not use it"),
        (["--probe_epochs", "5"], "--probe_epochs: expected none for fine tuning, which does not use it"),
        (["--evaluate_only", "--from_scratch"], "--evaluate_only and --from_scratch: random weights are no"),
        (["--evaluate_only", "--pooling", "cls"], "--evaluate_only and --pooling: a fine-tuned classifier keeps"),
    ],
)
def test_options_that_do_not_go_together(example, options, message, capsys):
    for protocol in ("--linear_probe", "--knn", "--evaluate_only"):  # a recipe's are not used, and may be there
        example.parse(["--recipe", "imagenet-vit-base", "--use_cpu", protocol, "--model", "m", "--dataset_name", "d"])
    with pytest.raises(SystemExit):
        example.parse(["model", "data", *options])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("command", "rate"), [("classify", 0.65), ("segment", 0.75), ("detect", 0.7)])
def test_random_weights_train_at_one_rate(command, rate):
    words = ["vit_tiny_patch16_224", "data", "--use_cpu"]
    for options, expected in ([], rate), (["--from_scratch"], 1.0), (["--from_scratch", "--layer_decay", "0.5"], 0.5):
        assert load_command(command).parse([*words, *options])[0].layer_decay == expected


def test_what_the_trainer_would_ignore_is_refused():
    with pytest.raises(ValueError, match=r"label_smoothing_factor: expected 0, got 0\.1; classification has its own"):
        FineTuningArguments("unused", use_cpu=True, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="auto_find_batch_size: expected False, since the learning rate follows"):
        FineTuningArguments("unused", use_cpu=True, auto_find_batch_size=True)
    FineTuningArguments("unused", use_cpu=True, auto_find_batch_size=True, learning_rate=1e-4)


@pytest.mark.parametrize("protocol", [[], ["--knn"]], ids=["fine_tuning", "knn"])
def test_grey_encoders_are_refused_at_the_start(example, dataset_folder, tmp_path, protocol):
    config = C2FMAEConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=8, num_channels=1
    )
    C2FMAEModel(config).save_pretrained(tmp_path / "grey")
    with pytest.raises(ValueError, match=r"num_channels: expected an encoder of RGB images \(3\), got 1"):
        run(example, str(tmp_path / "grey"), dataset_folder, tmp_path / "out", *protocol)
    for build in (build_segmenter, partial(build_segmenter, head="light"), build_mask_rcnn):
        with pytest.raises(ValueError, match=r"num_channels: expected an encoder of RGB images \(3\), got 1"):
            build(str(tmp_path / "grey"), NAMES)


def test_scores_do_not_replace_a_model_s_record(example, folders, dataset_folder, tmp_path):
    run(example, folders["c2fmae"], dataset_folder, tmp_path / "out", "--max_steps", "1", "--save_strategy", "no")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    for option in ("--knn", "--linear_probe", "--evaluate_only"):
        with pytest.raises(ValueError, match="output_dir: expected a folder without a model"):
            run(example, folders["c2fmae"], dataset_folder, tmp_path / "out", option)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == before


def test_what_would_be_lost_or_fail_later_is_refused(example, folders, dataset_folder, tmp_path):
    options = ["--max_steps", "2", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"metric_for_best_model: expected one of \['loss', .*, got 'accuracy'"):
        run(example, folders["c2fmae"], dataset_folder, tmp_path / "out", "--metric_for_best_model", "accuracy")
    run(example, folders["c2fmae"], dataset_folder, tmp_path / "out", *options)
    with pytest.raises(ValueError, match=r"checkpoint-2 exists already. Pass --resume_from_checkpoint last"):
        run(example, folders["c2fmae"], dataset_folder, tmp_path / "out", *options)
    run(example, folders["c2fmae"], dataset_folder, tmp_path / "out", *options, "--resume_from_checkpoint", "last")
    with pytest.raises(ValueError, match="max_train_samples: expected at least 1, got 0"):
        run(example, folders["c2fmae"], dataset_folder, tmp_path / "new", "--max_train_samples", "0")


def test_integer_labels_are_held_out_by_class(tmp_path):
    rows = make_labelled(60).cast_column("label", datasets.Value("int64"))
    rows.save_to_disk(tmp_path / "rows")
    _, validation = load_train_and_validation(str(tmp_path / "rows"))
    assert [list(validation["label"]).count(label) for label in range(3)] == [4, 4, 4]


def test_the_best_epoch_has_the_higher_accuracy_and_then_the_lower_loss():
    labels = np.array([0, 0, 1, 1])

    def scores(right: int, margin: float) -> float:
        signs = np.where(np.arange(4) < right, 1.0, -1.0) * np.where(labels == 0, 1, -1)
        return ranked_accuracy((margin * np.stack([signs, -signs], axis=1)).astype(np.float32), labels)

    assert scores(3, 0.1) > scores(2, 0.1)
    assert scores(3, 50.0) > scores(2, 0.1)  # though one mistake costs 100
    assert scores(4, 2.0) > scores(4, 0.1)
    assert 0.75 < scores(4, 0.1) < scores(4, 50.0) <= 1
