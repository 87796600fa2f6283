"""Evaluations of frozen features: weighted k-nearest neighbours and the linear probe."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
)

from .encoders import POOLINGS, encode_images, patch_size_of, pool_tokens


@torch.inference_mode()
def extract_features(
    model: PreTrainedModel, batches: Iterable[dict[str, torch.Tensor]], description: str | None = "Extracting features"
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """
    Extract pooled features of a dataset, returned on the CPU.

    Args:
        model: From [`load_encoder`]; used in evaluation mode on its device.
        batches: `pixel_values` `(B, 3, H, W)` and `labels` `(B,)`.
        description (`str`, *optional*): Text of the progress bar; `None` shows no bar.

    Returns:
        Features `(N, width)`, float32, by pooling (`cls` only if the encoder has a class token), and labels `(N,)`.
    """
    model.eval()
    patch_size = patch_size_of(model)
    device = next(model.parameters()).device
    features: dict[str, list[torch.Tensor]] = {name: [] for name in POOLINGS}
    labels = []
    for batch in tqdm(batches, desc=description, mininterval=1, disable=description is None):
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
    Scores of a weighted k-nearest-neighbour classifier. Each of the `k` nearest training images by cosine votes for
    its class with weight `exp(similarity / temperature)` (Wu et al., CVPR 2018; the protocol of DINO).

    Args:
        train_features (`torch.Tensor` of shape `(N, width)`), train_labels (`(N,)`).
        features (`torch.Tensor` of shape `(M, width)`).
        num_classes (`int`): Number of classes.
        k (`int`): Number of neighbours, at most `N`.
        temperature (`float`): Temperature of the weights, above 0.
        chunk (`int`): Rows of `features` compared at once.

    Returns:
        `torch.FloatTensor` of shape `(M, num_classes)`; rows sum to 1.

    Raises:
        `ValueError`: for fewer than one neighbour, or a temperature that is not above 0.
    """
    if k < 1 or not temperature > 0:
        raise ValueError(f"k, temperature: expected at least 1 and above 0, got {k} and {temperature}")
    train = nn.functional.normalize(train_features.float(), dim=1)
    k = min(k, len(train))
    scores = []
    for rows in nn.functional.normalize(features.float(), dim=1).split(chunk):
        similarity, index = (rows @ train.T).topk(k, dim=1)
        weight = (similarity / temperature).softmax(dim=1)
        scores.append(torch.zeros(len(rows), num_classes).scatter_add_(1, train_labels[index], weight))
    return torch.cat(scores)


class LinearProbe(nn.Module):
    """
    MAE's linear probe: batch normalisation without affine parameters, then a linear layer.

    Args:
        width (`int`): Width of the features.
        num_classes (`int`): Number of classes.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.classifier = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.norm(features.to(self.classifier.weight.dtype)))

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
        Train on frozen features with SGD (momentum 0.9, no weight decay), a linear warm-up and a cosine decay. These
        are MAE's settings, except that MAE uses LARS, for batches of 16384, and does not extract features only once.

        Args:
            features (`torch.Tensor` of shape `(N, width)`), labels (`(N,)`).
            epochs, batch_size (`int`): Length of training and rows per step.
            warmup_epochs (`int`): At most a fifth of `epochs`.
            base_learning_rate (`float`): Rate at a batch of 256; it is proportional to the batch size.
            seed (`int`): Seed of the order of rows.
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
        """Weight `(num_classes, width)` and bias of a single linear layer equal to this probe in evaluation."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert variance is not None
        weight = self.classifier.weight * (variance + self.norm.eps).rsqrt()
        return weight, self.classifier.bias - weight @ mean
