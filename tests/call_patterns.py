"""
What other people's programs do with a vision transformer, in our own few lines each: on C2FMAE models of 64, 96 and
224 pixels, and on their peers, for the table of docs/conformity.md.

    python tests/call_patterns.py > benchmarks/results/call_patterns.json

All models are small and have random weights. Peers are transformers' ViT (for segmentation BEiT, as a backbone DINOv2)
and timm's vit_tiny_patch16_224, in transformers by its wrapper. Patterns whose package is absent are skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import json
import logging
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from accelerate import Accelerator
from packaging.version import Version
from PIL import Image
from safetensors.torch import load_file
from timm.models import load_checkpoint, save_for_hf
from timm.optim import create_optimizer_v2
from torch import nn
from torchvision.transforms import v2
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    BeitConfig,
    BeitForSemanticSegmentation,
    BeitImageProcessor,
    BitsAndBytesConfig,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    Dinov2Config,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    pipeline,
)
from transformers.integrations.peft import MIN_PEFT_VERSION, check_peft_version
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from c2fmae_hf import (
    C2FMAEBackbone,
    C2FMAEConfig,
    C2FMAEForPreTraining,
    C2FMAEForSemanticSegmentation,
    C2FMAEImageProcessor,
    MaskRCNNImageProcessor,
)
from c2fmae_hf.transfer.detection import build_mask_rcnn


RECORD = Path(__file__).resolve().parents[1] / "benchmarks/results/call_patterns.json"
PATCH_SIZES = {64: 8, 96: 12, 224: 16}
WIDTH, BLOCKS = 64, 4
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": 4}
NAMES = {"0": "cat", "1": "dog"}  # as JSON has them


class NotOffered(Exception):
    """The library has no such thing for this model."""


class Absent(Exception):
    """A package is not installed."""


def photographs(*sizes: tuple[int, int]) -> list[Image.Image]:
    """Noise of these `(width, height)`."""
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)) for width, height in sizes]


PHOTOS = photographs((120, 90), (70, 100), (64, 64), (300, 260))


@dataclass
class Subject:
    """A model as folders, each saved when it is first asked for."""

    name: str
    side: int
    folder: Path
    saved: dict[str, Path] = field(default_factory=dict)

    def get(self, kind: str) -> str:
        """The folder of an `encoder`, `classifier`, `segmenter` or `detector`."""
        if kind not in self.saved:
            torch.manual_seed(0)
            getattr(self, f"save_{kind}")(self.folder / kind)
            self.saved[kind] = self.folder / kind
        return str(self.saved[kind])

    def save_classifier(self, folder: Path) -> None:
        source = self.get("encoder")
        model = AutoModelForImageClassification.from_pretrained(source, num_labels=2, **classes())
        model.save_pretrained(folder)
        AutoImageProcessor.from_pretrained(source).save_pretrained(folder)

    def save_detector(self, folder: Path) -> None:
        detr(self.backbone()).save_pretrained(folder)
        DetrImageProcessor(size={"shortest_edge": 90, "longest_edge": 133}).save_pretrained(folder)

    def backbone(self, **options: Any) -> Any:
        """The configuration of a backbone."""
        raise NotOffered("no backbone")

    def timm(self, **options: Any) -> nn.Module:
        raise NotOffered("does not apply")


class Ours(Subject):
    def config(self, **fields: Any) -> C2FMAEConfig:
        decoder = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
        images = {"image_size": self.side, "patch_size": PATCH_SIZES[self.side], "num_semantic_classes": 5}
        head = {"segmentation_head_channels": 16, "decoder_intermediate_size": 64, "intermediate_size": 2 * WIDTH}
        return C2FMAEConfig(**{**SIZES, **decoder, **images, **head, **fields})

    def save_encoder(self, folder: Path) -> None:  # as pre-training leaves it, with the decoder
        C2FMAEForPreTraining(self.config()).save_pretrained(folder)
        C2FMAEImageProcessor.from_config(self.config()).save_pretrained(folder)

    def save_segmenter(self, folder: Path) -> None:
        C2FMAEForSemanticSegmentation(self.config(num_labels=4)).save_pretrained(folder)
        C2FMAEImageProcessor.from_config(self.config()).save_pretrained(folder)

    def save_detector(self, folder: Path) -> None:
        small = {"pyramid_channels": 16, "num_box_convolutions": 1, "num_mask_convolutions": 1, "box_hidden_size": 32}
        model = build_mask_rcnn(self.get("encoder"), {0: "cat", 1: "dog"}, image_size=64, max_image_size=96, **small)
        model.save_pretrained(folder)
        MaskRCNNImageProcessor().save_pretrained(folder)

    def backbone(self, **options: Any) -> Any:
        return AutoConfig.from_pretrained(self.get("encoder"), **options)

    def timm(self, **options: Any) -> nn.Module:
        if Version(timm.__version__) < Version("1.0.26"):
            raise Absent("needs timm 1.0.26 or newer for safetensors in local-dir:")
        return timm.create_model(f"local-dir:{self.get('encoder')}", pretrained=True, **options)


class Vit(Subject):
    def save_encoder(self, folder: Path) -> None:
        ViTModel(ViTConfig(**SIZES, intermediate_size=2 * WIDTH), add_pooling_layer=False).save_pretrained(folder)
        ViTImageProcessor().save_pretrained(folder)

    def save_segmenter(self, folder: Path) -> None:
        config = BeitConfig(**SIZES, intermediate_size=2 * WIDTH, num_labels=4, out_indices=[1, 2, 3, 4])
        config.use_auxiliary_head, config.pool_scales = False, [1]
        BeitForSemanticSegmentation(config).save_pretrained(folder)
        BeitImageProcessor().save_pretrained(folder)

    def backbone(self, **options: Any) -> Any:
        options.pop("add_fpn", None)
        return Dinov2Config(**SIZES, mlp_ratio=2, **options)


class Timm(Subject):
    def save_encoder(self, folder: Path) -> None:
        model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
        save_for_hf(model, folder, safe_serialization=True)
        config = json.loads((folder / "config.json").read_text())
        del config["model_args"]  # on which the wrapper stumbles; models on the Hub have none
        (folder / "config.json").write_text(json.dumps(config))

    def save_segmenter(self, folder: Path) -> None:
        raise NotOffered("no such class")

    def backbone(self, **options: Any) -> Any:
        raise NotOffered("no maps of a ViT in the wrapper's backbone")

    def timm(self, **options: Any) -> nn.Module:
        return timm.create_model("vit_tiny_patch16_224", **{"num_classes": 0, **options})


def subjects(folder: Path) -> list[Subject]:
    ours = [Ours(f"C2FMAE, {side} px", side, folder / f"c2fmae-{side}") for side in PATCH_SIZES]
    return [*ours, Vit("ViT", 224, folder / "vit"), Timm("timm", 224, folder / "timm")]


def classes() -> dict[str, dict]:
    return {"id2label": dict(NAMES), "label2id": {name: index for index, name in NAMES.items()}}


def detr(backbone: Any, **options: Any) -> DetrForObjectDetection:
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 10, "num_labels": 2}
    feed_forward = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    config = DetrConfig(use_timm_backbone=False, backbone_config=backbone, **sizes, **feed_forward, **options)
    return DetrForObjectDetection(config)


def package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Absent(f"needs {name}") from error


def pixels(subject: Subject, number: int = 2) -> torch.Tensor:
    return torch.randn(number, 3, subject.side, subject.side, generator=torch.Generator().manual_seed(0))


def assert_close(first: torch.Tensor, second: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert first.shape == second.shape, (first.shape, second.shape)
    difference = (first.float() - second.float()).abs().max().item()
    assert difference <= tolerance, f"a difference of {difference:.1e}"


# transformers: features and pipelines


def features_of_photographs(subject: Subject, folder: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(subject.get("encoder"))
    model = AutoModel.from_pretrained(subject.get("encoder")).eval()
    with torch.no_grad():
        outputs = model(**processor(PHOTOS, return_tensors="pt"))
    assert outputs.last_hidden_state.shape[0] == len(PHOTOS)
    assert outputs.last_hidden_state.isfinite().all()


def pipeline_for_features(subject: Subject, folder: Path) -> None:
    extract = pipeline("image-feature-extraction", model=subject.get("encoder"), device="cpu")
    processor = AutoImageProcessor.from_pretrained(subject.get("encoder"))
    model = AutoModel.from_pretrained(subject.get("encoder")).eval()
    for photo, found in zip(PHOTOS, extract(PHOTOS)):
        with torch.no_grad():
            expected = model(**processor(photo, return_tensors="pt")).last_hidden_state
        assert_close(torch.tensor(found), expected)


def pipeline_for_classes(subject: Subject, folder: Path) -> None:
    classify = pipeline("image-classification", model=subject.get("classifier"), device="cpu")
    for found in classify(PHOTOS, batch_size=2):
        assert {entry["label"] for entry in found} == {"cat", "dog"}
        assert abs(sum(entry["score"] for entry in found) - 1) < 1e-4


def pipeline_for_segments(subject: Subject, folder: Path) -> None:
    segment = pipeline("image-segmentation", model=subject.get("segmenter"), device="cpu")
    for photo, found in zip(PHOTOS, segment(PHOTOS)):
        assert sum(np.asarray(entry["mask"]).astype(bool).sum() for entry in found) == photo.width * photo.height


def pipeline_for_objects(subject: Subject, folder: Path) -> None:
    detect = pipeline("object-detection", model=subject.get("detector"), device="cpu", threshold=0.0)
    for photo in PHOTOS:
        found = detect(photo)
        assert found
        for entry in found:
            assert 0 <= entry["box"]["xmin"] <= entry["box"]["xmax"] <= photo.width


# transformers: its example scripts


def classification_data(subject: Subject) -> tuple[Any, list[dict]]:
    """As run_image_classification.py prepares photographs, by the processor's `size` and statistics."""
    processor = AutoImageProcessor.from_pretrained(subject.get("encoder"))
    if isinstance(processor, TimmWrapperImageProcessor):
        transform = processor.train_transforms
    else:
        size = processor.size["shortest_edge"]
        size = size or (processor.size["height"], processor.size["width"])
        steps = [v2.ToImage(), v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
        statistics = v2.Normalize(processor.image_mean, processor.image_std)
        transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), statistics])
    return processor, [{"pixel_values": transform(photo), "labels": index % 2} for index, photo in enumerate(PHOTOS)]


