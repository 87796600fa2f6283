"""Encoders and datasets that the tests of transfer share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import Dinov2Config, Dinov2Model, PreTrainedModel, ViTConfig, ViTImageProcessor, ViTModel

from c2fmae_hf import C2FMAEConfig, C2FMAEForPreTraining, C2FMAEImageProcessor
from testing_utils import make_rows, png


DISC_CLASSES = ["ground", "red", "green", "blue", "white"]


def save_encoders(folder: Path) -> dict[str, str]:
    """A pre-training checkpoint of C2FMAE, a ViT and a DINOv2, of four blocks and patches of 8 pixels at 32."""
    torch.manual_seed(0)  # a module's fixture is made before its tests are seeded
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = C2FMAEConfig(
        **sizes,
        intermediate_size=64,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=64,
        num_semantic_classes=5,
        segmentation_head_channels=16,
    )
    models: dict[str, PreTrainedModel] = {
        "c2fmae": C2FMAEForPreTraining(config),
        "vit": ViTModel(ViTConfig(**sizes, intermediate_size=64)),
        "dinov2": Dinov2Model(Dinov2Config(**sizes)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    C2FMAEImageProcessor.from_config(config).save_pretrained(folder / "c2fmae")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "vit")
    return {name: str(folder / name) for name in models}


def save_discs(
    folder: Path, num_train: int = 24, num_validation: int = 6, size: int = 48, widths: Sequence[int] = ()
) -> Path:
    """`make_rows` as a dataset with named classes, in a folder; if `widths` are given, cropped to these in turn."""
    rows = make_rows(num_train + num_validation, size)
    if widths:
        cropped = []
        for index, row in enumerate(rows):
            box = (0, 0, widths[index % len(widths)], size)
            maps = {name: png(np.asarray(row[name].crop(box))) for name in ("image", "semantic", "instance")}
            cropped.append({**row, **maps})
        rows = datasets.Dataset.from_list(cropped, features=rows.features)
    names = datasets.Features(semantic_classes=datasets.List(datasets.ClassLabel(names=DISC_CLASSES)))
    rows = rows.add_column("semantic_classes", [[0]] * len(rows), feature=names["semantic_classes"])
    parts = {"train": range(num_train), "validation": range(num_train, len(rows))}
    datasets.DatasetDict({name: rows.select(part) for name, part in parts.items()}).save_to_disk(folder)
    return folder
