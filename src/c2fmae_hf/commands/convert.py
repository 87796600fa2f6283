"""
Convert the encoder of a checkpoint from and to C2FMAE, timm, transformers' ViT and ViTMAE, and MAE's own files.

    python examples/convert_checkpoint.py google/vit-base-patch16-224 runs/c2fmae-from-vit --format c2fmae
    python examples/convert_checkpoint.py mae_pretrain_vit_base.pth runs/c2fmae-from-mae --format c2fmae
    python examples/convert_checkpoint.py runs/demo/c2fmae-vit-tiny runs/vit-tiny --format vit
    python examples/convert_checkpoint.py runs/demo/c2fmae-vit-tiny mae_vit_tiny.pth --format mae

SOURCE is a folder or a name on the Hub of C2FMAE, ViT, ViTMAE or timm, whose `config.json` is used; or a file of
weights, `.safetensors`, `.pth`, `.pt` or `.bin`. Of a file with timm's names, `--architecture` tells what built it.
OUTPUT is a file for `mae` and else a folder; a timm folder is for `timm.create_model("local-dir:OUTPUT")`.

Prints what was recognised and left out, what is to be done to images, and the largest difference between the features
of the source and those of the result on a random image, where the source can be run. If they differ by more than
rounding, nothing is written.
"""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import AutoConfig, PreTrainedModel, TimmWrapperConfig, ViTConfig, ViTMAEConfig

from ..configuration_c2fmae import C2FMAEConfig
from ..constants import IMAGENET_MEAN, IMAGENET_STD
from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..interop.conversion import FORMATS, convert_from_c2fmae, convert_to_c2fmae, read_state_dict
from ..interop.processors import convert_processor_to_c2fmae, convert_processor_to_vit, describe_processor
from ..modeling_c2fmae import C2FMAEForImageClassification, C2FMAEForPreTraining, C2FMAEModel, C2FMAEPreTrainedModel
from ..publishing.repository import check_saved
from ..timm_c2fmae import convert_processor_to_timm, effective_statistics
from ..utils.files import replace_file
from .arguments import CommandParser


logger = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
# Rounding in float32, relative to the largest feature.
TOLERANCE = 1e-4


def parse(args: list[str] | None) -> argparse.Namespace:
    parser = CommandParser("convert", __doc__)
    parser.add_argument("source", help="see above")
    parser.add_argument("output", type=Path, help="see above")
    parser.add_argument("--format", choices=("c2fmae", *FORMATS), default="c2fmae")
    parser.add_argument("--architecture", help="timm's name of what a file with timm's names belongs to")
    parser.add_argument("--num_attention_heads", type=int, help="of a file of another than the usual sizes")
    parser.add_argument("--image_size", type=int, nargs=2, metavar=("H", "W"), help="of a file, if not a square")
    parser.add_argument("--layer_norm_eps", type=float, help="timm and MAE take 1e-6 alone, ViT usually has 1e-12")
    parser.add_argument("--pooling", choices=("mean", "cls"), help="what a head, or pooler_output, is made of")
    parser.add_argument("--encoder_only", action="store_true", help="leave a classifier out")
    parser.add_argument("--image_mean", type=float, nargs="+", help="by default the source's, else ImageNet's")
    parser.add_argument("--image_std", type=float, nargs="+", help="likewise")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    options = parser.parse_args(args)
    try:
        check_output(options)
    except ValueError as error:
        parser.error(str(error))
    return options


def check_output(options: argparse.Namespace) -> None:
    output = options.output
    is_file = options.format == "mae"
    if (output.suffix in (".pth", ".pt")) != is_file or output.suffix in (".bin", ".safetensors"):
        raise ValueError(f"output: expected {'a .pth or .pt file' if is_file else 'a folder'}, got {output}")
    if not output.exists():
        return
    if not options.overwrite:
        raise ValueError(f"output: expected a new name or --overwrite, got {output}, which exists")
    if output.resolve() == Path(options.source).resolve():
        raise ValueError(f"output: expected another name than the source's, got {output}")
    if output.is_dir() is is_file or (output.is_dir() and not (output / "config.json").is_file()):
        raise ValueError(f"output: expected to overwrite an earlier output, got {output}, which is none")


# The source