def collate(samples: list[dict]) -> dict[str, torch.Tensor]:
    labels = [torch.as_tensor(sample["labels"]) for sample in samples]
    return {"pixel_values": torch.stack([sample["pixel_values"] for sample in samples]), "labels": torch.stack(labels)}


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    every = {"save_strategy": "epoch", "eval_strategy": "epoch", "logging_strategy": "epoch"}
    speed = {"per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    options = {"num_train_epochs": 2, "remove_unused_columns": False, **every, **speed, **options}
    return TrainingArguments(str(folder), **options)


def fine_tuned(subject: Subject, folder: Path) -> tuple[Trainer, str]:
    """run_image_classification.py: labels as strings, checkpoints, the best one, save, resume."""
    source = subject.get("encoder")
    processor, rows = classification_data(subject)
    config = AutoConfig.from_pretrained(source, num_labels=2, finetuning_task="image-classification", **classes())
    model = AutoModelForImageClassification.from_pretrained(source, config=config)

    def trainer(model: nn.Module) -> Trainer:
        best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "num_train_epochs": 3}
        accuracy = {"compute_metrics": lambda found: {"accuracy": float((found[0].argmax(1) == found[1]).mean())}}
        data = {"train_dataset": rows, "eval_dataset": rows, "data_collator": collate}
        return Trainer(model, arguments(folder, **best), processing_class=processor, **data, **accuracy)

    straight = trainer(model)
    straight.train()
    expected = {name: value.clone() for name, value in straight.model.state_dict().items()}
    resumed = trainer(AutoModelForImageClassification.from_pretrained(source, config=config))
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert resumed.state.global_step == 6
    for name, value in resumed.model.state_dict().items():
        assert torch.allclose(value, expected[name], atol=1e-4), "the resumed run ends with other weights"
    resumed.save_model()
    assert 0 <= resumed.evaluate()["eval_accuracy"] <= 1
    return resumed, str(folder)


