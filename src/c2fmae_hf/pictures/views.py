"""Models, photographs, masks and predictions, as arrays. `panels` draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..configuration_c2fmae import C2FMAEConfig
from ..constants import IGNORE_INDEX, MASKING_STRATEGIES, NO_INSTANCE
from ..data.randomness import sample_seeds, sample_uniform
from ..data.transforms import evaluation_transform
from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..masking import MaskingCurriculum, mask_by_strategy
from ..modeling_c2fmae import (
    C2FMAEForPreTraining,
    C2FMAEForPreTrainingOutput,
    C2FMAEModel,
    C2FMAEPreTrainedModel,
)
from ..publishing.repository import load_saved
from .colours import UNKNOWN_COLOUR, enlarge


# Longer photographs are cut to this aspect before they are resized; the model sees only the middle anyway.
MAX_ASPECT = 8
# The most masks to average over, unless hiding every patch needs more.
MAX_PASSES = 8


@dataclass(frozen=True)
class ViewedModel:
    """
    A model to look at.

    Args:
        name (`str`): Name in captions.
        encoder ([`C2FMAEModel`]): In evaluation mode.
        processor ([`C2FMAEImageProcessor`]): Made from the model's configuration.
        whole ([`C2FMAEForPreTraining`], *optional*): The model with its decoder, if it has one.
    """

    name: str
    encoder: C2FMAEModel
    processor: C2FMAEImageProcessor
    whole: C2FMAEForPreTraining | None = None

    @property
    def config(self) -> C2FMAEConfig:
        return self.encoder.config

    @property
    def granularities(self) -> tuple[str, ...]:
        """Granularities that the model predicts; empty without a decoder."""
        return () if self.whole is None else tuple(self.config.granularities)

    @property
    def class_names(self) -> dict[int, str]:
        """Names of all semantic classes; `class 3` where the configuration has none."""
        names: dict[Any, str] = self.config.semantic_id2label or {}  # type: ignore[assignment]
        return {label: names.get(label, f"class {label}") for label in range(self.config.num_semantic_classes)}


def load_viewed_model(name: str, device: str | torch.device = "cpu") -> ViewedModel:
    """
    Load a model to look at.

    Args:
        name (`str`): Folder or Hub name of a saved C2FMAE model. Only `C2FMAEForPreTraining` has a decoder; of other
            models the encoder is used.
        device: Where to put it.

    Raises:
        `FileNotFoundError`: if there is no such model.
        `ValueError`: if it is no C2FMAE model, or does not take RGB images.
    """
    model, _ = load_saved(name)
    if not isinstance(model, C2FMAEPreTrainedModel):
        raise ValueError(f"{name}: expected a model of c2fmae_hf, got {type(model).__name__}")
    if model.config.num_channels != 3:
        raise ValueError(f"{name}: expected a model of RGB images, got num_channels={model.config.num_channels}")
    shown_name = Path(name).name if Path(name).exists() else name
    return view(model.to(device), shown_name)  # type: ignore[arg-type]


def view(model: C2FMAEPreTrainedModel, name: str) -> ViewedModel:
    """Switch a model to evaluation mode and give it a name for captions."""
    whole = model if isinstance(model, C2FMAEForPreTraining) else None
    return ViewedModel(name, model.eval().base_model, C2FMAEImageProcessor.from_config(model.config), whole)


@dataclass(frozen=True)
class Photo:
    """
    A photograph as a model sees it.

    Args:
        name (`str`): Name in captions.
        pixel_values (`torch.FloatTensor` of shape `(3, H, W)`): Normalised.
        semantic, instance (`torch.LongTensor` of shape `(H / s, W / s)`): Label maps, -100 = ignore; all -100 if there
            are none.
        maps_from (`str`): Where the maps come from, such as `the dataset's maps`; empty without maps.
        are_known (`bool`): Whether the maps are the dataset's own, with which predictions are compared.
        class_names (`dict[int, str]`): Names of classes in `semantic` that are not the model's.
        shares_classes (`bool`): Whether the classes in `semantic` are the model's.
    """

    name: str
    pixel_values: torch.Tensor
    semantic: torch.Tensor
    instance: torch.Tensor
    maps_from: str = ""
    are_known: bool = False
    class_names: Mapping[int, str] = field(default_factory=dict)
    shares_classes: bool = True

    @property
    def has_objects(self) -> bool:
        return self.are_known and bool((self.instance > NO_INSTANCE).any())


def prepare_photo(
    name: str,
    image: Image.Image,
    config: C2FMAEConfig,
    semantic: np.ndarray | None = None,
    instance: np.ndarray | None = None,
    **details: Any,
) -> Photo:
    """
    Crop the middle of a photograph to the model's size, as in evaluation: the shorter side is resized to 8/7 of the
    model's, then the centre is cropped.

    Args:
        name (`str`): Name in captions.
        image: RGB, of any size; see [`~c2fmae_hf.images.to_rgb`].
        config ([`C2FMAEConfig`]): The model's configuration.
        semantic, instance (`np.ndarray` of shape `(height, width)`, *optional*): Label maps of the image's size.
        details: Further fields of [`Photo`].
    """
    longest = MAX_ASPECT * min(image.size)
    left, top = (max(side - longest, 0) // 2 for side in image.size)
    image = image.crop((left, top, image.width - left, image.height - top))
    middle = np.s_[top : top + image.height, left : left + image.width]
    semantic = None if semantic is None else semantic[middle]
    instance = None if instance is None else instance[middle]
    transform = evaluation_transform(
        config.image_height_width, label_stride=config.label_stride, mean=config.image_mean, std=config.image_std
    )
    sample = transform(image, semantic, instance, seed=0)
    return Photo(name, sample["pixel_values"], sample["semantic"], sample["instance"], **details)


def same_patch(patch: tuple[int, int], config: C2FMAEConfig, other: C2FMAEConfig) -> tuple[int, int]:
    """
    Find the patch, (row, column) from 0, in another model's grid that holds the middle of a patch, or is nearest to
    it. Both models see the middle of the photograph, but one may see more of it.
    """
    sizes = [max(one.image_height_width) for one in (config, other)]
    found = []
    for index, total, own in zip(patch, config.grid_size, other.grid_size):
        from_middle = (index + 0.5 - total / 2) * config.patch_size / sizes[0]
        place = from_middle * sizes[1] / other.patch_size + own / 2
        found.append(min(max(int(place), 0), own - 1))
    return found[0], found[1]


# Masks


def strategy_mask(
    photo: Photo,
    config: C2FMAEConfig,
    strategy: str,
    seed: int = 0,
    mask_ratio: float | None = None,
    draw: int = 0,
    curriculum: MaskingCurriculum | None = None,
) -> tuple[torch.Tensor, str]:
    """
    Draw a mask with one strategy.

    Args:
        photo ([`Photo`]): Its maps are the regions.
        config ([`C2FMAEConfig`]): Gives the grid and `mask_ratio`.
        strategy (`str`): One of `MASKING_STRATEGIES`.
        seed, draw (`int`): Choose the mask; strategies share the random numbers of the same two.
        mask_ratio (`float`, *optional*): By default the configuration's.
        curriculum ([`MaskingCurriculum`], *optional*): Gives `region_masking`.

    Returns:
        `bool_masked_pos` (`torch.BoolTensor` of shape `(N,)`, `True` = masked), and the strategy that was applied:
        `random` where the maps are empty.
    """
    num_patches, curriculum = config.num_patches, curriculum or MaskingCurriculum()
    uniform = sample_uniform(sample_seeds(seed, [draw], [0]), 2 * num_patches)
    mask, applied = mask_by_strategy(
        photo.semantic[None],
        photo.instance[None],
        torch.tensor([MASKING_STRATEGIES.index(strategy)]),
        uniform,
        num_masked=count_masked(config, mask_ratio),
        cells_per_side=config.label_cells_per_side,
        region_masking=curriculum.region_masking,
    )
    return mask[0], MASKING_STRATEGIES[int(applied[0])]


def count_masked(config: C2FMAEConfig, mask_ratio: float | None = None) -> int:
    """Number of masked patches at a mask ratio in (0, 1), by default the configuration's."""
    if mask_ratio is None:
        return config.num_masked_patches(config.num_patches)
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio: expected a number between 0 and 1, got {mask_ratio}")
    return min(max(round(mask_ratio * config.num_patches), 1), config.num_patches - 1)


