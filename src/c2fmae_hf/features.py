"""
Frozen features of any encoder that `AutoModel` or timm builds, and the two protocols that judge them without
fine-tuning: weighted k-nearest neighbours and the linear probe.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
    ViTMAEConfig,
)

from .constants import IMAGENET_MEAN, IMAGENET_STD


logger = logging.getLogger(__name__)


POOLINGS = ("cls", "mean")


def encoder_config(
    name: str,
    from_scratch: bool = False,
    image_size: int | None = None,
    drop_path_rate: float = 0.0,
    pooling: str | None = None,
    **options: Any,
) -> PreTrainedConfig:
    """
    The configuration of an encoder, wherever it comes from, ready for images of any size. A ViTMAE, which would mask
    its input, becomes the ViT that it trains.

    Args:
        name (`str`): As for [`load_encoder`].
        from_scratch (`bool`): Whether its weights will be random.
        image_size (`int`, *optional*): Side of the images, for the bare name of an architecture of timm.
        drop_path_rate (`float`): Stochastic depth; a model without it is used as it is, with a warning.
        pooling (`str`, *optional*): `mean` or `cls`, of C2FMAE and timm; likewise.
        options: Further fields, such as `id2label`.

    Raises:
        `ValueError`: for the bare name of an architecture of timm without `from_scratch`, or another pooling.
    """
    if pooling not in (None, *POOLINGS):
        raise ValueError(f"pooling: expected one of {POOLINGS}, got {pooling!r}")
    config: PreTrainedConfig
    is_bare = not Path(name).exists() and "/" not in name and timm.is_model(name)
    if is_bare and not from_scratch:
        raise ValueError(
            f"model: expected a folder or a name on the Hub, got {name!r}, an architecture without weights; give "
            f"'timm/{name}', or choose to start from scratch"
        )
    if is_bare:
        config = TimmWrapperConfig(architecture=name)
        for field, value in options.items():
            setattr(config, field, value)
    else:
        config = AutoConfig.from_pretrained(name, **options)
    if isinstance(config, TimmWrapperConfig):
        _configure_timm(config, image_size if is_bare else None, drop_path_rate, pooling)
        return config
    if isinstance(config, ViTMAEConfig):
        known = set(ViTConfig().to_dict()) - {"model_type", "architectures", "transformers_version"}
        config = ViTConfig(**{**{k: v for k, v in config.to_dict().items() if k in known}, **options})
    for field, value in (("drop_path_rate", drop_path_rate or None), ("pooling", pooling)):
        if value is None:
            continue
        if hasattr(config, field):
            setattr(config, field, value)
        else:
            logger.warning("%s: a %s has none, so that %s is left out.", name, config.model_type, field)
    return config


def own_image_size(config: PreTrainedConfig) -> int:
    """
    Side in pixels of the square images that an encoder was made for; 224 if its configuration does not say.

    Raises:
        `ValueError`: if they are no squares.
    """
    size = getattr(config, "image_size", None)
    if isinstance(config, TimmWrapperConfig):
        shape = (getattr(config, "pretrained_cfg", None) or {}).get("input_size")
        shape = shape or timm.get_pretrained_cfg_value(config.architecture, "input_size")
        size = (config.model_args or {}).get("img_size") or (shape and shape[-2:])
    if size is None:
        return 224
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ValueError(f"image_size: expected it, as the model's own is no square: {height} x {width}")
    return height


def _configure_timm(
    config: TimmWrapperConfig, image_size: int | None, drop_path_rate: float, pooling: str | None
) -> None:
    options: dict[str, Any] = dict(config.model_args or {})
    with torch.device("meta"):
        model = timm.create_model(config.architecture, **options)
    takes = inspect.signature(type(model).__init__).parameters
    if "dynamic_img_size" in takes:
        options["dynamic_img_size"] = True
    if image_size is not None and "img_size" in takes:
        options["img_size"] = image_size
    if drop_path_rate > 0:
        options["drop_path_rate"] = drop_path_rate
    if pooling is not None:
        options["global_pool"] = {"mean": "avg", "cls": "token"}[pooling]
    config.model_args = options


def load_encoder(name: str, from_scratch: bool = False, **options: Any) -> PreTrainedModel:
    """
    An encoder by name.

    Args:
        name (`str`): A folder or a name on the Hub that `AutoModel` loads (C2FMAE's pre-training folders and ViTMAE's
            too, and `timm/...`); or the bare name of an architecture of timm, which comes without weights.
        from_scratch (`bool`): Random weights instead of the saved ones.
        options: Of [`encoder_config`].

    Raises:
        `ValueError`: for an architecture of timm without `from_scratch`.
    """
    config = encoder_config(name, from_scratch, **options)
    if from_scratch:
        return AutoModel.from_config(config)
    return AutoModel.from_pretrained(name, config=config)


def pixel_statistics(name: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, for pixels in [0, 1], that an encoder expects; else ImageNet's."""
    try:
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError):
        if not Path(name).exists() and "/" not in name and timm.is_model(name):
            cfg = timm.get_pretrained_cfg(name)
            if cfg is not None:
                return list(cfg.mean), list(cfg.std)
        return list(IMAGENET_MEAN), list(IMAGENET_STD)
    data_config = getattr(processor, "data_config", {})
    mean = getattr(processor, "image_mean", None) or data_config.get("mean", IMAGENET_MEAN)
    std = getattr(processor, "image_std", None) or data_config.get("std", IMAGENET_STD)
    return list(mean), list(std)