def script_for_classification(subject: Subject, folder: Path) -> None:
    trainer, saved = fine_tuned(subject, folder)
    again = AutoModelForImageClassification.from_pretrained(saved).eval()
    assert again.config.id2label == {0: "cat", 1: "dog"}
    with torch.no_grad():
        assert_close(again(pixels(subject)).logits, trainer.model.eval()(pixels(subject)).logits)
    assert len(pipeline("image-classification", model=saved, device="cpu")(PHOTOS[0])) == 2


def script_for_classification_without_trainer(subject: Subject, folder: Path) -> None:
    _, rows = classification_data(subject)
    model = AutoModelForImageClassification.from_pretrained(subject.get("encoder"), num_labels=2, **classes())
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    loader = torch.utils.data.DataLoader(rows, batch_size=2, collate_fn=collate)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for batch in loader:
        with accelerator.accumulate(model):
            outputs = model(**batch)
            accelerator.backward(outputs.loss)
            optimizer.step()
            optimizer.zero_grad()
        accelerator.gather_for_metrics((outputs.logits.argmax(dim=-1), batch["labels"]))
    accelerator.save_state(str(folder / "state"))
    accelerator.load_state(str(folder / "state"))
    unwrapped = accelerator.unwrap_model(model)
    state = accelerator.get_state_dict(model)
    unwrapped.save_pretrained(folder / "model", is_main_process=True, save_function=accelerator.save, state_dict=state)
    again = AutoModelForImageClassification.from_pretrained(folder / "model").eval()
    with torch.no_grad():
        assert_close(again(pixels(subject)).logits, unwrapped.eval()(pixels(subject)).logits)


def script_for_semantic_segmentation(subject: Subject, folder: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(subject.get("segmenter"))
    model = AutoModelForSemanticSegmentation.from_pretrained(subject.get("segmenter"), num_labels=4)
    assert processor.do_reduce_labels is False
    height = processor.size["shortest_edge"] or processor.size["height"]
    statistics = v2.Normalize(processor.image_mean, processor.image_std)
    transform = v2.Compose([v2.ToImage(), v2.Resize((height, height)), v2.ToDtype(torch.float32, True), statistics])
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randint(0, 4, (height, height), generator=generator) for _ in PHOTOS]
    rows = [{"pixel_values": transform(photo), "labels": label_map} for photo, label_map in zip(PHOTOS, maps)]

    @torch.no_grad()
    def compute_metrics(found: Any) -> dict[str, float]:
        logits = torch.from_numpy(found[0])
        resized = nn.functional.interpolate(logits, size=found[1].shape[-2:], mode="bilinear", align_corners=False)
        metrics = {"accuracy": float((resized.argmax(1) == torch.from_numpy(found[1])).float().mean())}
        return {**metrics, "reduced": float(processor.do_reduce_labels)}

    data = {"train_dataset": rows, "eval_dataset": rows, "data_collator": collate, "compute_metrics": compute_metrics}
    trainer = Trainer(model, arguments(folder), processing_class=processor, **data)
    trainer.train()
    assert "eval_accuracy" in trainer.evaluate()
    trainer.save_model()
    inputs = processor(PHOTOS, return_tensors="pt")
    again = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
    sizes = [(photo.height, photo.width) for photo in PHOTOS]
    with torch.no_grad():
        logits = again(**inputs).logits
        assert_close(logits, trainer.model.eval()(**inputs).logits)
        assert not torch.allclose(logits[0], logits[3], atol=1e-4)
        found = processor.post_process_semantic_segmentation(again(**inputs), target_sizes=sizes)
    assert [tuple(label_map.shape) for label_map in found] == sizes


def script_for_instance_segmentation(subject: Subject, folder: Path) -> None:
    backbone = subject.backbone(out_features=[f"stage{index}" for index in range(1, 5)], add_fpn=True)
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 32}
    depths = {"dim_feedforward": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 5, "num_labels": 2}
    config = Mask2FormerConfig(backbone_config=backbone, num_attention_heads=2, train_num_points=64, **sizes, **depths)
    model = Mask2FormerForUniversalSegmentation(config)
    processor = Mask2FormerImageProcessor(size={"height": 112, "width": 140}, ignore_index=255, num_labels=2)
    maps = [np.tile(np.repeat([0, 1, 255], photo.width)[: photo.width], (photo.height, 1)) for photo in PHOTOS]
    ids = [{0: 0, 1: 1}] * len(PHOTOS)
    batch = processor(PHOTOS, segmentation_maps=maps, instance_id_to_semantic_id=ids, return_tensors="pt")
    model(**batch).loss.backward()
    model.eval().save_pretrained(folder)
    again = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        found, expected = again(pixel_values=batch["pixel_values"]), model(pixel_values=batch["pixel_values"])
    assert_close(found.class_queries_logits, expected.class_queries_logits)
    sizes = [(photo.height, photo.width) for photo in PHOTOS]
    assert len(processor.post_process_instance_segmentation(found, target_sizes=sizes)) == len(PHOTOS)


