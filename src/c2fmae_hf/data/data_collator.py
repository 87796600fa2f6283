"""Collate samples to a batch for pre-training, with the curriculum's masks and the targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import default_collate

from ..configuration_c2fmae import C2FMAEConfig
from ..constants import MASKING_STRATEGIES
from ..masking import MaskingCurriculum, mask_by_strategy
from ..targets import instance_labels_from_map
from .randomness import sample_seeds, sample_uniform
from .sampling import SampleKey


# Image ids travel with a batch as bytes, because processes exchange only tensors.
_ID_BYTES = 96


def encode_image_ids(names: list[str]) -> torch.Tensor:
    """Encode names as `(batch_size, 96)` uint8: the last 96 bytes of each in UTF-8, padded with zeros on the left."""
    rows = [name.encode()[-_ID_BYTES:].rjust(_ID_BYTES, b"\0") for name in names]
    return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(len(names), _ID_BYTES)


def decode_image_ids(encoded: torch.Tensor) -> list[str]:
    """Inverse of [`encode_image_ids`]; longer names stay cut."""
    return [bytes(row).lstrip(b"\0").decode(errors="replace") for row in encoded.tolist()]


# Fields of a batch that are not for the model.
DIAGNOSTICS = ("mask_strategy", "image_ids", "num_skipped")
# `mask_strategy` of a row that was masked at random because it lacks the map that its strategy needs.
FALLBACK = len(MASKING_STRATEGIES)


@dataclass
class DataCollatorForC2FMAE:
    """
    Collates samples of [`C2FMAEDataset`]; masks are a function of (seed, epoch, row) and the sample's progress.

    Args:
        config ([`C2FMAEConfig`]): For the grid, `mask_ratio` and `granularities`.
        curriculum ([`MaskingCurriculum`]): Chooses each training sample's masking strategy.
        seed (`int`): Seed of the masks.
        evaluation_masking (`str`): Strategy that masks evaluation samples, the same way every time, so that evaluation
            losses are comparable.
        return_diagnostics (`bool`): Whether the batch also holds fields that [`C2FMAETrainer`] removes before the
            forward pass: `mask_strategy` `(batch_size,)` int64, an index into `MASKING_STRATEGIES`, or `FALLBACK`;
            `image_ids`, see [`encode_image_ids`], to name the images of a step that fails; and `num_skipped`
            `(batch_size,)` int64, the number of bad rows skipped for each sample.

    Example (two photographs of 8 x 8 patches, on a label grid of 32 x 32):

    ```python
    >>> batch = DataCollatorForC2FMAE(config)([dataset[0], dataset[1]])
    >>> {name: tuple(value.shape) for name, value in batch.items()}
    {'pixel_values': (2, 3, 128, 128), 'bool_masked_pos': (2, 64), 'semantic_labels': (2, 32, 32),
     'instance_labels': (2, 3, 32, 32)}
    ```
    """

    config: C2FMAEConfig
    curriculum: MaskingCurriculum = field(default_factory=MaskingCurriculum)
    seed: int = 0
    evaluation_masking: str = "random"
    return_diagnostics: bool = False

    def __post_init__(self) -> None:
        if self.evaluation_masking not in MASKING_STRATEGIES:
            raise ValueError(
                f"evaluation_masking: expected one of {MASKING_STRATEGIES}, got {self.evaluation_masking!r}"
            )

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            samples: Each with `pixel_values` `(3, H, W)`, `semantic` and `instance` `(H/s, W/s)` int64, `sample_key`.

        Returns:
            `pixel_values` `(B, 3, H, W)` float32; `bool_masked_pos` `(B, N)` bool, `True` = masked, the same count in
            every row; if the granularities need them, `semantic_labels` `(B, H/s, W/s)` int64 (-100 = ignore) and
            `instance_labels` `(B, 3, H/s, W/s)` float32 (see [`instance_labels_from_map`]).

        Raises:
            `ValueError`: if a sample lacks a field.
        """
        missing = [name for name in ("pixel_values", "semantic", "instance", "sample_key") if name not in samples[0]]
        if missing:
            raise ValueError(
                f"samples: missing {missing}, got {sorted(samples[0])}. Pass the rows through C2FMAEDataset; with the "
                "Trainer, remove_unused_columns must be False."
            )
        # In a worker this collates into shared memory, which saves a copy of the batch.
        pixel_values = default_collate([sample["pixel_values"] for sample in samples])
        semantic = torch.stack([sample["semantic"] for sample in samples])
        instance = torch.stack([sample["instance"] for sample in samples])
        keys: list[SampleKey] = [sample["sample_key"] for sample in samples]

        cells_per_side = self.config.label_cells_per_side
        num_patches = semantic[0].numel() // cells_per_side**2
        seeds = sample_seeds(self.seed, [key.epoch for key in keys], [key.index for key in keys])
        uniform = sample_uniform(seeds, 1 + 2 * num_patches)
        drawn = self._draw_strategies(keys, uniform[:, 0])
        bool_masked_pos, applied = mask_by_strategy(
            semantic,
            instance,
            drawn,
            uniform[:, 1:],
            num_masked=self.config.num_masked_patches(num_patches),
            cells_per_side=cells_per_side,
            region_masking=self.curriculum.region_masking,
        )

        batch = {"pixel_values": pixel_values, "bool_masked_pos": bool_masked_pos}
        needed = {*self.config.granularities, *self.config.input_granularities}
        if "semantic" in needed:
            batch["semantic_labels"] = semantic
        if "instance" in needed:
            batch["instance_labels"] = instance_labels_from_map(instance)
        if self.return_diagnostics:
            batch["mask_strategy"] = torch.where(applied == drawn, applied, FALLBACK)
            batch["image_ids"] = encode_image_ids([sample["image_id"] for sample in samples])
            batch["num_skipped"] = torch.tensor([sample["num_skipped"] for sample in samples])
        return batch

    def _draw_strategies(self, keys: Sequence[SampleKey], uniform: torch.Tensor) -> torch.Tensor:
        evaluation = torch.tensor([key.progress is None for key in keys])
        progress = torch.tensor([key.progress or 0.0 for key in keys], dtype=torch.double)
        fixed = MASKING_STRATEGIES.index(self.evaluation_masking)
        return torch.where(evaluation, fixed, self.curriculum.draw(progress, uniform))