def encode_images(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """`(B, tokens, width)` of the last layer, at any image size that the model can be given."""
    options = {}
    if "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
        options["interpolate_pos_encoding"] = True
    return model(pixel_values=pixel_values, **options).last_hidden_state


def pool_tokens(tokens: torch.Tensor, num_patches: int, pooling: str) -> torch.Tensor:
    """
    One vector per image.

    Args:
        tokens (`torch.Tensor` of shape `(batch_size, prefix + num_patches, width)`).
        num_patches (`int`): Tokens at the end that are patches.
        pooling (`str`): `cls`, the first token, or `mean`, that of the patches.

    Raises:
        `ValueError`: for an unknown pooling, or `cls` of a model without class token.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling: expected one of {POOLINGS}, got {pooling!r}")
    prefix = tokens.shape[1] - num_patches
    if pooling == "cls":
        if prefix < 1:
            raise ValueError("pooling: expected 'mean', since the encoder has no class token, got 'cls'")
        return tokens[:, 0]
    return tokens[:, prefix:].mean(dim=1)


def patch_size_of(model: PreTrainedModel) -> int:
    """
    Side of a patch in pixels.

    Raises:
        `ValueError`: if the model does not say.
    """
    size = getattr(model.config, "patch_size", None)
    if size is None and isinstance(model, TimmWrapperModel):
        size = getattr(getattr(model.timm_model, "patch_embed", None), "patch_size", None)
    size = size[0] if isinstance(size, (tuple, list)) else size
    if size is None:
        raise ValueError(f"model: expected a vision transformer with a patch_size, got {type(model).__name__}")
    return int(size)


@torch.inference_mode()
def extract_features(
    model: PreTrainedModel, batches: Iterable[dict[str, torch.Tensor]], description: str = "Extracting features"
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """
    Pooled features of a set, on the CPU.

    Args:
        model: From [`load_encoder`]; used in evaluation mode on the device that it is on.
        batches: `pixel_values` `(B, 3, H, W)` and `labels` `(B,)`.

    Returns:
        Features `(N, width)`, float32, by pooling (`cls` only if the encoder has a class token), and labels `(N,)`.
    """
    model.eval()
    patch_size = patch_size_of(model)
    device = next(model.parameters()).device
    features: dict[str, list[torch.Tensor]] = {name: [] for name in POOLINGS}
    labels = []
    for batch in tqdm(batches, desc=description, mininterval=1):
        pixel_values = batch["pixel_values"].to(device)
        tokens = encode_images(model, pixel_values).float()
        num_patches = (pixel_values.shape[2] // patch_size) * (pixel_values.shape[3] // patch_size)
        for name, collected in features.items():
            if name != "cls" or tokens.shape[1] > num_patches:
                collected.append(pool_tokens(tokens, num_patches, name).cpu())
        labels.append(batch["labels"])
    return {name: torch.cat(collected) for name, collected in features.items() if collected}, torch.cat(labels)


def weighted_knn(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    features: torch.Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> torch.Tensor:
    """
    Scores of a weighted k-nearest-neighbour classifier: each of the `k` training images nearest by cosine votes for
    its class with weight `exp(similarity / temperature)` (Wu et al., CVPR 2018; the protocol of DINO).

    Args:
        train_features (`torch.Tensor` of shape `(N, width)`), train_labels (`(N,)`).
        features (`torch.Tensor` of shape `(M, width)`).
        num_classes (`int`): Number of classes.
        k (`int`): Neighbours; at most `N` are there.
        temperature (`float`): Of the weights.
        chunk (`int`): Rows that are compared at once.

    Returns:
        `torch.FloatTensor` of shape `(M, num_classes)`; rows sum to 1.
    """
    train = nn.functional.normalize(train_features, dim=1)
    k = min(k, len(train))
    scores = []
    for rows in nn.functional.normalize(features, dim=1).split(chunk):
        similarity, index = (rows @ train.T).topk(k, dim=1)
        weight = (similarity / temperature).softmax(dim=1)
        scores.append(torch.zeros(len(rows), num_classes).scatter_add_(1, train_labels[index], weight))
    return torch.cat(scores)


class LinearProbe(nn.Module):
    """
    MAE's linear probe: batch normalisation without affine parameters, then a linear layer.

    Args:
        width (`int`): Of the features.
        num_classes (`int`): Number of classes.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.classifier = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.norm(features))

    def fit(
        self,
        features: torch.Tensor,
        labels: torch.Tensor,
        epochs: int = 90,
        batch_size: int = 512,
        base_learning_rate: float = 0.1,
        warmup_epochs: int = 10,
        seed: int = 0,
    ) -> LinearProbe:
        """
        Train on frozen features with SGD (momentum 0.9, no weight decay), a linear warm-up and a cosine decay: MAE's
        settings, but for LARS, which serves batches of 16384, and for the features, which are extracted once.

        Args:
            features (`torch.Tensor` of shape `(N, width)`), labels (`(N,)`).
            epochs, batch_size (`int`): Of the training.
            warmup_epochs (`int`): At most a fifth of `epochs`.
            base_learning_rate (`float`): For a batch of 256; the rate is proportional to the batch size.
            seed (`int`): Of the order of rows.
        """
        batch_size = min(batch_size, len(features))
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(self.parameters(), lr=base_learning_rate * batch_size / 256, momentum=0.9)
        steps_per_epoch = max(len(features) // batch_size, 1)
        warmup, total = min(warmup_epochs, epochs // 5) * steps_per_epoch, epochs * steps_per_epoch
        schedule = torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer, 1e-3, total_iters=max(warmup, 1)),
                torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(total - warmup, 1)),
            ],
            milestones=[warmup],
        )
        self.train()
        for _ in tqdm(range(epochs), desc="Linear probe", unit=" epochs", mininterval=1):
            order = torch.randperm(len(features), generator=generator)
            for index in order[: steps_per_epoch * batch_size].split(batch_size):
                loss = nn.functional.cross_entropy(self(features[index]), labels[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return self.eval()

    @torch.no_grad()
    def fold(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight `(num_classes, width)` and bias of the one linear layer that does the same in evaluation."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert variance is not None
        weight = self.classifier.weight * (variance + self.norm.eps).rsqrt()
        return weight, self.classifier.bias - weight @ mean
