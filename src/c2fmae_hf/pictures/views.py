"""
A model and a photograph to be looked at, and what there is to see as arrays: masks, and what the decoder predicts.
What the encoder does is in `encoder_views`; `panels` and `encoder_panels` draw both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from .. import modeling_c2fmae
from ..configuration_c2fmae import C2FMAEConfig
from ..constants import IGNORE_INDEX, MASKING_STRATEGIES, NO_INSTANCE
from ..data.randomness import sample_seeds, sample_uniform
from ..data.transforms import evaluation_transform
from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..masking import MaskingCurriculum, mask_by_strategy
from ..modeling_c2fmae import C2FMAEForPreTraining, C2FMAEForPreTrainingOutput, C2FMAEModel
from ..publishing.repository import check_saved


# Wider or taller photographs are cut to their middle before they are made smaller: of it alone anything is seen.
MAX_ASPECT = 8
# Masks that an average is taken over, but for those that it needs to cover every patch.
MAX_PASSES = 8


@dataclass(frozen=True)
class ViewedModel:
    """
    A saved model, ready to be looked at.

    Args:
        name (`str`): What captions call it.
        encoder ([`C2FMAEModel`]): In evaluation mode.
        processor ([`C2FMAEImageProcessor`]): Of the model's configuration.
        whole ([`C2FMAEForPreTraining`], *optional*): The model around the encoder, if it has the decoder.
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
        """What it predicts: nothing without a decoder."""
        return () if self.whole is None else tuple(self.config.granularities)

    @property
    def label_names(self) -> dict[int, str]:
        return {int(label): name for label, name in (self.config.semantic_id2label or {}).items()}


def load_viewed_model(name: str, device: str | torch.device = "cpu") -> ViewedModel:
    """
    Args:
        name (`str`): A folder, or a name on the Hub, of a saved `C2FMAEForPreTraining`, or of any other C2FMAE model,
            of which the encoder is taken.
        device: Where to put it.

    Raises:
        `FileNotFoundError`: if there is no such model.
        `ValueError`: if it is not C2FMAE's, or does not take RGB images.
    """
    check_saved(name)
    config_dict, _ = C2FMAEConfig.get_config_dict(name)
    if config_dict.get("model_type") != C2FMAEConfig.model_type:
        raise ValueError(f"{name}: expected a model of c2fmae_hf, got {config_dict.get('model_type')!r}")
    class_name = (config_dict.get("architectures") or [C2FMAEModel.__name__])[0]
    is_whole = class_name == C2FMAEForPreTraining.__name__
    model_class = C2FMAEForPreTraining if is_whole else C2FMAEModel
    if not isinstance(getattr(modeling_c2fmae, class_name, None), type):
        raise ValueError(f"{name}, architectures: expected a model of c2fmae_hf, got {class_name!r}")
    model = model_class.from_pretrained(name).to(device).eval()
    if model.config.num_channels != 3:
        raise ValueError(f"{name}: expected a model of RGB images, got num_channels={model.config.num_channels}")
    encoder, whole = (model.c2fmae, model) if is_whole else (model, None)
    processor = C2FMAEImageProcessor.from_config(model.config)
    return ViewedModel(Path(name).name if Path(name).exists() else name, encoder, processor, whole)


