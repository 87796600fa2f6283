"""
Pre-train a small model on embedded photographs, offline, and load its encoder with transformers and with timm.

    c2fmae demo
    c2fmae demo --output_dir runs/demo

It takes about 4 minutes on two CPU cores. The photographs ship inside the wheels of scikit-image and scikit-learn;
their label maps come from the classical labeller, which knows no objects: this demonstrates the machinery, not the
method's quality. Held-out tiles are other parts of the same photographs. Needs `pip install "c2fmae-hf[all]"`.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel

from ..configuration_c2fmae import C2FMAEConfig
from ..labelling.labellers.classical import ClassicalLabeller
from ..labelling.records import encode_label_map, number_instances
from ..labelling.shards import dataset_features
from ..pictures.photographs import embedded_photographs
from ..utils.packages import require
from . import pretrain
from .arguments import CommandParser


TILE_SIZE = 192
NUM_CLASSES = 8
# The right-hand part of every photograph, as wide as a tile, is held out.
STRIDE = {"train": 32, "validation": 64}


def tile_origins(height: int, width: int, split: str) -> Iterator[tuple[int, int]]:
    """Upper left corners of a split's tiles."""
    left, right = (0, width - 2 * TILE_SIZE) if split == "train" else (width - TILE_SIZE, width - TILE_SIZE)
    for top in range(0, height - TILE_SIZE + 1, STRIDE[split]):
        for x in range(left, max(right, left) + 1, STRIDE[split]):
            yield top, x


def encode_jpeg(image: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=92)
    return {"bytes": buffer.getvalue(), "path": None}


def make_dataset() -> datasets.DatasetDict:
    photographs = {name: image for name, image in embedded_photographs().items() if image.width >= 2 * TILE_SIZE}
    # Whole photographs are labelled, at their own size, so that tiles of one agree.
    labeller = ClassicalLabeller(NUM_CLASSES, working_size=1024, scale=100).fit(photographs.values())
    rows: dict[str, list[dict]] = {"train": [], "validation": []}
    for name, photograph in photographs.items():
        maps = labeller.label(photograph)
        for split, split_rows in rows.items():
            for top, left in tile_origins(photograph.height, photograph.width, split):
                tile = np.s_[top : top + TILE_SIZE, left : left + TILE_SIZE]
                semantic, instance = maps.semantic[tile], number_instances(maps.instance[tile])
                split_rows.append(
                    {
                        "image": encode_jpeg(np.asarray(photograph)[tile]),
                        "semantic": {"bytes": encode_label_map(semantic), "path": None},
                        "instance": {"bytes": encode_label_map(instance), "path": None},
                        "semantic_classes": np.unique(semantic).tolist(),
                        "image_id": f"{name}_{top}_{left}",
                    }
                )
    features = dataset_features(labeller.id2label, label_feature=None)
    return datasets.DatasetDict(
        {split: datasets.Dataset.from_list(split_rows, features=features) for split, split_rows in rows.items()}
    )


def save_dataset(folder: Path) -> None:
    """Write the dataset to a folder, which appears when it is complete."""
    dataset = make_dataset()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        dataset.save_to_disk(str(temporary))
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{folder}: {len(dataset['train'])} training and {len(dataset['validation'])} held-out tiles")


WITHOUT_THIS_PACKAGE = """
import sys, timm, torch
from safetensors.torch import load_file, save_file
folder, inputs, outputs = sys.argv[1:]
model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
with torch.no_grad():
    save_file({"features": model.forward_features(load_file(inputs)["pixel_values"])}, outputs)
assert "c2fmae_hf" not in sys.modules
"""


def compare_libraries(encoder: Path, image: Image.Image) -> float:
    """
    The largest difference between the features that transformers and timm compute with a saved encoder. timm loads it
    through its registry, and in a process of its own that never imports this package.
    """
    pixel_values = AutoImageProcessor.from_pretrained(encoder)(image, return_tensors="pt")["pixel_values"]
    config = C2FMAEConfig.from_pretrained(encoder)
    name = f"c2fmae_{config.timm_keys()['architecture']}"
    registered = timm.create_model(
        name,
        pretrained=True,
        num_classes=0,
        img_size=config.image_height_width,
        pretrained_cfg_overlay={"file": str(encoder / "model.safetensors")},
    ).eval()
    with torch.no_grad():
        expected = AutoModel.from_pretrained(encoder).eval()(pixel_values).last_hidden_state
        features = {f'timm.create_model("{name}")': registered.forward_features(pixel_values)}
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = (str(Path(folder) / name) for name in ("inputs.safetensors", "outputs.safetensors"))
        save_file({"pixel_values": pixel_values.contiguous()}, inputs)
        subprocess.run([sys.executable, "-c", WITHOUT_THIS_PACKAGE, str(encoder), inputs, outputs], check=True)
        features['timm.create_model("local-dir:...") without c2fmae_hf'] = load_file(outputs)["features"]
    print(f"AutoModel: features {tuple(expected.shape)}, mean {expected.mean():.4f}, std {expected.std():.4f}")
    differences = {name: (values - expected).abs().max().item() for name, values in features.items()}
    for name, difference in differences.items():
        print(f"{name}: largest difference {difference:.1e}")
    return max(differences.values())


def main(args: list[str] | None = None) -> float:
    """Returns the largest difference between the two libraries' features."""
    parser = CommandParser("demo", __doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/demo"), help="a new folder")
    output_dir = parser.parse_args(args).output_dir
    if output_dir.exists() and any(output_dir.iterdir()):
        parser.error(f"{output_dir} exists already; remove it, or choose another with --output_dir")
    for package in ("skimage", "sklearn", "matplotlib"):
        require(package, "the demonstration")
    save_dataset(output_dir / "dataset")
    pretrain.main(["--recipe", "demo", "--dataset_name", str(output_dir / "dataset"), "--output_dir", str(output_dir)])
    difference = compare_libraries(output_dir / "c2fmae-vit-tiny", embedded_photographs(["chelsea"])["chelsea"])
    if difference > 1e-5:
        raise ValueError(f"expected the same features to 1e-5, got a difference of {difference:.1e}")
    print(f"\nLook at {output_dir / 'reconstruction.png'} and {output_dir / 'curves.png'}.")
    print("Now your own photographs: c2fmae pretrain photos --output_dir runs/mine")
    return difference