def load_source(options: argparse.Namespace) -> tuple[PreTrainedModel, nn.Module | None]:
    """The source as C2FMAE, and as the library has it that it comes from; `None` where that cannot be built."""
    fields = {
        "num_attention_heads": options.num_attention_heads,
        "image_size": tuple(options.image_size) if options.image_size else None,
        "layer_norm_eps": options.layer_norm_eps,
        "pooling": options.pooling,
        "encoder_only": options.encoder_only,
    }
    if options.source.endswith(SUFFIXES):
        return load_file(options, fields)
    check_saved(options.source)
    config = AutoConfig.from_pretrained(options.source)
    if isinstance(config, C2FMAEConfig):
        return load_c2fmae(options.source, config, fields)
    if isinstance(config, TimmWrapperConfig):
        state = read_state_dict(options.source)
        model_args = {**(config.model_args or {}), "num_classes": num_classes_of(state)}
        original = timm.create_model(config.architecture, **model_args)
        original.load_state_dict(state)
        model = convert_to_c2fmae(original, **fields)
        if isinstance(model, C2FMAEForImageClassification) and len(config.id2label) == model.config.num_labels:
            model.config.id2label, model.config.label2id = config.id2label, config.label2id
        return model, original.eval()
    if not isinstance(config, (ViTConfig, ViTMAEConfig)):
        raise ValueError(f"source: expected C2FMAE, timm, ViT or ViTMAE, got a model of type {config.model_type!r}")
    # Not from the loaded model: the library only warns of weights that it does not find.
    model = convert_to_c2fmae(read_state_dict(options.source), config, **fields)
    default = "ViTMAEModel" if isinstance(config, ViTMAEConfig) else "ViTModel"
    model_class = getattr(transformers, (config.architectures or [default])[0])
    return model, model_class.from_pretrained(options.source, dtype=torch.float32).eval()


def load_c2fmae(source: str, config: C2FMAEConfig, fields: dict[str, Any]) -> tuple[PreTrainedModel, nn.Module]:
    for name in ("num_attention_heads", "image_size"):
        if fields[name] is not None:
            raise ValueError(f"{name}: expected none for C2FMAE, which tells its own, got {fields[name]}")
    model_class: type[PreTrainedModel] = C2FMAEModel
    if config.architectures == ["C2FMAEForPreTraining"]:
        model_class = C2FMAEForPreTraining
    elif config.architectures == ["C2FMAEForImageClassification"] and not fields["encoder_only"]:
        model_class = C2FMAEForImageClassification
    changes = {name: fields[name] for name in ("layer_norm_eps", "pooling") if fields[name] is not None}
    original = model_class.from_pretrained(source, dtype=torch.float32).eval()
    model = model_class.from_pretrained(source, dtype=torch.float32, **changes).eval()
    saved = (config.architectures or [""])[0]
    parts = {"ForPreTraining": "decoder", "ForImageClassification": "classifier", "ForSemanticSegmentation": "head"}
    part = parts.get(saved.removeprefix("C2FMAE"))
    if part is not None and not isinstance(model, C2FMAEForImageClassification):
        logger.warning("Left out, as no part of the encoder: %s.", part)
    return model.image_encoder() if isinstance(model, C2FMAEForPreTraining) else model, original


def load_file(options: argparse.Namespace, fields: dict[str, Any]) -> tuple[PreTrainedModel, nn.Module | None]:
    state = read_state_dict(options.source)
    if options.architecture:
        size = {"img_size": fields["image_size"]} if fields["image_size"] else {}
        original = timm.create_model(options.architecture, num_classes=num_classes_of(state), **size)
        original.load_state_dict(state)
        return convert_to_c2fmae(original, **fields), original.eval()
    model = convert_to_c2fmae(state, **fields)
    keys = model.config.timm_keys()
    if keys is None or "patch_embed.proj.weight" not in state:
        return model, None
    no_embed_class = state["pos_embed"].shape[1] == model.config.num_patches
    num_classes = 0 if options.encoder_only else num_classes_of(state)
    original = VisionTransformer(**keys["model_args"], num_classes=num_classes, no_embed_class=no_embed_class)
    original.load_state_dict({name: state[name] for name in original.state_dict()})
    return model, original.eval()


def num_classes_of(state: dict[str, torch.Tensor]) -> int:
    return len(state["head.weight"]) if "head.weight" in state else 0


# The comparison