def script_for_object_detection(subject: Subject, folder: Path) -> None:
    """run_object_detection.py with DETR, at sizes that no patch divides."""
    model = detr(subject.backbone(), id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    processor = DetrImageProcessor(size={"shortest_edge": 90, "longest_edge": 133})
    boxes = [{"bbox": [2, 3, 30, 40], "category_id": 1, "area": 1200, "iscrowd": 0}]
    entries = [{"image_id": index, "annotations": boxes} for index in range(len(PHOTOS))]
    batch = processor(PHOTOS, annotations=entries, return_tensors="pt")
    model(**batch).loss.backward()
    model.eval().save_pretrained(folder)
    again = AutoModelForObjectDetection.from_pretrained(folder).eval()
    inputs = processor(PHOTOS, return_tensors="pt")
    with torch.no_grad():
        found, expected = again(**inputs), model(**inputs)
    assert_close(found.pred_boxes, expected.pred_boxes)
    sizes = torch.tensor([(photo.height, photo.width) for photo in PHOTOS])
    assert len(processor.post_process_object_detection(found, 0.0, sizes)) == len(PHOTOS)


def training_of_a_detector(subject: Subject, folder: Path) -> None:
    """As the script puts samples together, on the detector that the pipeline opens."""
    processor = AutoImageProcessor.from_pretrained(subject.get("detector"))
    model = AutoModelForObjectDetection.from_pretrained(subject.get("detector"))
    polygon = [[2.0, 3.0, 42.0, 3.0, 42.0, 43.0, 2.0, 43.0]]
    one = {"bbox": [2, 3, 40, 40], "category_id": 1, "area": 1600, "iscrowd": 0, "segmentation": polygon}
    rows = []
    for index, photo in enumerate(PHOTOS):
        row = processor(photo, annotations={"image_id": index, "annotations": [one]}, return_tensors="pt")
        rows.append({name: value[0] for name, value in row.items()})

    def pad(samples: list[dict]) -> dict[str, Any]:
        batch: dict[str, Any] = {"labels": [sample["labels"] for sample in samples]}
        height, width = (max(sample["pixel_mask"].shape[side] for sample in samples) for side in (0, 1))
        for name in ("pixel_values", "pixel_mask"):
            images = [sample[name] for sample in samples]
            edges = [(0, width - image.shape[-1], 0, height - image.shape[-2]) for image in images]
            batch[name] = torch.stack([nn.functional.pad(image, edge) for image, edge in zip(images, edges)])
        return batch

    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"eval_strategy": "no", "num_train_epochs": 1, "learning_rate": 1e-3}
    Trainer(model, arguments(folder, **options), train_dataset=rows, data_collator=pad).train()
    learnt = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert any("qkv" in name or "query" in name for name in learnt)


# transformers: how a model is loaded, adapted, and run


def another_image_size(subject: Subject, folder: Path) -> None:
    model = AutoModel.from_pretrained(subject.get("encoder")).eval()
    other = torch.randn(1, 3, subject.side * 2, subject.side)
    with torch.no_grad():
        tokens = model(other, interpolate_pos_encoding=True).last_hidden_state
    assert tokens.shape[1] == 1 + 2 * (subject.side // PATCH_SIZES[subject.side]) ** 2


def image_size_when_loading(subject: Subject, folder: Path) -> None:
    model = AutoModel.from_pretrained(subject.get("encoder"), image_size=2 * subject.side).eval()
    plain = AutoModel.from_pretrained(subject.get("encoder")).eval()
    larger = torch.randn(1, 3, 2 * subject.side, 2 * subject.side)
    with torch.no_grad():
        expected = plain(larger, interpolate_pos_encoding=True).last_hidden_state
        assert_close(model(larger).last_hidden_state, expected)


def larger_photographs(subject: Subject, folder: Path) -> None:
    """`size` of the processor and `interpolate_pos_encoding`: the usual way to larger inputs."""
    size = {"height": 2 * subject.side, "width": 2 * subject.side}
    processor = AutoImageProcessor.from_pretrained(subject.get("encoder"), size=size)
    batch = processor(PHOTOS, return_tensors="pt")
    shape = tuple(batch["pixel_values"].shape[-2:])
    assert shape == (2 * subject.side, 2 * subject.side), f"`size` is ignored: images of {shape}"
    with torch.no_grad():
        outputs = AutoModel.from_pretrained(subject.get("encoder")).eval()(**batch, interpolate_pos_encoding=True)
    assert outputs.last_hidden_state.shape[1] == 1 + 4 * (subject.side // PATCH_SIZES[subject.side]) ** 2


def head_of_ones_own(subject: Subject, folder: Path) -> None:
    """A subclass of the classifier with a second head."""
    base: Any = type(AutoModelForImageClassification.from_pretrained(subject.get("classifier")))

    class TwoHeads(base):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.second_head = nn.Linear(7, 2)
            self.post_init()

    model = TwoHeads(AutoConfig.from_pretrained(subject.get("classifier"))).eval()
    model.save_pretrained(folder)
    again = TwoHeads.from_pretrained(folder).eval()
    assert torch.equal(again.second_head.weight, model.second_head.weight)
    with torch.no_grad():
        assert_close(again(pixels(subject)).logits, model(pixels(subject)).logits)


def another_number_of_classes(subject: Subject, folder: Path) -> None:
    options = {"num_labels": 5, "ignore_mismatched_sizes": True}
    model = AutoModelForImageClassification.from_pretrained(subject.get("classifier"), **options)
    assert model(pixels(subject), labels=torch.tensor([0, 4])).logits.shape == (2, 5)
    assert len(model.config.id2label) == 5


def hidden_states_and_attentions(subject: Subject, folder: Path) -> None:
    model = AutoModel.from_pretrained(subject.get("encoder"), attn_implementation="eager").eval()
    with torch.no_grad():
        outputs = model(pixels(subject), output_hidden_states=True, output_attentions=True)
    tokens = outputs.last_hidden_state.shape[1]
    assert len(outputs.hidden_states) == len(outputs.attentions) + 1
    assert outputs.attentions[0].shape[-2:] == (tokens, tokens)


def attention_backends(subject: Subject, folder: Path) -> None:
    found = []
    for backend in ("eager", "sdpa"):
        model = AutoModel.from_pretrained(subject.get("encoder"), attn_implementation=backend).eval()
        with torch.no_grad():
            found.append(model(pixels(subject)).last_hidden_state)
    assert_close(*found)


def maps_of_a_backbone(subject: Subject, folder: Path) -> None:
    config = subject.backbone(out_features=["stage2", "stage4"])
    model = AutoBackbone.from_config(config).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 96, 133)).feature_maps  # which no patch divides
        others = model(torch.randn(1, 3, 96, 133)).feature_maps
    places = {side / config.patch_size for side in (96, 133)}
    for level, other in zip(maps, others, strict=True):
        assert set(level.shape[2:]) <= {*map(math.floor, places), *map(math.ceil, places)}
        assert not torch.allclose(level, other, atol=1e-3)


