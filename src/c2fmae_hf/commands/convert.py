"""
Convert an encoder or a classifier to C2FMAE, or from C2FMAE to timm or transformers' ViT.

    c2fmae convert google/vit-base-patch16-224 runs/from-vit
    c2fmae convert mae_pretrain_vit_base.pth runs/from-mae
    c2fmae convert vit_small.safetensors runs/from-timm --architecture vit_small_patch16_224
    c2fmae convert runs/demo/c2fmae-vit-tiny runs/vit-tiny --format vit

SOURCE is a folder or a Hub name of C2FMAE, timm, ViT or ViTMAE; or a .safetensors, .pth, .pt or .bin file with MAE's
or timm's names. OUTPUT is a folder; timm loads its own with timm.create_model("local-dir:OUTPUT").

Source and result are compared on a random image, and nothing is written if their features differ. The image processor
and the names of classes are converted too.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import PreTrainedModel

from ..configuration_c2fmae import C2FMAEConfig
from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..interop.conversion import FORMATS, convert_from_c2fmae
from ..interop.processors import convert_processor_to_vit
from ..interop.sources import find_processor, load_source
from ..publishing.licences import carry_license
from ..timm_c2fmae import convert_processor_to_timm
from ..utils.files import check_writable, replace_folder
from .arguments import CommandParser
from .console import model_in_words, print_results, type_in


logger = logging.getLogger(__name__)

# Tolerance for rounding in float32, relative to the largest feature.
TOLERANCE = 1e-4


def parse(args: list[str] | None) -> argparse.Namespace:
    parser = CommandParser("convert", __doc__)
    parser.add_argument("source", help="folder, Hub name or file to convert")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--format", choices=("c2fmae", *FORMATS), default="c2fmae", help="what to write")
    parser.add_argument("--architecture", help="for a file, timm's name of its model")
    parser.add_argument("--num_attention_heads", type=int, help="for a file, if unusual for its size")
    parser.add_argument("--image_size", type=int, nargs=2, metavar=("H", "W"), help="for a file, if not square")
    parser.add_argument(
        "--layer_norm_eps", type=float, help="epsilon of the norms; 1e-6 in timm and MAE, usually 1e-12 in ViT"
    )
    parser.add_argument("--pooling", choices=("mean", "cls"), help="features that a head or pooler_output uses")
    parser.add_argument("--encoder_only", action="store_true", help="leave out the classifier")
    parser.add_argument("--image_mean", type=float, nargs="+", help="by default the source's, else ImageNet's")
    parser.add_argument("--image_std", type=float, nargs="+", help="by default the source's, else ImageNet's")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    options = parser.parse_args(args)
    if options.output.exists():
        if not options.overwrite:
            parser.error(f"output: {options.output} exists; choose a new name or pass --overwrite")
        if options.output.resolve() == Path(options.source).resolve():
            parser.error(f"output: expected a folder other than the source, got {options.output}")
        if not (options.output / "config.json").is_file():
            parser.error(f"output: expected an earlier output to overwrite, got {options.output}")
    check_writable(options.output.parent, "output")
    return options


@torch.no_grad()
def outputs_of(model: Any, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    """Tokens `(1, 1 + N, width)` of the encoder and, for a classifier, logits."""
    if isinstance(model, VisionTransformer):
        tokens = model.forward_features(pixel_values)
        return [tokens, model.forward_head(tokens)] if model.num_classes else [tokens]
    tokens = model.base_model(pixel_values).last_hidden_state
    return [tokens, model(pixel_values).logits] if hasattr(model, "classifier") else [tokens]


def compare(source: nn.Module, target: nn.Module, config: C2FMAEConfig) -> float:
    """
    Run both models on a random image, with the result's epsilon, and return the largest difference of their outputs.

    Raises:
        `ValueError`: if it is larger than rounding.
    """
    norms = [module for module in source.modules() if isinstance(module, nn.LayerNorm)]
    if norms[0].eps != config.layer_norm_eps:
        text = "layer_norm_eps is %g instead of the source's %g: features change slightly."
        logger.warning(text, config.layer_norm_eps, norms[0].eps)
    for norm in norms:
        norm.eps = config.layer_norm_eps
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(1, config.num_channels, *config.image_height_width, generator=generator)
    pairs = list(zip(outputs_of(source, pixel_values), outputs_of(target, pixel_values)))
    difference = torch.stack([(expected - got).abs().max() for expected, got in pairs]).max().item()
    largest = max(expected.abs().max().item() for expected, _ in pairs)
    if not difference <= TOLERANCE * max(1.0, largest):  # also true for NaN
        raise ValueError(f"source: expected the same features to {TOLERANCE}, got a difference of {difference:.1e}")
    return difference


def write(output: Path, model: PreTrainedModel, target: nn.Module, processor: C2FMAEImageProcessor) -> None:
    with replace_folder(output) as folder:
        if isinstance(target, PreTrainedModel):
            target.save_pretrained(folder)
            own = processor if target is model else convert_processor_to_vit(processor)
            own.save_pretrained(folder)
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        else:
            save_file(target.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
            config = model.config.timm_keys(target.num_classes)
        if "pretrained_cfg" in config:  # timm prepares images by these keys
            config["pretrained_cfg"].update(convert_processor_to_timm(processor))
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        carry_license(model, folder)


def main(args: list[str] | None = None) -> float:
    """Run the command; returns the largest difference of features."""
    options = parse(args)
    model_args = {"img_size": options.image_size, "num_heads": options.num_attention_heads}
    model, original = load_source(
        options.source,
        options.architecture,
        {name: value for name, value in model_args.items() if value is not None},
        layer_norm_eps=options.layer_norm_eps,
        pooling=options.pooling,
        encoder_only=options.encoder_only,
    )
    processor = find_processor(
        options.source, model.config, options.architecture, options.image_mean, options.image_std
    )
    print(f"Converting {model_in_words(options.source, original)} to {options.format}.", flush=True)
    target = model if options.format == "c2fmae" else convert_from_c2fmae(model, options.format)
    difference = compare(original, target, model.config)
    write(options.output, model, target, processor)
    use = {
        "c2fmae": type_in("embed", options.output, "photos", "--output", "features.parquet"),
        "vit": f'transformers.AutoModel.from_pretrained("{options.output}")',
        "timm": f'timm.create_model("local-dir:{options.output}", pretrained=True)',
    }
    print_results(
        [
            f"{options.output}: {type(target).__name__}",
            f"largest difference of features on a random image: {difference:.1e}",
        ],
        [use[options.format]],
    )
    return difference
