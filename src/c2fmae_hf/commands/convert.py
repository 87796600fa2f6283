"""
Convert an encoder or a classifier to C2FMAE, or from C2FMAE to timm or transformers' ViT.

    c2fmae convert google/vit-base-patch16-224 runs/from-vit
    c2fmae convert mae_pretrain_vit_base.pth runs/from-mae
    c2fmae convert vit_small.safetensors runs/from-timm --architecture vit_small_patch16_224
    c2fmae convert runs/demo/c2fmae-vit-tiny runs/vit-tiny --format vit

SOURCE is a folder or a Hub name of C2FMAE, timm, ViT or ViTMAE; or a .safetensors, .pth, .pt or .bin file with MAE's
or timm's names. OUTPUT is a folder; timm loads its own with timm.create_model("local-dir:OUTPUT").

Source and result are run on a random image, and nothing is written if their features differ. The image processor and
the names of classes go along.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import AutoConfig, PreTrainedModel, TimmWrapperConfig, ViTConfig, ViTForImageClassification, ViTModel
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from ..configuration_c2fmae import C2FMAEConfig
from ..constants import IMAGENET_MEAN, IMAGENET_STD
from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..interop.conversion import FORMATS, LEFT_OUT, build_timm, convert_from_c2fmae, convert_to_c2fmae, read_state_dict
from ..interop.processors import convert_processor_to_c2fmae, convert_processor_to_vit
from ..modeling_c2fmae import C2FMAEForImageClassification, C2FMAEForPreTraining, C2FMAEModel
from ..publishing.repository import check_saved
from ..timm_c2fmae import convert_processor_to_timm, effective_statistics
from ..utils.files import replace_folder
from .arguments import CommandParser


logger = logging.getLogger(__name__)

FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
# Rounding in float32, relative to the largest feature.
TOLERANCE = 1e-4


def parse(args: list[str] | None) -> argparse.Namespace:
    parser = CommandParser("convert", __doc__)
    parser.add_argument("source", help="folder, Hub name or file to convert")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--format", choices=("c2fmae", *FORMATS), default="c2fmae", help="what to write")
    parser.add_argument("--architecture", help="timm's name of the model whose weights a file holds")
    parser.add_argument("--num_attention_heads", type=int, help="for a file, if not its size's usual number")
    parser.add_argument("--image_size", type=int, nargs=2, metavar=("H", "W"), help="for a file, if not a square")
    parser.add_argument("--layer_norm_eps", type=float, help="timm and MAE have 1e-6, ViT usually 1e-12")
    parser.add_argument("--pooling", choices=("mean", "cls"), help="what a head reads, or pooler_output is made of")
    parser.add_argument("--encoder_only", action="store_true", help="leave a classifier out")
    parser.add_argument("--image_mean", type=float, nargs="+", help="by default the source's, else ImageNet's")
    parser.add_argument("--image_std", type=float, nargs="+", help="by default the source's, else ImageNet's")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    options = parser.parse_args(args)
    if options.output.exists():
        if not options.overwrite:
            parser.error(f"output: expected a new name or --overwrite, got {options.output}, which exists")
        if options.output.resolve() == Path(options.source).resolve():
            parser.error(f"output: expected another folder than the source's, got {options.output}")
        if not (options.output / "config.json").is_file():
            parser.error(f"output: expected an earlier output to overwrite, got {options.output}, which is none")
    return options


def is_file(source: str) -> bool:
    return Path(source).is_file() or source.endswith(FILE_SUFFIXES)


def load_source(options: argparse.Namespace) -> tuple[PreTrainedModel, nn.Module]:
    """The source as C2FMAE, and as the library that it comes from has it."""
    source, config = options.source, None
    fields = {name: getattr(options, name) for name in ("layer_norm_eps", "pooling", "encoder_only")}
    model_args = {"img_size": options.image_size, "num_heads": options.num_attention_heads}
    model_args = {name: value for name, value in model_args.items() if value is not None}
    if is_file(source):
        if options.architecture is None and options.pooling is not None:
            model_args["global_pool"] = {"mean": "avg", "cls": "token"}[options.pooling]
        original = build_timm(read_state_dict(source), options.architecture, **model_args)
    else:
        check_saved(source)
        config = AutoConfig.from_pretrained(source)
        if model_args or options.architecture:
            raise ValueError("--architecture, --image_size, --num_attention_heads: expected none beside a config.json")
        if isinstance(config, C2FMAEConfig):
            return load_c2fmae(source, config, **fields)
        if isinstance(config, TimmWrapperConfig):
            state = read_state_dict(cached_file(source, SAFE_WEIGHTS_NAME))
            original = build_timm(state, config.architecture, **(config.model_args or {}))
        elif config.model_type in ("vit", "vit_mae"):
            original = load_vit(source, config, options.encoder_only)
        else:
            raise ValueError(f"source: expected C2FMAE, timm, ViT or ViTMAE, got one of type {config.model_type!r}")
    model = convert_to_c2fmae(original, **fields)
    model.config.converted_from = Path(source).name if Path(source).exists() else source
    if isinstance(model, C2FMAEForImageClassification) and config and len(config.id2label) == model.config.num_labels:
        model.config.id2label, model.config.label2id = config.id2label, config.label2id
    return model, original


def load_vit(source: str, config: Any, encoder_only: bool) -> nn.Module:
    """A ViT; a ViTMAE, which would mask its input, is loaded as the ViT that it trains."""
    if config.model_type == "vit_mae":
        config = ViTConfig(**{name: value for name, value in config.to_dict().items() if name != "model_type"})
    options: dict[str, Any] = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    if config.architectures == ["ViTForImageClassification"] and not encoder_only:
        model, info = ViTForImageClassification.from_pretrained(source, **options)
    else:
        model, info = ViTModel.from_pretrained(source, add_pooling_layer=False, **options)
    # The library only warns about either.
    missing = sorted(info["missing_keys"])
    unknown = [name for name in sorted(info["unexpected_keys"]) if not LEFT_OUT.match(name.removeprefix("vit."))]
    if missing or unknown:
        raise ValueError(f"{source}: expected a {type(model).__name__}, got one without {missing} and with {unknown}")
    return model.eval()


def load_c2fmae(source: str, config: C2FMAEConfig, encoder_only: bool, **fields: Any) -> tuple[Any, nn.Module]:
    name = (config.architectures or [""])[0]
    model_class: Any = C2FMAEModel
    if name == "C2FMAEForPreTraining":
        model_class = C2FMAEForPreTraining
    elif name == "C2FMAEForImageClassification" and not encoder_only:
        model_class = C2FMAEForImageClassification
    changes = {field: value for field, value in fields.items() if value is not None}
    original = model_class.from_pretrained(source, dtype=torch.float32).eval()
    model = model_class.from_pretrained(source, dtype=torch.float32, **changes).eval()
    model = model.image_encoder() if isinstance(model, C2FMAEForPreTraining) else model
    if type(model).__name__ != name:
        logger.warning("Left out, as no part of the encoder: the rest of %s.", name)
    return model, original


@torch.no_grad()
def outputs_of(model: Any, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    """Tokens `(1, 1 + N, width)` of the encoder and, of a classifier, logits."""
    if isinstance(model, VisionTransformer):
        tokens = model.forward_features(pixel_values)
        return [tokens, model.forward_head(tokens)] if model.num_classes else [tokens]
    tokens = model.base_model(pixel_values).last_hidden_state
    return [tokens, model(pixel_values).logits] if hasattr(model, "classifier") else [tokens]


def compare(source: nn.Module, target: nn.Module, config: C2FMAEConfig) -> float:
    """
    Run both on a random image, with the result's epsilon; return the largest difference of their outputs.

    Raises:
        `ValueError`: if it is larger than rounding.
    """
    norms = [module for module in source.modules() if isinstance(module, nn.LayerNorm)]
    if norms[0].eps != config.layer_norm_eps:
        text = "layer_norm_eps is %g, as asked for, and not the source's %g: features change slightly."
        logger.warning(text, config.layer_norm_eps, norms[0].eps)
    for norm in norms:
        norm.eps = config.layer_norm_eps
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(1, config.num_channels, *config.image_height_width, generator=generator)
    pairs = list(zip(outputs_of(source, pixel_values), outputs_of(target, pixel_values)))
    difference = torch.stack([(expected - got).abs().max() for expected, got in pairs]).max().item()
    largest = max(expected.abs().max().item() for expected, _ in pairs)
    if not difference <= TOLERANCE * max(1.0, largest):  # NaN is not
        raise ValueError(f"source: expected features equal to {TOLERANCE}, got a difference of {difference:.1e}")
    return difference


def find_processor(options: argparse.Namespace, config: C2FMAEConfig) -> C2FMAEImageProcessor:
    """The source's image processor with the statistics that were asked for; `config` gets them, too."""
    if is_file(options.source) and options.architecture is None:  # MAE's statistics are ImageNet's
        processor = C2FMAEImageProcessor.from_config(
            config, image_mean=list(IMAGENET_MEAN), image_std=list(IMAGENET_STD)
        )
    else:
        processor = convert_processor_to_c2fmae(options.architecture or options.source, config)
    for field in ("image_mean", "image_std"):
        value = getattr(options, field) or list(getattr(processor, field))
        if len(value) != config.num_channels:
            raise ValueError(f"{field}: expected a number for each of {config.num_channels} channels, got {value}")
        setattr(processor, field, value)
    config.image_mean, config.image_std = effective_statistics(processor)
    return processor


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
        if "pretrained_cfg" in config:  # by which timm knows how to prepare images
            config["pretrained_cfg"].update(convert_processor_to_timm(processor))
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main(args: list[str] | None = None) -> float:
    """Run the command; returns the largest difference of features."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("c2fmae_hf").setLevel(logging.INFO)
    options = parse(args)
    model, original = load_source(options)
    processor = find_processor(options, model.config)
    target = model if options.format == "c2fmae" else convert_from_c2fmae(model, options.format)
    difference = compare(original, target, model.config)
    logger.info("Largest difference of features on a random image: %.1e.", difference)
    write(options.output, model, target, processor)
    logger.info("Wrote a %s to %s.", type(target).__name__, options.output)
    return difference