def frozen_encoder(subject: Subject, folder: Path) -> None:
    model = AutoModelForImageClassification.from_pretrained(subject.get("encoder"), num_labels=2)
    model.base_model.requires_grad_(False)
    model(pixels(subject), labels=torch.tensor([0, 1])).loss.backward()
    learnt = {name.partition(".")[0] for name, value in model.named_parameters() if value.grad is not None}
    assert len(learnt) == 1


def offloaded(subject: Subject, folder: Path) -> None:
    where = {"device_map": "auto", "max_memory": {"cpu": "300KB"}, "offload_folder": str(folder / "off")}
    model = AutoModelForImageClassification.from_pretrained(subject.get("classifier"), **where).eval()
    whole = AutoModelForImageClassification.from_pretrained(subject.get("classifier")).eval()
    assert "disk" in model.hf_device_map.values()
    with torch.no_grad():
        assert_close(model(pixels(subject)).logits, whole(pixels(subject)).logits)
    model.save_pretrained(folder / "again")
    again = AutoModelForImageClassification.from_pretrained(folder / "again").eval()
    with torch.no_grad():
        assert_close(again(pixels(subject)).logits, whole(pixels(subject)).logits)


def half_precision(subject: Subject, folder: Path) -> None:
    model = AutoModelForImageClassification.from_pretrained(subject.get("classifier"), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    again = AutoModelForImageClassification.from_pretrained(folder, dtype="auto")
    assert {value.dtype for value in again.parameters()} == {torch.bfloat16}
    assert again(pixels(subject)).logits.dtype == torch.bfloat16


def eight_bit(subject: Subject, folder: Path) -> None:
    package("bitsandbytes")
    options = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": "cpu"}
    model = AutoModelForImageClassification.from_pretrained(subject.get("classifier"), **options).eval()
    whole = AutoModelForImageClassification.from_pretrained(subject.get("classifier")).eval()
    assert any(value.dtype == torch.int8 for value in model.state_dict().values())
    with torch.no_grad():
        expected = whole(pixels(subject)).logits
        assert_close(model(pixels(subject)).logits, expected, tolerance=0.1 * float(expected.abs().max()))


def attention_projections(model: nn.Module) -> list[str]:
    """The names that users give PEFT: the last part of those of the attention's linear layers."""
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return sorted(names & {"qkv", "query", "value", "q_proj", "v_proj"})


def low_rank_adapters(subject: Subject, folder: Path) -> None:
    peft = package("peft")
    model = AutoModelForImageClassification.from_pretrained(subject.get("classifier"))
    head = next(name for name, _ in model.named_parameters() if name.endswith(("classifier.weight", "head.weight")))
    options = {"target_modules": attention_projections(model), "modules_to_save": [head.rpartition(".")[0]]}
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, **options))
    optimizer = torch.optim.AdamW((value for value in model.parameters() if value.requires_grad), lr=1e-2)
    model(pixel_values=pixels(subject), labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    model.eval().save_pretrained(folder)
    with torch.no_grad():
        expected = model(pixel_values=pixels(subject)).logits
        base = AutoModelForImageClassification.from_pretrained(subject.get("classifier"))
        again = peft.PeftModel.from_pretrained(base, folder).eval()
        assert_close(again(pixel_values=pixels(subject)).logits, expected)
        merged = again.merge_and_unload()
        assert_close(merged(pixel_values=pixels(subject)).logits, expected)
        merged.save_pretrained(folder / "merged")
        whole = AutoModelForImageClassification.from_pretrained(folder / "merged").eval()
        assert_close(whole(pixel_values=pixels(subject)).logits, expected)


def added_adapter(subject: Subject, folder: Path) -> None:
    peft = package("peft")
    try:
        check_peft_version(MIN_PEFT_VERSION)
    except ValueError as error:
        raise Absent(f"needs peft {MIN_PEFT_VERSION} or newer") from error
    model = AutoModel.from_pretrained(subject.get("encoder"))
    model.add_adapter(peft.LoraConfig(r=4, target_modules=attention_projections(model), init_lora_weights=False))
    model.eval().save_pretrained(folder)
    again = AutoModel.from_pretrained(subject.get("encoder")).eval()
    with torch.no_grad():
        plain = again(pixels(subject)).last_hidden_state
        again.load_adapter(str(folder))
        adapted = again(pixels(subject)).last_hidden_state
        assert_close(adapted, model(pixels(subject)).last_hidden_state)
    assert not torch.equal(plain, adapted)


def compiled(subject: Subject, folder: Path) -> None:
    model = AutoModelForImageClassification.from_pretrained(subject.get("classifier"))
    expected = model(pixels(subject), labels=torch.tensor([0, 1])).loss
    expected.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    torch.compiler.reset()
    loss = torch.compile(model, fullgraph=True)(pixels(subject), labels=torch.tensor([0, 1])).loss
    loss.backward()
    assert_close(loss, expected)
    for name, value in model.named_parameters():
        if name in gradients:
            assert_close(value.grad, gradients[name])


def exported(subject: Subject, folder: Path) -> None:
    model = AutoModel.from_pretrained(subject.get("encoder")).eval()
    program = torch.export.export(model, (pixels(subject),), strict=False)
    with torch.no_grad():
        assert_close(program.module()(pixels(subject)).last_hidden_state, model(pixels(subject)).last_hidden_state)


def onnx_runtime(subject: Subject, folder: Path) -> None:
    runtime = package("onnxruntime")
    package("onnxscript")
    model = AutoModelForImageClassification.from_pretrained(subject.get("classifier")).eval()
    program = torch.onnx.export(model, (pixels(subject),), dynamo=True, verbose=False)
    program.save(folder / "model.onnx")
    session = runtime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: pixels(subject).numpy()})[:1]
    with torch.no_grad():
        assert_close(torch.from_numpy(logits), model(pixels(subject)).logits)


