"""
Export a saved encoder, classifier or semantic segmenter to ONNX and torch.export's .pt2, for use without this package.

    c2fmae export runs/demo/c2fmae-vit-tiny runs/exported
    c2fmae export runs/demo/classifier runs/exported --format onnx --image_size 256 320

Writes model.onnx and model.pt2. Each is written only if its outputs match the model's to 1e-4, on random images at
several batch sizes and on the photograph of --image. ONNX needs pip install "c2fmae-hf[all]".
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..images import open_image
from ..interop.export import export_onnx, export_pt2
from ..modeling_c2fmae import C2FMAEForPreTraining, C2FMAEPreTrainedModel
from ..publishing.licences import carry_license
from ..publishing.repository import load_saved
from ..utils.files import check_writable
from ..utils.packages import require
from .arguments import CommandParser
from .console import model_in_words, print_results


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
    config = model.config
    formats = " and ".join(options.format)
    print(f"Exporting {model_in_words(options.model, model)} to {formats}. Output folder: {options.output_dir}.")
    if isinstance(model, C2FMAEForPreTraining):
        print("Random masking cannot be exported, so of this pre-training model only its encoder is exported.")
        model = model.image_encoder()
    height, width = options.image_size or config.image_height_width
    pixel_values = None
    if options.image is not None:
        own = processor or C2FMAEImageProcessor.from_config(config)
        size = {"height": height, "width": width}
        try:
            image = open_image(str(options.image))
        except ValueError as error:
            raise ValueError(f"{options.image}: {error}") from None
        pixel_values = own(image, size=size, do_center_crop=False, return_tensors="pt")["pixel_values"]

    differences: dict[str, float] = {}
    results: list[str] = []
    next_steps: list[str] = []
    for name in options.format:
        path = options.output_dir / f"model.{name}"
        write = {"onnx": export_onnx, "pt2": export_pt2}[name]
        differences[name] = write(model, path, (height, width), processor, pixel_values)
        results.append(f"{path}: {path.stat().st_size / 1e6:.1f} MB, largest difference {differences[name]:.1e}")
        use = USES[name].format(path=path.as_posix(), shape=(1, config.num_channels, height, width))
        next_steps += [f"in Python, with {path.name}:", *(f"  {line}" for line in use.splitlines())]
    carry_license(model, options.output_dir)
    print_results(results, next_steps)
    return differences


def main(args: list[str] | None = None) -> dict[str, float]:
    """Run the command; returns the largest difference of each file."""
    parser = CommandParser("export", __doc__)
    parser.add_argument("model", help="folder or Hub name")
    parser.add_argument("output_dir", type=Path, help="folder to write")
    parser.add_argument("--format", nargs="+", choices=sorted(USES), default=sorted(USES), help="files to write")
    parser.add_argument("--image_size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="by default the model's")
    parser.add_argument("--image", type=Path, help="photograph on which outputs are compared too")
    options = parser.parse_args(args)
    if "onnx" in options.format:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            require(package, "ONNX export", " or pass --format pt2")
    check_writable(options.output_dir)
    return export(options)