@torch.no_grad()
def outputs_of(model: nn.Module, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    """Tokens `(1, 1 + N, width)` of the encoder and, of a classifier, logits."""
    if isinstance(model, VisionTransformer):
        tokens = model.forward_features(pixel_values)
        return [tokens, model.forward_head(tokens)] if isinstance(model.head, nn.Linear) else [tokens]
    encoder = getattr(model, "base_model", model)
    takes = {}
    if "noise" in inspect.signature(encoder.forward).parameters:  # a ViTMAE: mask nothing, keep the order
        encoder.config.mask_ratio, mask_ratio = 0.0, encoder.config.mask_ratio
        takes["noise"] = torch.arange(encoder.embeddings.patch_embeddings.num_patches)[None].float()
    try:
        outputs = [encoder(pixel_values, **takes).last_hidden_state]
    finally:
        if takes:
            encoder.config.mask_ratio = mask_ratio
    if isinstance(getattr(model, "classifier", None), nn.Linear):
        outputs.append(model(pixel_values).logits)
    return outputs


def set_epsilon(model: nn.Module, epsilon: float) -> float:
    """Give every layer norm another epsilon; returns the former."""
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    former = norms[0].eps
    for norm in norms:
        norm.eps = epsilon
    return former


def largest_difference(source: nn.Module, target: nn.Module, config: C2FMAEConfig) -> tuple[float, float]:
    """Of their outputs on a random image, and the largest output."""
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(1, config.num_channels, *config.image_height_width, generator=generator)
    difference, largest = 0.0, 0.0
    for expected, got in zip(outputs_of(source, pixel_values), outputs_of(target, pixel_values)):
        difference = max(difference, (expected - got).abs().max().item())
        largest = max(largest, expected.abs().max().item())
    return difference, largest


def compare(source: nn.Module, target: nn.Module, config: C2FMAEConfig) -> float:
    """
    Largest difference of their outputs on a random image, once with the epsilon that the result has: a change of it
    that was asked for is told apart from an error.

    Raises:
        `ValueError`: if it is larger than rounding.
    """
    former = set_epsilon(source, config.layer_norm_eps)
    difference, largest = largest_difference(source, target, config)
    if not difference <= TOLERANCE * max(1.0, largest):  # NaN is not
        raise ValueError(f"source: expected features equal to {TOLERANCE}, got a difference of {difference:.1e}")
    if former != config.layer_norm_eps:
        set_epsilon(source, former)
        moved, _ = largest_difference(source, target, config)
        logger.warning(
            "layer_norm_eps is %g, as asked for, and not the source's %g: that alone changes features by up to %.1e.",
            *(config.layer_norm_eps, former, moved),
        )
    return difference


# The output


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """As `replace_file`: a temporary name to write to, which takes the place of `folder` when all is written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (folder.with_name(f".{folder.name}.{kind}-{os.getpid()}") for kind in ("tmp", "old"))
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(temporary, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def timm_model(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> tuple[VisionTransformer, dict[str, Any]]:
    """timm's model of a state dict, and the `config.json` by which timm builds it again."""
    keys = model.config.timm_keys()
    num_classes = num_classes_of(state)
    original = VisionTransformer(**keys["model_args"], num_classes=num_classes)
    original.load_state_dict(state)
    cfg = {**keys["pretrained_cfg"], "num_classes": num_classes}
    names = {"label_names": list(model.config.id2label.values())} if num_classes else {}
    return original.eval(), {**keys, "num_classes": num_classes, "pretrained_cfg": cfg, **names}


def write(options: argparse.Namespace, model: PreTrainedModel, target: Any, processor: C2FMAEImageProcessor) -> None:
    if options.format == "mae":
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(options.output) as temporary:
            torch.save(target, temporary)
        return
    with replace_folder(options.output) as temporary:
        if options.format == "timm":
            _, config = timm_model(model, target)
            save_file(target, temporary / "model.safetensors", metadata={"format": "pt"})
        else:
            target.save_pretrained(temporary)
            own = processor if options.format == "c2fmae" else convert_processor_to_vit(processor)
            own.save_pretrained(temporary)
            config = json.loads((temporary / "config.json").read_text(encoding="utf-8"))
        if "pretrained_cfg" in config:  # by which timm knows what to do to images
            config["pretrained_cfg"].update(convert_processor_to_timm(processor))
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def find_processor(options: argparse.Namespace, config: C2FMAEConfig) -> C2FMAEImageProcessor:
    if options.source.endswith(SUFFIXES) and not options.architecture:
        # Files hold none; ImageNet's statistics are what MAE has.
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
    for field, value in zip(("image_mean", "image_std"), effective_statistics(processor)):
        setattr(config, field, value)
    return processor


def convert(options: argparse.Namespace) -> float | None:
    model, original = load_source(options)
    if not isinstance(original, C2FMAEPreTrainedModel):
        is_path = Path(options.source).exists()
        model.config.converted_from = Path(options.source).name if is_path else options.source
    processor = find_processor(options, model.config)
    target: Any = model if options.format == "c2fmae" else convert_from_c2fmae(model, options.format)

    difference = None
    runnable = target if isinstance(target, nn.Module) else timm_model(model, target.get("model", target))[0]
    if original is None:
        logger.info("Features were not compared: what the file belongs to is not known.")
    else:
        difference = compare(original, runnable, model.config)
        logger.info("Largest difference of features on a random image: %.1e.", difference)
    write(options, model, target, processor)
    report(options, model, processor)
    return difference


def report(options: argparse.Namespace, model: PreTrainedModel, processor: C2FMAEImageProcessor) -> None:
    is_classifier = isinstance(model, C2FMAEForImageClassification)
    logger.info("Wrote the %s to %s.", "classifier" if is_classifier else "encoder", options.output)
    kept = "The file does not say so: images are to be" if options.format == "mae" else "Images are"
    logger.info("%s %s.", kept, describe_processor(processor))
    if is_classifier:
        names = list(model.config.id2label.values())
        logger.info("Classes: %s%s (%d).", ", ".join(names[:5]), ", ..." if len(names) > 5 else "", len(names))
    elif options.format in ("c2fmae", "timm"):
        what = {"mean": "the mean of the patch tokens", "cls": "the class token"}[model.config.pooling]
        logger.info("The pooled output is %s; --pooling chooses.", what)


def main(args: list[str] | None = None) -> float | None:
    """Returns the largest difference, `None` where the source could not be run."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("c2fmae_hf").setLevel(logging.INFO)
    return convert(parse(args))