@dataclass(frozen=True)
class Photo:
    """
    A photograph as a model sees it.

    Args:
        name (`str`): What captions call it.
        pixel_values (`torch.FloatTensor` of shape `(3, H, W)`): Normalised.
        semantic, instance (`torch.LongTensor` of shape `(H / s, W / s)`): Label maps, -100 = ignore; all -100 without.
        maps_from (`str`): Where the maps come from, in words; empty without maps.
        are_known (`bool`): Whether they are the dataset's own, so that predictions are to be held against them.
        label_names (`dict[int, str]`): Names of the classes of `semantic`, as far as they are known.
        shares_classes (`bool`): Whether these classes are the ones that the model predicts.
    """

    name: str
    pixel_values: torch.Tensor
    semantic: torch.Tensor
    instance: torch.Tensor
    maps_from: str = ""
    are_known: bool = False
    label_names: Mapping[int, str] = field(default_factory=dict)
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
    The middle of a photograph at the model's size, as evaluation sees it: the shorter side is made 8/7 of the model's,
    then the centre is cut out.

    Args:
        name (`str`): For captions.
        image: RGB, of any size; see [`~c2fmae_hf.images.to_rgb`].
        config ([`C2FMAEConfig`]): Of the model.
        semantic, instance (`np.ndarray` of shape `(height, width)`, *optional*): Label maps of the image's size.
        details: Further fields of [`Photo`].
    """
    width, height = image.size
    longest = MAX_ASPECT * min(width, height)
    if max(width, height) > longest:
        left, top = max(width - longest, 0) // 2, max(height - longest, 0) // 2
        image = image.crop((left, top, left + min(width, longest), top + min(height, longest)))
        middle = np.s_[top : top + longest, left : left + longest]
        semantic = None if semantic is None else semantic[middle]
        instance = None if instance is None else instance[middle]
    transform = evaluation_transform(
        config.image_height_width, label_stride=config.label_stride, mean=config.image_mean, std=config.image_std
    )
    sample = transform(image, semantic, instance, seed=0)
    return Photo(name, sample["pixel_values"], sample["semantic"], sample["instance"], **details)


def same_patch(patch: tuple[int, int], config: C2FMAEConfig, other: C2FMAEConfig) -> tuple[int, int]:
    """
    The patch of another model's grid that holds the middle of a patch, (row, column) from 0: both see the middle of a
    photograph, but perhaps more or less of it. The nearest one, if it lies outside.
    """
    # Of the photograph's shorter side; as in `evaluation_transform`.
    sizes = [max(one.image_height_width) for one in (config, other)]
    found = []
    sides = zip(patch, config.grid_size, other.grid_size)
    for index, total, own in sides:
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
    The mask of one strategy.

    Args:
        photo ([`Photo`]): Its maps are the regions.
        config ([`C2FMAEConfig`]): For the grid and `mask_ratio`.
        strategy (`str`): One of `MASKING_STRATEGIES`.
        seed, draw (`int`): Which mask of the many; of the same two, strategies share their random numbers.
        mask_ratio (`float`, *optional*): Instead of the configuration's.
        curriculum ([`MaskingCurriculum`], *optional*): Its jitter and the patches that it leaves visible.

    Returns:
        `bool_masked_pos` (`torch.BoolTensor` of shape `(N,)`, `True` = masked), and the strategy that was applied:
        `random` where the maps say nothing.
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
        jitter=curriculum.jitter,
        min_visible=curriculum.min_visible,
    )
    return mask[0], MASKING_STRATEGIES[int(applied[0])]


def count_masked(config: C2FMAEConfig, mask_ratio: float | None = None) -> int:
    """Masked patches of a photograph at a mask ratio in (0, 1), by default the configuration's."""
    if mask_ratio is None:
        return config.num_masked_patches(config.num_patches)
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio: expected a number between 0 and 1, got {mask_ratio}")
    return min(max(round(mask_ratio * config.num_patches), 1), max(config.num_patches - 1, 1))