def gradient_checkpointing(subject: Subject, folder: Path) -> None:
    found = []
    for is_checkpointed in (False, True):
        model = AutoModelForImageClassification.from_pretrained(subject.get("classifier")).train()
        if is_checkpointed:
            model.gradient_checkpointing_enable()
        model(pixels(subject), labels=torch.tensor([0, 1])).loss.backward()
        found.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in found[0])


def averaged_weights(subject: Subject, folder: Path) -> None:
    model = AutoModelForImageClassification.from_pretrained(subject.get("classifier")).eval()
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    with torch.no_grad():
        assert_close(average(pixels(subject)).logits, copy.deepcopy(model)(pixels(subject)).logits)


# timm: its scripts, and what is built on it


def timm_train(subject: Subject, folder: Path) -> None:
    """train.py: the pretrained model with a new head, its own transform, layer decay, a checkpoint."""
    model = subject.timm(num_classes=3, drop_path_rate=0.1)
    data = timm.data.resolve_data_config({}, model=model)
    assert data["input_size"] == (3, subject.side, subject.side)
    transform = timm.data.create_transform(**data, is_training=True)
    batch = torch.stack([transform(photo) for photo in PHOTOS])
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, layer_decay=0.75)
    nn.functional.cross_entropy(model(batch), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    timm.utils.CheckpointSaver(
        model, optimizer, checkpoint_dir=str(folder), recovery_dir=str(folder), args=argparse.Namespace(model="vit")
    ).save_checkpoint(0, metric=1.0)
    again = subject.timm(num_classes=3)
    load_checkpoint(again, str(folder / "last.pth.tar"))
    with torch.no_grad():
        assert_close(again.eval()(batch), model.eval()(batch))


def timm_validate(subject: Subject, folder: Path) -> None:
    """validate.py: the evaluation transform's crop, and the file of weights by its path."""
    model = subject.timm(num_classes=0)
    data = timm.data.resolve_data_config({}, model=model, use_test_size=True)
    batch = torch.stack([timm.data.create_transform(**data)(photo) for photo in PHOTOS])
    assert batch.shape == (len(PHOTOS), 3, subject.side, subject.side)
    if isinstance(subject, Ours):
        encoder = AutoModel.from_pretrained(subject.get("encoder"))
        encoder.save_pretrained(folder)
        other = subject.timm(num_classes=0)
        other.init_weights()
        load_checkpoint(other, str(folder / "model.safetensors"))
        processor = AutoImageProcessor.from_pretrained(subject.get("encoder"))
        assert_close(processor(PHOTOS, return_tensors="pt")["pixel_values"], batch, tolerance=0.1)
        with torch.no_grad():
            assert_close(other.eval().forward_features(batch), encoder.eval()(batch).last_hidden_state)


def timm_inference(subject: Subject, folder: Path) -> None:
    """inference.py: scores, and features before the head."""
    model = subject.timm(num_classes=3).eval()
    with torch.no_grad():
        tokens = model.forward_features(pixels(subject))
        assert_close(model.forward_head(tokens), model(pixels(subject)))
        assert model.forward_head(tokens, pre_logits=True).shape == (2, model.num_features)
    model.reset_classifier(0)
    assert model(pixels(subject)).shape == (2, model.num_features)


def timm_features(subject: Subject, folder: Path) -> None:
    model = subject.timm(features_only=True, out_indices=(1, 3)).eval()
    maps = model(pixels(subject))
    assert [level.shape[1] for level in maps] == model.feature_info.channels()
    plain = subject.timm(num_classes=0, out_indices=(1, 3)).eval()
    tokens, levels = plain.forward_intermediates(pixels(subject), indices=[1, 3])
    assert tokens.isfinite().all()
    if isinstance(subject, Ours):  # the same maps as transformers' backbone has
        config = subject.backbone(out_features=["stage2", "stage4"], apply_layernorm=False)
        backbone = C2FMAEBackbone.from_pretrained(subject.get("encoder"), config=config).eval()
        with torch.no_grad():
            for level, other, expected in zip(maps, levels, backbone(pixels(subject)).feature_maps, strict=True):
                assert_close(level, expected)
                assert_close(other, expected)
            encoder = AutoModel.from_pretrained(subject.get("encoder")).eval()
            assert_close(tokens, encoder(pixels(subject)).last_hidden_state)


def timm_image_sizes(subject: Subject, folder: Path) -> None:
    wide, large = torch.randn(1, 3, subject.side, subject.side * 2), torch.randn(1, 3, *[subject.side * 2] * 2)
    models = [subject.timm(num_classes=0, dynamic_img_size=True)]
    models += [subject.timm(num_classes=0, img_size=2 * subject.side), subject.timm(num_classes=0)]
    models[2].set_input_size(img_size=2 * subject.side)
    encoder = AutoModel.from_pretrained(subject.get("encoder")).eval()
    for model, images in zip(models, (wide, large, large)):
        with torch.no_grad():
            tokens = model.eval().forward_features(images)
            assert tokens.isfinite().all()
            if isinstance(subject, Ours):
                assert_close(tokens, encoder(images, interpolate_pos_encoding=True).last_hidden_state)


def timm_patch_dictionaries(subject: Subject, folder: Path) -> None:
    """`use_naflex`: images of any aspect as patches and their coordinates."""
    model = subject.timm(num_classes=0, use_naflex=True).eval()
    patch = PATCH_SIZES[subject.side]
    coordinates = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(5), indexing="ij"), -1).reshape(1, 15, 2)
    inputs = {"patches": torch.randn(1, 15, 3 * patch**2), "patch_coord": coordinates}
    assert model({**inputs, "patch_valid": torch.ones(1, 15, dtype=torch.bool)}).isfinite().all()


WITHOUT_PACKAGE = """
import sys
import timm
import torch

found = []
for folder in sys.argv[2:]:
    model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
    side = model.pretrained_cfg["input_size"][-1]
    found.append((model(torch.linspace(-1, 1, 3 * side**2).reshape(1, 3, side, side)), model.pretrained_cfg))
assert not {"c2fmae_hf", "transformers"} & set(sys.modules)
torch.save(found, sys.argv[1])
"""


