"""
Export a saved encoder, classifier or semantic segmenter for use without this package: ONNX, and torch.export's .pt2.

    python examples/export_model.py runs/demo/c2fmae-vit-tiny runs/exported
    python examples/export_model.py runs/demo/classifier runs/exported --format onnx --image_size 256 320

Writes `model.onnx` and `model.pt2`, each once its outputs agree with the model's to 1e-4 at several batch sizes, on
random images and with `--image` on a photograph. Needs `pip install "c2fmae-hf[export]"` for ONNX. A model of ViT-Base
size takes half a minute for both on one CPU core; measured differences: 5e-6 for ONNX, 0 for .pt2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..interop.export import export_onnx, export_pt2
from ..modeling_c2fmae import C2FMAEForPreTraining, C2FMAEPreTrainedModel
from ..publishing.repository import load_saved
from .arguments import CommandParser


USES = {
    "onnx": """\
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("{path}")
outputs = session.run(None, {{"pixel_values": np.zeros({shape}, dtype=np.float32)}})
""",
    "pt2": """\
import torch
program = torch.export.load("{path}").module()
outputs = program(torch.zeros({shape}))
""",
}


def export(options: argparse.Namespace) -> dict[str, float]:
    model, processor = load_saved(options.model)
    if not isinstance(model, C2FMAEPreTrainedModel):
        raise ValueError(f"{options.model}: expected a model of c2fmae_hf, got {type(model).__name__}")
    if isinstance(model, C2FMAEForPreTraining):
        print("A pre-training model masks at random, which is not exported; its encoder is.")
        model = model.image_encoder()
    config = model.config
    height, width = options.image_size or config.image_height_width
    pixel_values = None
    if options.image is not None:
        own = processor or C2FMAEImageProcessor.from_config(config)
        size = {"height": height, "width": width}
        with Image.open(options.image) as image:
            pixel_values = own(image, size=size, do_center_crop=False, return_tensors="pt")["pixel_values"]

    options.output_dir.mkdir(parents=True, exist_ok=True)
    differences = {}
    for name in options.format:
        path = options.output_dir / f"model.{name}"
        write = {"onnx": export_onnx, "pt2": export_pt2}[name]
        differences[name] = write(model, path, (height, width), processor, pixel_values)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, largest difference {differences[name]:.1e}")
        print(USES[name].format(path=path.as_posix(), shape=(1, config.num_channels, height, width)))
    return differences


def main(args: list[str] | None = None) -> dict[str, float]:
    """Returns the largest difference of each file."""
    parser = CommandParser("export", __doc__)
    parser.add_argument("model", help="folder or Hub name of a saved model")
    parser.add_argument("output_dir", type=Path, help="made if it is not there")
    parser.add_argument("--format", nargs="+", choices=sorted(USES), default=sorted(USES))
    parser.add_argument("--image_size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="by default the model's")
    parser.add_argument("--image", type=Path, help="photograph to compare the outputs of, too")
    options = parser.parse_args(args)
    return export(options)