def complementary_masks(num_patches: int, num_masked: int, seed: int = 0) -> torch.Tensor:
    """
    Make masks that together hide every patch and, if eight suffice, also show every patch: windows that go round a
    random order of the patches.

    Returns:
        `torch.BoolTensor` of shape `(masks, num_patches)`, `True` = masked, `num_masked` in every row.
    """
    showing_all = -(-num_patches // (num_patches - num_masked))
    number = max(-(-num_patches // num_masked), min(showing_all, MAX_PASSES))
    order = sample_uniform(sample_seeds(seed, [0], [1]), num_patches)[0].argsort()
    masks = torch.zeros(number, num_patches, dtype=torch.bool)
    for index in range(number):
        window = (index * num_patches // number + torch.arange(num_masked)) % num_patches
        masks[index, order[window]] = True
    return masks


class Frame(NamedTuple):
    """A mask of the curriculum, `(N,)`, bool, and the strategy that made it."""

    strategy: str
    mask: torch.Tensor


def curriculum_frames(
    photo: Photo,
    config: C2FMAEConfig,
    curriculum: MaskingCurriculum,
    times: Sequence[float],
    num_draws: int = 3,
    seed: int = 0,
    mask_ratio: float | None = None,
) -> list[list[Frame]]:
    """
    Follow the masking curriculum on one photograph: a row of frames for each of `num_draws` samples.

    Args:
        times: Training progress of the frames, in [0, 1]. Each sample keeps its random numbers. Strategies are drawn
            at the quantiles (k + 1/2) / num_draws, so that their frequencies match their probabilities.
        curriculum: See [`MaskingCurriculum`].
        photo, config, seed, mask_ratio: As for [`strategy_mask`].
    """
    progress, rows = torch.tensor(times, dtype=torch.double), []
    for draw in range(num_draws):
        drawn = curriculum.draw(progress, torch.full((len(times),), (draw + 0.5) / num_draws)).tolist()
        masks = [
            strategy_mask(photo, config, MASKING_STRATEGIES[index], seed, mask_ratio, draw, curriculum)
            for index in drawn
        ]
        rows.append([Frame(applied, mask) for mask, applied in masks])
    return rows


def masked_photo(photo: np.ndarray, mask: torch.Tensor, patch_size: int) -> np.ndarray:
    """Paint the masked patches `(N,)` of a photograph `(H, W, 3)` light grey."""
    hidden = enlarge(mask.cpu().numpy().reshape(photo.shape[0] // patch_size, -1), patch_size)
    return np.where(hidden[..., None], np.array(UNKNOWN_COLOUR, dtype=np.uint8), photo)


# What the decoder predicts


@dataclass(frozen=True)
class Prediction:
    """
    What the decoder predicts for one photograph.

    Args:
        semantic (`np.ndarray` of shape `(H / s, W / s)`, *optional*): Class ids; -100 = not predicted.
        instance (`np.ndarray` of shape `(H / s, W / s)`, *optional*): Instance ids; 0 = none, -100 = not predicted.
        image (`np.ndarray` of shape `(H, W, 3)`, *optional*): Predicted pixels; elsewhere the photograph's own.
        passes (`int`): Number of masks averaged over; 0 = nothing was masked.
    """

    semantic: np.ndarray | None = None
    instance: np.ndarray | None = None
    image: np.ndarray | None = None
    passes: int = 1


@torch.no_grad()
def predict(viewed: ViewedModel, photo: Photo, mask: torch.Tensor) -> Prediction:
    """
    Predict the masked patches (`mask` of shape `(N,)`, `True` = masked), and the labels of visible patches if the
    model was trained on them (`config.supervise_visible_labels`).
    """
    return _read(viewed, photo, _run(viewed, photo, mask[None]))


@torch.no_grad()
def predict_everywhere(
    viewed: ViewedModel, photo: Photo, seed: int = 0, mask_ratio: float | None = None
) -> Prediction:
    """
    Predict maps without gaps. The decoder is trained on masked patches only, so the photograph is masked several times
    (see [`complementary_masks`]), and each patch's predictions are averaged over the masks that hide it. If the model
    was trained on visible patches, too (`config.supervise_visible_labels`), semantics and instances come from one pass
    with nothing masked, and `passes` is 0.
    """
    config = viewed.config
    masks = complementary_masks(config.num_patches, count_masked(config, mask_ratio), seed)
    averaged = _read(viewed, photo, _average(_run(viewed, photo, masks), config.num_patches))
    if not config.supervise_visible_labels:
        return replace(averaged, passes=len(masks))
    return replace(_read(viewed, photo, _run_unmasked(viewed, photo)), image=averaged.image, passes=0)


def _run(viewed: ViewedModel, photo: Photo, masks: torch.Tensor) -> C2FMAEForPreTrainingOutput:
    assert viewed.whole is not None
    device = viewed.whole.device
    pixel_values = photo.pixel_values.expand(len(masks), -1, -1, -1).to(device)
    return viewed.whole(pixel_values, bool_masked_pos=masks.to(device))


def _run_unmasked(viewed: ViewedModel, photo: Photo) -> C2FMAEForPreTrainingOutput:
    """Predict the labels of all patches with nothing masked; the model's forward needs masked pixels for its loss."""
    assert viewed.whole is not None
    device, config = viewed.whole.device, viewed.config
    patch_ids = torch.arange(config.num_patches, device=device)[None]
    tokens = viewed.encoder(photo.pixel_values[None].to(device)).last_hidden_state
    logits = viewed.whole.decoder(tokens, patch_ids, patch_ids, 0, config.grid_size)
    return C2FMAEForPreTrainingOutput(
        semantic_logits=logits.get("semantic"), instance_logits=logits.get("instance"), patch_ids=patch_ids
    )


def _average(outputs: C2FMAEForPreTrainingOutput, num_patches: int) -> C2FMAEForPreTrainingOutput:
    """Average one photograph's outputs under several masks, `(masks, M, ...)`, to `(1, N, ...)`, for every patch."""
    patch_ids = outputs.patch_ids
    assert patch_ids is not None

    def mean(values: torch.Tensor) -> torch.Tensor:
        ids = patch_ids[:, : values.shape[1]].flatten()
        flat = values.flatten(0, 1).float()
        total = flat.new_zeros(num_patches, *flat.shape[1:]).index_add_(0, ids, flat)
        counts = torch.bincount(ids, minlength=num_patches).clamp(min=1)
        return (total / counts.view(-1, *[1] * (flat.ndim - 1)))[None]

    averaged = C2FMAEForPreTrainingOutput(patch_ids=torch.arange(num_patches, device=patch_ids.device)[None])
    if outputs.semantic_logits is not None:  # probabilities instead of logits: only the largest is read
        averaged.semantic_logits = mean(outputs.semantic_logits.float().softmax(dim=-1))
    if outputs.instance_logits is not None:
        offsets, flags = outputs.instance_logits[..., :2], outputs.instance_logits[..., 2:].float().sigmoid()
        averaged.instance_logits = torch.cat([mean(offsets), mean(flags).logit(eps=1e-6)], dim=-1)
    if outputs.image_logits is not None:
        averaged.image_logits = mean(outputs.image_logits)
    return averaged


def _read(viewed: ViewedModel, photo: Photo, outputs: C2FMAEForPreTrainingOutput) -> Prediction:
    return read_predictions(viewed.processor, viewed.config, outputs, photo.pixel_values[None])[0]


def read_predictions(
    processor: C2FMAEImageProcessor,
    config: C2FMAEConfig,
    outputs: C2FMAEForPreTrainingOutput,
    pixel_values: torch.Tensor,
) -> list[Prediction]:
    """Turn outputs into maps and pixels for each photograph of a batch `(batch_size, 3, H, W)`."""
    assert outputs.patch_ids is not None
    rows, columns = (side // config.patch_size for side in pixel_values.shape[2:])
    semantic: Sequence[Any] = [None] * len(pixel_values)
    instance, image = semantic, semantic
    if outputs.semantic_logits is not None:
        maps = processor.post_process_semantic_segmentation(outputs, grid_size=(rows, columns))
        semantic = [ids.cpu().numpy() for ids in maps]
    if outputs.instance_logits is not None:
        decoded = torch.zeros(len(pixel_values), rows * columns, dtype=torch.bool)
        decoded.scatter_(1, outputs.patch_ids.cpu(), True)
        cells: Any = enlarge(decoded.view(-1, rows, columns).numpy().T, config.label_cells_per_side).T
        segments = processor.post_process_instance_segmentation(outputs, grid_size=(rows, columns))
        instance = [
            np.where(is_decoded, segment["segmentation"].cpu().numpy(), IGNORE_INDEX)
            for is_decoded, segment in zip(cells, segments)
        ]
    if outputs.image_logits is not None:
        pixel_values = pixel_values.to(outputs.image_logits.device)
        image = processor.post_process_reconstruction(outputs, pixel_values, config.norm_pix_loss)
    return [Prediction(*one) for one in zip(semantic, instance, image)]


def with_predicted_maps(viewed: ViewedModel, photo: Photo, seed: int = 0) -> Photo:
    """
    Give a photograph the maps that the model itself predicts (see [`predict_everywhere`]). The photograph is returned
    unchanged if the model predicts neither semantics nor instances.
    """
    if not {"semantic", "instance"} & set(viewed.granularities):
        return photo
    found = predict_everywhere(viewed, photo, seed)
    semantic, instance = torch.full_like(photo.semantic, IGNORE_INDEX), torch.full_like(photo.instance, NO_INSTANCE)
    if found.semantic is not None:
        semantic = torch.from_numpy(found.semantic).long()
    if found.instance is not None:
        instance = torch.from_numpy(found.instance).long()
    origin = "the model's own predictions"
    return replace(photo, semantic=semantic, instance=instance, maps_from=origin, class_names={}, shares_classes=True)
