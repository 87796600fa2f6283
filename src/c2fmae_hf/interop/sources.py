"""Load encoders and classifiers of C2FMAE, timm, ViT and ViTMAE from a folder, the Hub or a file of weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel, TimmWrapperConfig, ViTConfig, ViTForImageClassification, ViTModel
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME, cached_file

from ..configuration_c2fmae import C2FMAEConfig
from ..constants import IMAGENET_MEAN, IMAGENET_STD
from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..modeling_c2fmae import C2FMAEForImageClassification, C2FMAEForPreTraining, C2FMAEModel
from ..publishing.licences import note_license
from ..publishing.repository import check_saved, not_found
from ..timm_c2fmae import effective_statistics
from .conversion import LEFT_OUT, build_timm, convert_to_c2fmae, read_state_dict
from .processors import convert_processor_to_c2fmae


logger = logging.getLogger(__name__)

FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")


def is_file(source: str) -> bool:
    """Whether a source is a file of weights."""
    return Path(source).is_file() or source.endswith(FILE_SUFFIXES)


def load_config(source: str) -> Any:
    """
    Load the configuration of a folder or a name on the Hub.

    Raises:
        `FileNotFoundError`: if there is none. For the bare name of a timm architecture it says how to name weights.
    """
    check_saved(source)
    try:
        return AutoConfig.from_pretrained(source)
    except OSError as error:
        if Path(source).exists():
            raise
        hint = f". For timm's weights give a name on the Hub: 'timm/{source}...'" if timm.is_model(source) else ""
        raise FileNotFoundError(not_found(source, error) + hint) from error


def load_source(
    source: str,
    architecture: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    *,
    layer_norm_eps: float | None = None,
    pooling: str | None = None,
    encoder_only: bool = False,
) -> tuple[PreTrainedModel, nn.Module]:
    """
    Load an encoder or a classifier as a C2FMAE model, and as the original model of its library.

    Args:
        source (`str`): A folder or a name on the Hub of C2FMAE, timm, ViT or ViTMAE; or a file of weights in timm's or
            MAE's names.
        architecture (`str`, *optional*): timm's name of the model whose weights a file holds.
        model_args (*optional*): Arguments of timm's model, for a file.
        layer_norm_eps, pooling, encoder_only: As for [`convert_to_c2fmae`].

    Raises:
        `ValueError`: for another kind of model, or weights that are not exactly its own.
    """
    fields: dict[str, Any] = {"layer_norm_eps": layer_norm_eps, "pooling": pooling, "encoder_only": encoder_only}
    model_args, config = dict(model_args or {}), None
    if is_file(source):
        if architecture is None and pooling is not None:
            model_args["global_pool"] = {"mean": "avg", "cls": "token"}[pooling]
        if not Path(source).is_file():
            raise FileNotFoundError(f"{source}: expected a file of weights, found nothing")
        original = build_timm(read_state_dict(source), architecture, **model_args)
    else:
        config = load_config(source)
        if model_args or architecture:
            raise ValueError("--architecture, --image_size, --num_attention_heads: expected none with a config.json")
        if isinstance(config, C2FMAEConfig):
            own, original = load_c2fmae(source, config, **fields)
            note_license(own, source)
            return own, original
        if isinstance(config, TimmWrapperConfig):
            is_old = Path(source).is_dir() and not (Path(source) / SAFE_WEIGHTS_NAME).is_file()
            file: Any = cached_file(source, WEIGHTS_NAME if is_old else SAFE_WEIGHTS_NAME)
            state = read_state_dict(file)
            original = build_timm(state, config.architecture, **(config.model_args or {}))
        elif config.model_type in ("vit", "vit_mae"):
            original = load_vit(source, config, encoder_only)
        else:
            raise ValueError(f"source: expected C2FMAE, timm, ViT or ViTMAE, got one of type {config.model_type!r}")
    model = convert_to_c2fmae(original, **fields)
    model.config.converted_from = Path(source).name if Path(source).exists() else source
    if isinstance(model, C2FMAEForImageClassification) and config and len(config.id2label) == model.config.num_labels:
        model.config.id2label, model.config.label2id = config.id2label, config.label2id
    note_license(model, source)
    return model, original


def load_vit(source: str, config: Any, encoder_only: bool) -> nn.Module:
    """Load a ViT. A ViTMAE, which would mask its input, is loaded as a ViT."""
    if config.model_type == "vit_mae":
        config = ViTConfig(**{name: value for name, value in config.to_dict().items() if name != "model_type"})
    options: dict[str, Any] = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    loaded: Any
    if config.architectures == ["ViTForImageClassification"] and not encoder_only:
        loaded = ViTForImageClassification.from_pretrained(source, **options)
    else:
        loaded = ViTModel.from_pretrained(source, add_pooling_layer=False, **options)
    model, info = loaded
    # transformers only warns about these.
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
        logger.warning("Left out, not part of the encoder: the rest of %s.", name)
    return model, original


def find_processor(
    source: str,
    config: C2FMAEConfig,
    architecture: str | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> C2FMAEImageProcessor:
    """
    Build the source's image processor, with other statistics if given, and write its statistics to `config`.

    Args:
        source, architecture: As for [`load_source`].
        config: Configuration of the converted C2FMAE model.
        image_mean, image_std (*optional*): Per channel, for pixels in [0, 1].
    """
    if is_file(source) and architecture is None:  # MAE's statistics are ImageNet's
        if image_mean is None:
            logger.info("%s has no pixel statistics: using ImageNet's mean and deviation, as MAE does.", source)
        processor = C2FMAEImageProcessor.from_config(
            config, image_mean=list(IMAGENET_MEAN), image_std=list(IMAGENET_STD)
        )
    else:
        processor = convert_processor_to_c2fmae(architecture or source, config)
    for field, given in (("image_mean", image_mean), ("image_std", image_std)):
        value = given or list(getattr(processor, field))
        if len(value) != config.num_channels:
            raise ValueError(f"{field}: expected a number for each of {config.num_channels} channels, got {value}")
        setattr(processor, field, value)
    config.image_mean, config.image_std = effective_statistics(processor)
    return processor