def complementary_masks(num_patches: int, num_masked: int, seed: int = 0) -> torch.Tensor:
    """
    Masks that between them mask every patch and, if eight are enough for that, show every patch: windows that go round
    a random order of the patches.

    Returns:
        `torch.BoolTensor` of shape `(masks, num_patches)`, `num_masked` of each row `True` = masked.
    """
    showing_all = -(-num_patches // max(num_patches - num_masked, 1))
    number = max(-(-num_patches // num_masked), min(showing_all, MAX_PASSES))
    order = sample_uniform(sample_seeds(seed, [0], [1]), num_patches)[0].argsort()
    masks = torch.zeros(number, num_patches, dtype=torch.bool)
    for index in range(number):
        window = (index * num_patches // number + torch.arange(num_masked)) % num_patches
        masks[index, order[window]] = True
    return masks


class Frame(NamedTuple):
    """A mask of the curriculum at one time, `(N,)` bool, and the strategy that made it."""

    progress: float
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
    The masking curriculum on one photograph.

    Args:
        times: Training progress of the frames, in [0, 1].
        num_draws (`int`): So many samples at each time. Each keeps its random numbers throughout, and draws its
            strategy at its own quantile, of n samples (k + 1/2) / n, so that the samples of a time divide among the
            strategies as their probabilities do.
        curriculum: See [`MaskingCurriculum`].
        photo, config, seed, mask_ratio: As for [`strategy_mask`].

    Returns:
        A row of frames for each sample.
    """
    progress = torch.tensor(times, dtype=torch.double)
    rows = []
    for draw in range(num_draws):
        quantile = torch.full((len(times),), (draw + 0.5) / num_draws)
        row = []
        for time, drawn in zip(times, curriculum.draw(progress, quantile).tolist()):
            strategy = MASKING_STRATEGIES[drawn]
            mask, applied = strategy_mask(photo, config, strategy, seed, mask_ratio, draw, curriculum)
            row.append(Frame(time, applied, mask))
        rows.append(row)
    return rows


def masked_photo(photo: np.ndarray, mask: torch.Tensor, patch_size: int, colour: tuple[int, ...]) -> np.ndarray:
    """The photograph `(H, W, 3)` with masked patches in one colour."""
    hidden = mask.cpu().numpy().reshape(photo.shape[0] // patch_size, -1)
    hidden = hidden.repeat(patch_size, axis=0).repeat(patch_size, axis=1)
    return np.where(hidden[..., None], np.array(colour, dtype=np.uint8), photo)


# What the decoder says


@dataclass(frozen=True)
class Prediction:
    """
    What the decoder predicts of one photograph.

    Args:
        semantic (`np.ndarray` of shape `(H / s, W / s)`, *optional*): Class ids; -100 where nothing was predicted.
        instance (`np.ndarray` of shape `(H / s, W / s)`, *optional*): Instance ids, 0 = none, likewise.
        image (`np.ndarray` of shape `(H, W, 3)`, *optional*): Predicted pixels, the photograph's own elsewhere.
        passes (`int`): Over how many masks it is a mean; 0 = nothing was masked.
    """

    semantic: np.ndarray | None = None
    instance: np.ndarray | None = None
    image: np.ndarray | None = None
    passes: int = 1


@torch.no_grad()
def predict(viewed: ViewedModel, photo: Photo, mask: torch.Tensor) -> Prediction:
    """
    What the decoder makes of the patches that are masked (and of the labels of visible ones, if the model was trained
    on these: `config.supervise_visible_labels`).

    Args:
        viewed ([`ViewedModel`]): With a decoder.
        photo ([`Photo`]): Prepared for this model.
        mask (`torch.BoolTensor` of shape `(N,)`): `True` = masked.
    """
    return _read(viewed, photo, _run(viewed, photo, mask[None]))


@torch.no_grad()
def predict_everywhere(
    viewed: ViewedModel, photo: Photo, seed: int = 0, mask_ratio: float | None = None
) -> Prediction:
    """
    Maps without gaps. The decoder is trained on masked patches, so that there is no prediction without masking;
    instead the photograph is seen through [`complementary_masks`], and of each patch the predictions are averaged
    over those that hide it: what the model says of a patch that it does not see, for every patch. Where visible
    patches were trained, too (`config.supervise_visible_labels`), semantics and instances are those of one pass with
    nothing masked.

    Returns:
        [`Prediction`]: `passes` is 0 in that second case.
    """
    config = viewed.config
    masks = complementary_masks(config.num_patches, count_masked(config, mask_ratio), seed)
    whole = _read(viewed, photo, _average(_run(viewed, photo, masks), config.num_patches))
    if not config.supervise_visible_labels:
        return replace(whole, passes=len(masks))
    return replace(_read(viewed, photo, _run_unmasked(viewed, photo)), image=whole.image, passes=0)


def _run(viewed: ViewedModel, photo: Photo, masks: torch.Tensor) -> C2FMAEForPreTrainingOutput:
    assert viewed.whole is not None
    pixel_values = photo.pixel_values.expand(len(masks), -1, -1, -1)
    device = viewed.whole.device
    return viewed.whole.eval()(pixel_values.to(device), bool_masked_pos=masks.to(device))


def _run_unmasked(viewed: ViewedModel, photo: Photo) -> C2FMAEForPreTrainingOutput:
    """Labels of all patches, all of them visible. The model's own forward would compute a loss of no pixels."""
    assert viewed.whole is not None
    device, config = viewed.whole.device, viewed.config
    patch_ids = torch.arange(config.num_patches, device=device)[None]
    tokens = viewed.encoder(photo.pixel_values[None].to(device)).last_hidden_state
    logits = viewed.whole.decoder(tokens, patch_ids, patch_ids, 0, config.grid_size)
    return C2FMAEForPreTrainingOutput(
        semantic_logits=logits.get("semantic"), instance_logits=logits.get("instance"), patch_ids=patch_ids
    )


def _average(outputs: C2FMAEForPreTrainingOutput, num_patches: int) -> C2FMAEForPreTrainingOutput:
    """Outputs of one photograph under several masks, `(masks, M, ...)`, to one of every patch, `(1, N, ...)`."""
    assert outputs.patch_ids is not None

    def mean(values: torch.Tensor) -> torch.Tensor:
        ids = outputs.patch_ids[:, : values.shape[1]].flatten()  # type: ignore[index]
        flat = values.flatten(0, 1).float()
        total = flat.new_zeros(num_patches, *flat.shape[1:]).index_add_(0, ids, flat)
        counts = torch.bincount(ids, minlength=num_patches).clamp(min=1)
        return (total / counts.view(-1, *[1] * (flat.ndim - 1)))[None]

    averaged = C2FMAEForPreTrainingOutput(
        patch_ids=torch.arange(num_patches, device=outputs.patch_ids.device)[None],
    )
    if outputs.semantic_logits is not None:
        averaged.semantic_logits = mean(outputs.semantic_logits.float().softmax(dim=-1))  # of which the largest counts
    if outputs.instance_logits is not None:
        offsets, flags = outputs.instance_logits[..., :2], outputs.instance_logits[..., 2:].float().sigmoid()
        averaged.instance_logits = torch.cat([mean(offsets), mean(flags).logit(eps=1e-6)], dim=-1)
    if outputs.image_logits is not None:
        averaged.image_logits = mean(outputs.image_logits)
    return averaged


def _read(viewed: ViewedModel, photo: Photo, outputs: C2FMAEForPreTrainingOutput) -> Prediction:
    """The maps of the first row."""
    config, processor = viewed.config, viewed.processor
    grid_size = config.grid_size
    assert outputs.patch_ids is not None
    decoded = torch.zeros(config.num_patches, dtype=torch.bool)
    decoded[outputs.patch_ids[0].cpu()] = True
    gaps = ~enlarge_patches(decoded.numpy(), grid_size, config.label_cells_per_side)
    semantic = instance = image = None
    if outputs.semantic_logits is not None:
        found = processor.post_process_semantic_segmentation(outputs, grid_size=grid_size)
        semantic = found[0].cpu().numpy()  # type: ignore[union-attr]
    if outputs.instance_logits is not None:
        segments = processor.post_process_instance_segmentation(outputs, grid_size=grid_size)
        instance = np.where(gaps, IGNORE_INDEX, segments[0]["segmentation"].cpu().numpy())
    if outputs.image_logits is not None:
        pixel_values = photo.pixel_values[None].to(outputs.image_logits.device)
        image = processor.post_process_reconstruction(outputs, pixel_values, config.norm_pix_loss)[0]
    return Prediction(semantic, instance, image)


def enlarge_patches(values: np.ndarray, grid_size: tuple[int, int], factor: int) -> np.ndarray:
    """Values of patches `(N, ...)` as a picture, each `factor` x `factor`."""
    grid = values.reshape(*grid_size, *values.shape[1:])
    return grid.repeat(factor, axis=0).repeat(factor, axis=1)


def with_predicted_maps(viewed: ViewedModel, photo: Photo, seed: int = 0) -> Photo:
    """
    A photograph whose regions are what the model itself predicts of it: see [`predict_everywhere`]. The photograph is
    returned as it is if the model predicts neither semantics nor instances.
    """
    if not {"semantic", "instance"} & set(viewed.granularities):
        return photo
    found = predict_everywhere(viewed, photo, seed)
    semantic, instance = torch.full_like(photo.semantic, IGNORE_INDEX), torch.full_like(photo.instance, NO_INSTANCE)
    if found.semantic is not None:
        semantic = torch.from_numpy(found.semantic).long()
    if found.instance is not None:
        instance = torch.from_numpy(found.instance).long()
    return replace(
        photo,
        semantic=semantic,
        instance=instance,
        maps_from=f"predicted by {viewed.name} itself",
        are_known=False,
        label_names=viewed.label_names,
        shares_classes=True,
    )


__all__ = [
    "Frame",
    "Photo",
    "Prediction",
    "ViewedModel",
    "complementary_masks",
    "count_masked",
    "curriculum_frames",
    "enlarge_patches",
    "load_viewed_model",
    "masked_photo",
    "predict",
    "predict_everywhere",
    "prepare_photo",
    "strategy_mask",
    "with_predicted_maps",
]