def folders_of_a_trainer_in_timm(subject: Subject, folder: Path) -> None:
    """`save_model` and checkpoints of transformers' Trainer, in timm, without our package."""
    if not isinstance(subject, Ours):
        raise NotOffered(
            "other names of weights" if isinstance(subject, Vit) else "the wrapper's names, with a prefix"
        )
    subject.timm()  # can this timm?
    trainer, saved = fine_tuned(subject, folder / "run")
    ramp = torch.linspace(-1, 1, 3 * subject.side**2).reshape(1, 3, subject.side, subject.side)
    with torch.no_grad():
        expected = {saved: trainer.model.eval()(ramp).logits}
        encoder = AutoModel.from_pretrained(subject.get("encoder")).eval()
        expected[subject.get("encoder")] = encoder(ramp).last_hidden_state[:, 1:].mean(dim=1)
        checkpoint = str(max(Path(saved).glob("checkpoint-*")))
        expected[checkpoint] = AutoModelForImageClassification.from_pretrained(checkpoint).eval()(ramp).logits
    command = [sys.executable, "-c", WITHOUT_PACKAGE, str(folder / "found.pt"), *expected]
    subprocess.run(command, check=True, capture_output=True)
    for (found, cfg), output in zip(torch.load(folder / "found.pt"), expected.values()):
        assert_close(found, output)
        assert cfg.get("label_names", []) == (["cat", "dog"] if found.shape[1] == 2 else [])


def segmentation_models_pytorch(subject: Subject, folder: Path) -> None:
    smp = package("segmentation_models_pytorch")
    if isinstance(subject, Vit):
        raise NotOffered("does not apply")
    if isinstance(subject, Timm):
        model = smp.DPT(encoder_name="tu-vit_tiny_patch16_224", encoder_weights=None, classes=4)
        assert model(torch.randn(2, 3, 224, 224)).shape == (2, 4, 224, 224)
        return
    subject.timm()  # can this timm?
    options = {"embed_dim": WIDTH, "num_heads": 4, "mlp_ratio": 2}  # and 12 blocks, of which ours are the first
    options.update(img_size=subject.side, patch_size=PATCH_SIZES[subject.side])
    vit = importlib.import_module("segmentation_models_pytorch.encoders.timm_vit").TimmViTEncoder
    name = "c2fmae_vit_tiny_patch16_224"
    encoder = vit(name, pretrained=False, output_indices=[0, 1, 2, 3], **options).eval()
    AutoModel.from_pretrained(subject.get("encoder")).save_pretrained(folder)
    missing, unexpected = encoder.model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert not unexpected
    assert {name.split(".")[1] for name in missing} == {str(index) for index in range(BLOCKS, 12)}
    config = subject.backbone(out_features=[f"stage{index}" for index in range(1, 5)], apply_layernorm=False)
    backbone = C2FMAEBackbone.from_pretrained(subject.get("encoder"), config=config).eval()
    with torch.no_grad():
        found, expected = encoder(pixels(subject)), backbone(pixels(subject)).feature_maps
    for level, other in zip(found[0], expected, strict=True):
        assert_close(level, other)
    if subject.side == 224:  # the patches that its decoder is made for
        model = smp.DPT(encoder_name=f"tu-{name}", encoder_weights=None, classes=4)
        assert model(torch.randn(2, 3, 224, 224)).shape == (2, 4, 224, 224)


def lightly(subject: Subject, folder: Path) -> None:
    package("lightly")
    models = importlib.import_module("lightly.models.modules")
    encoder = models.MaskedVisionTransformerTIMM(
        vit=subject.timm(num_classes=0), weight_initialization="skip", pos_embed_initialization="skip"
    )
    keep = torch.arange(0, 5)[None].repeat(2, 1)
    tokens = encoder.encode(pixels(subject), idx_keep=keep)
    assert tokens.shape[:2] == (2, 5)
    tokens.sum().backward()
    if isinstance(subject, Ours):
        with torch.no_grad():
            expected = AutoModel.from_pretrained(subject.get("encoder")).eval()(pixels(subject)).last_hidden_state
            assert_close(encoder.eval().encode(pixels(subject)), expected)


def lightning(subject: Subject, folder: Path) -> None:
    library = package("lightning")

    class Module(library.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModelForImageClassification.from_pretrained(subject.get("classifier"))

        def training_step(self, batch: dict, index: int) -> torch.Tensor:
            return self.model(**batch).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-4)

    _, rows = classification_data(subject)
    loader = torch.utils.data.DataLoader(rows, batch_size=2, collate_fn=collate)
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    module, trainer = Module(), library.Trainer(max_steps=2, accelerator="cpu", default_root_dir=folder, **quiet)
    trainer.fit(module, loader)
    trainer.save_checkpoint(folder / "last.ckpt")
    again = Module.load_from_checkpoint(folder / "last.ckpt")
    with torch.no_grad():
        assert_close(again.model.eval()(pixels(subject)).logits, module.model.eval()(pixels(subject)).logits)


def file_into_a_module(subject: Subject, folder: Path) -> None:
    """`load_state_dict` of the saved file, as training loops of one's own do."""
    model = AutoModelForImageClassification.from_pretrained(subject.get("classifier"))
    state = load_file(Path(subject.get("classifier")) / "model.safetensors")
    fresh = type(model)(model.config)
    fresh.load_state_dict(state)
    with torch.no_grad():
        assert_close(fresh.eval()(pixels(subject)).logits, model.eval()(pixels(subject)).logits)


