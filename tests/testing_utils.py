"""Data that tests make themselves."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from types import ModuleType

import datasets
import numpy as np
import pytest
import timm
import torch
from packaging.version import Version
from PIL import Image
from torch import nn

from c2fmae_hf import C2FMAEConfig


RECIPES = Path(__file__).resolve().parents[1] / "src/c2fmae_hf/recipes"

require_timm_local_dir = pytest.mark.skipif(
    Version(timm.__version__) < Version("1.0.26"),
    reason="timm loads safetensors through local-dir: from 1.0.26 on (through hf-hub: in every supported version)",
)


def load_command(name: str) -> ModuleType:
    """The module of `c2fmae <name>`."""
    return importlib.import_module(f"c2fmae_hf.commands.{name}")


def small_config(**fields) -> C2FMAEConfig:
    """Configuration of a model that trains in milliseconds, for scripts without fixtures."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    decoder = {"decoder_hidden_size": 32, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 64}
    images = {"image_size": 32, "patch_size": 8, "num_semantic_classes": 5}
    return C2FMAEConfig(**{**sizes, **decoder, **images, **fields})


def with_fields(config: C2FMAEConfig, **fields) -> C2FMAEConfig:
    """The configuration with other fields."""
    derived = {"loss_weights": None, "out_features": None, "out_indices": None}
    return C2FMAEConfig(**{**config.to_dict(), **derived, **fields})


@torch.no_grad()
def randomized(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, with noise on all parameters, biases and norms too: no two are alike."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def png(array: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def make_rows(number: int, size: int = 48, num_classes: int = 5) -> datasets.Dataset:
    """
    Photographs of coloured discs on a textured ground: `semantic` is a disc's colour, 0 the ground, `instance` the
    disc. Every row has a border of the ignore value in `semantic`.
    """
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 255, (num_classes, 3))
    y, x = np.mgrid[:size, :size]
    rows = []
    for index in range(number):
        semantic, instance = (np.zeros((size, size), dtype=np.uint8) for _ in range(2))
        for instance_id in range(1, 4):
            centre, radius = generator.uniform(8, size - 8, 2), generator.uniform(5, 12)
            disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
            semantic[disc], instance[disc] = generator.integers(1, num_classes), instance_id
        image = np.clip(colours[semantic] + generator.normal(0, 12, (size, size, 3)), 0, 255).astype(np.uint8)
        semantic[0] = 255
        rows.append(
            {"image": png(image), "semantic": png(semantic), "instance": png(instance), "image_id": f"r{index}"}
        )
    features = datasets.Features(
        image=datasets.Image(), semantic=datasets.Image(), instance=datasets.Image(), image_id=datasets.Value("string")
    )
    return datasets.Dataset.from_list(rows, features=features)