PATTERNS: dict[Callable[[Subject, Path], None], str] = {
    features_of_photographs: "`AutoImageProcessor`, `AutoModel`: features of photographs",
    pipeline_for_features: '`pipeline("image-feature-extraction")`',
    pipeline_for_classes: '`pipeline("image-classification")`, with names of classes',
    pipeline_for_segments: '`pipeline("image-segmentation")`',
    pipeline_for_objects: '`pipeline("object-detection")`',
    script_for_classification: "run_image_classification.py: Trainer, checkpoints, best one, resume, save",
    script_for_classification_without_trainer: "run_image_classification_no_trainer.py: Accelerate",
    script_for_semantic_segmentation: "run_semantic_segmentation.py: Trainer, evaluation, `post_process_...`",
    script_for_instance_segmentation: "run_instance_segmentation.py: Mask2Former on the backbone",
    training_of_a_detector: "the detector's folder: COCO's `annotations`, stock Trainer",
    script_for_object_detection: "run_object_detection.py: DETR on the backbone, at sizes that no patch divides",
    maps_of_a_backbone: "`AutoBackbone`: maps of an image that no patch divides",
    another_image_size: "`interpolate_pos_encoding=True`",
    larger_photographs: "larger photographs: `size=` of the processor, `interpolate_pos_encoding=True`",
    image_size_when_loading: "`from_pretrained(..., image_size=...)`",
    head_of_ones_own: "a subclass with a second head: save, load",
    another_number_of_classes: "`num_labels=5, ignore_mismatched_sizes=True`",
    hidden_states_and_attentions: "`output_hidden_states`, `output_attentions`",
    attention_backends: "`attn_implementation`: eager, sdpa",
    frozen_encoder: "frozen encoder (`base_model.requires_grad_(False)`)",
    file_into_a_module: "`load_state_dict(load_file(...))`",
    averaged_weights: "`copy.deepcopy`, `AveragedModel`",
    offloaded: '`device_map="auto"` with offloading to the disk, and saving again',
    half_precision: '`dtype=torch.bfloat16`, `dtype="auto"`',
    eight_bit: "8 bits (bitsandbytes)",
    low_rank_adapters: "LoRA (PEFT): train, save, load, merge",
    added_adapter: "`add_adapter`, `load_adapter` (PEFT)",
    gradient_checkpointing: "`gradient_checkpointing_enable()`",
    compiled: "`torch.compile(fullgraph=True)`, forward and backward",
    exported: "`torch.export`",
    onnx_runtime: "ONNX Runtime",
    lightning: "Lightning: fit, checkpoint, load",
    timm_train: "timm's train.py: new head, own transform, layer decay, checkpoint",
    timm_validate: "timm's validate.py: evaluation transform, weights by path",
    timm_inference: "timm's inference.py: scores, features, `reset_classifier`",
    timm_features: "timm: `features_only`, `out_indices`, `forward_intermediates`",
    timm_image_sizes: "timm: `dynamic_img_size`, `img_size=`, `set_input_size`",
    timm_patch_dictionaries: "timm: `use_naflex=True`",
    folders_of_a_trainer_in_timm: "timm opens a Trainer's folders, without this package",
    segmentation_models_pytorch: "segmentation_models_pytorch: DPT on a `tu-` encoder",
    lightly: "lightly: masked encoder on timm's",
}


@contextlib.contextmanager
def without_errors_logged() -> Iterator[None]:
    """An error line in the log is a failure, too."""
    said: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: said.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("transformers", "timm", "accelerate")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    assert not said, f"an error in the log: {said[0]}"


def run(pattern: Callable[[Subject, Path], None], subject: Subject, folder: Path) -> None:
    """One pattern on one model; raises what goes wrong, [`NotOffered`] or [`Absent`]."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    with without_errors_logged(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pattern(subject, folder)


def outcome(pattern: Callable[[Subject, Path], None], subject: Subject, folder: Path) -> str:
    """`works`, or what else."""
    try:
        run(pattern, subject, folder)
    except NotOffered as error:
        return str(error)
    except Absent as error:
        return f"skipped: {error}"
    except Exception as error:
        first = re.sub(r"/tmp/\S+/", "", str(error)).strip().partition("\n")[0]
        return f"{type(error).__name__}: {first[:160]}"
    return "works"


def observe(names: list[str]) -> dict[str, Any]:
    """The record: every pattern on every model."""
    packages = ("transformers", "timm", "torch", "accelerate", "peft", "bitsandbytes", "onnxruntime", "lightning")
    packages = (*packages, "lightly", "segmentation-models-pytorch")
    versions = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name).partition("+")[0]
    results: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as root:
        models = subjects(Path(root) / "models")
        for pattern, title in PATTERNS.items():
            if names and pattern.__name__ not in names:
                continue
            for subject in models:
                folder = Path(root) / "work" / pattern.__name__ / subject.folder.name
                results.setdefault(title, {})[subject.name] = outcome(pattern, subject, folder)
                print(f"{pattern.__name__}, {subject.name}: {results[title][subject.name]}", file=sys.stderr)
    machine = f"{platform.machine()}, {os.cpu_count()} CPU cores, Python {platform.python_version()}"
    return {"date": str(date.today()), "machine": machine, "versions": versions, "results": results}


def render(record: dict[str, Any]) -> list[str]:
    """The record as a section of docs/conformity.md: our models in one column, since all of them do alike."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        "Each line is a few lines of a program in `tests/call_patterns.py`, run on small models with random weights: "
        "ours of 64, 96 and 224 pixels with patches of 8, 12 and 16, saved as pre-training saves them; a ViT of "
        "transformers (for segmentation BEiT, as a backbone DINOv2); and timm's `vit_tiny_patch16_224`, in "
        "transformers by its wrapper.",
        "",
        f"Observed with {versions}; {record['machine']}; {record['date']}. Made by `python tests/call_patterns.py > "
        "benchmarks/results/call_patterns.json`; `make test` runs ours of 96 pixels, `make test-all` all three.",
        "",
        "| what people do | C2FMAE, 64, 96, 224 px | ViT | timm |",
        "| --- | --- | --- | --- |",
    ]
    for title, found in record["results"].items():
        ours = {text for name, text in found.items() if name.startswith("C2FMAE")}
        lines.append(f"| {title} | {'; '.join(sorted(ours))} | {found['ViT']} | {found['timm']} |")
    return lines


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # to which a Trainer prints its log
        record = observe(sys.argv[1:])
    print(json.dumps(record, indent=1))
