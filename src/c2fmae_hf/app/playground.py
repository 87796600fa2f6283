"""Predictions and attention for the page, without Gradio and for several visitors."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from ..constants import GRANULARITIES, MASKING_STRATEGIES, NO_INSTANCE
from ..modeling_c2fmae import C2FMAEForPreTraining
from ..pictures.captions import photo_pixels
from ..pictures.colours import colour_classes, colour_instances, colour_of, enlarge
from ..pictures.encoder_panels import outlined
from ..pictures.encoder_views import photo_attention
from ..pictures.figures import heat_colours
from ..pictures.photographs import open_photograph
from ..pictures.views import Photo, masked_photo, predict, prepare_photo, strategy_mask, view, with_predicted_maps
from ..publishing.records import RUN_FILE, STATE_FILE, Run, data_of, load_run, run_of_weights
from ..publishing.repository import ENCODER_FILE, INDEX_FILE, load_saved


MAX_SEED = 2**31 - 1
_WEIGHT_FILES = (ENCODER_FILE, INDEX_FILE)


@dataclass(frozen=True)
class WeightsFacts:
    """
    What the folder of the weights says about them.

    Args:
        folder (`str`): The last two parts of its path.
        architecture (`str`): In words.
        training (`str`): Data and steps of the run that made these weights, or why they are not known.
    """

    folder: str
    architecture: str
    training: str


@dataclass(frozen=True)
class Photograph:
    """
    A photograph as the model sees it.

    Args:
        photo ([`~c2fmae_hf.pictures.views.Photo`]): Prepared for the model, with label maps that the model predicted.
        notes: Sentences about how the file was changed.
    """

    photo: Photo
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Pictures:
    """
    Pictures of one masked photograph.

    Args:
        panels: `(height, width, 3)`, uint8, by name, one pixel for each pixel or label cell: `photograph`, `masked`,
            and the predicted `semantic`, `instance` and `image`; visible patches are light grey in the maps. `regions`
            are those that guided the mask; random masking has none.
        classes: Name, colour `(3,)`, uint8, and share of the masked area of each predicted class, the largest first;
            then classes that only occur in `regions`, with a share of 0.
        strategy (`str`): The masking strategy; `random` if the label maps are empty.
        num_masked, num_patches (`int`): Patches of the photograph.
        num_instances (`int`, *optional*): Number of predicted instances.
    """

    panels: dict[str, np.ndarray]
    classes: list[tuple[str, np.ndarray, float]]
    strategy: str
    num_masked: int
    num_patches: int
    num_instances: int | None = None


@dataclass(frozen=True)
class PatchAttention:
    """
    What one patch attends to.

    Args:
        weights: Attention to each patch, `(rows, columns)`, float32.
        class_token (`float`): Attention to the class token. All together add up to 1.
    """

    weights: np.ndarray
    class_token: float


class Playground:
    """
    A pre-trained model that several threads can share; one computes at a time.

    Args:
        model ([`C2FMAEForPreTraining`]): Switched to evaluation mode.
    """

    def __init__(self, model: C2FMAEForPreTraining) -> None:
        self.model, self.config = model, model.config
        self.viewed = view(model, "the model")
        # Needed for correctness: reading attention switches the model's implementation during the call.
        self._lock = threading.Lock()

    @classmethod
    def from_folder(cls, folder: str | os.PathLike) -> Playground:
        """
        Load a model.

        Raises:
            `FileNotFoundError`: if the folder, its `config.json` or its safetensors are missing.
            `ValueError`: if it holds another model than `C2FMAEForPreTraining`, or weights are missing.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: expected a folder of a pre-training model, found none")
        if (folder / "config.json").is_file() and not any((folder / name).is_file() for name in _WEIGHT_FILES):
            raise FileNotFoundError(f"{folder}: expected one of {', '.join(_WEIGHT_FILES)}, found neither")
        model, _ = load_saved(folder)
        if not isinstance(model, C2FMAEForPreTraining):
            raise ValueError(
                f"{folder}: expected a C2FMAEForPreTraining, whose decoder predicts, got a {type(model).__name__}; "
                "pass the folder of the whole model, such as runs/demo/c2fmae-vit-tiny-pretraining"
            )
        return cls(model)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.config.grid_size

    @property
    def strategies(self) -> list[str]:
        """Masking strategies that this model can predict regions for."""
        return [name for name in MASKING_STRATEGIES if name == "random" or name in self.config.granularities]

    def open(self, value: Any) -> Photograph:
        """
        Prepare a photograph.

        Args:
            value: A file, its content or a PIL image, as for [`~c2fmae_hf.pictures.photographs.open_photograph`].

        Raises:
            `ValueError`: if it cannot be shown. The message is written for the visitor.
        """
        image, notes = open_photograph(value)
        photo = prepare_photo("photograph", image, self.config)
        with self._lock:
            return Photograph(with_predicted_maps(self.viewed, photo), tuple(notes))

    def predict(self, photograph: Photograph, strategy: str, mask_ratio: float, seed: int) -> Pictures:
        """
        Mask a photograph and predict what is hidden.

        Args:
            photograph ([`Photograph`]): From [`Playground.open`].
            strategy (`str`): One of [`Playground.strategies`].
            mask_ratio (`float`): In (0, 1); at least one patch is masked and one stays visible.
            seed (`int`): Seed of the mask, in [0, 2**31).

        Raises:
            `ValueError`: if the strategy or the ratio is not possible.
        """
        if strategy not in self.strategies:
            raise ValueError(f"strategy: expected one of {self.strategies}, got {strategy!r}")
        photo = photograph.photo
        mask, used = strategy_mask(photo, self.config, strategy, seed, mask_ratio)
        with self._lock:
            found = predict(self.viewed, photo, mask)

        pixels = photo_pixels(self.viewed, photo)
        panels: dict[str, np.ndarray] = {"photograph": pixels}
        if used == "semantic":
            panels["regions"] = colour_classes(photo.semantic.numpy())
        elif used == "instance":
            panels["regions"] = colour_instances(photo.instance.numpy())
        panels["masked"] = masked_photo(pixels, mask, self.config.patch_size)
        classes, num_instances = [], None
        if found.semantic is not None:
            panels["semantic"] = colour_classes(found.semantic)
            classes = self._classes(found.semantic, photo.semantic.numpy() if used == "semantic" else found.semantic)
        if found.instance is not None:
            panels["instance"] = colour_instances(found.instance)
            num_instances = len(np.unique(found.instance[found.instance > NO_INSTANCE]))
        if found.image is not None:
            panels["image"] = found.image
        return Pictures(panels, classes, used, int(mask.sum()), len(mask), num_instances)

    def _classes(self, ids: np.ndarray, regions: np.ndarray) -> list[tuple[str, np.ndarray, float]]:
        shares = dict.fromkeys(np.unique(regions[regions >= 0]).tolist(), 0.0)
        present, counts = np.unique(ids[ids >= 0], return_counts=True)
        shares.update(zip(present.tolist(), (counts / counts.sum()).tolist()))
        ordered = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
        return [(self.viewed.class_names[label], colour_of(label), share) for label, share in ordered]

    def attention(
        self, photograph: Photograph, row: int, column: int, layer: int, head: int | None = None
    ) -> PatchAttention:
        """
        Compute what a patch of the unmasked photograph attends to.

        Args:
            photograph ([`Photograph`]): From [`Playground.open`].
            row, column (`int`): The patch, from 0.
            layer (`int`): The encoder's block, from 0.
            head (`int`, *optional*): From 0; by default the mean of all heads.

        Raises:
            `IndexError`: if the patch, layer or head does not exist.
        """
        with self._lock:
            attention = photo_attention(self.viewed, photograph.photo)[layer]
        heads = attention.view(len(attention), *self.grid_size, *self.grid_size)[:, row, column]
        weights = heads.mean(dim=0) if head is None else heads[head]
        return PatchAttention(weights.numpy(), max(1 - float(weights.sum()), 0.0))

    def draw_photograph(self, photograph: Photograph, row: int, column: int) -> np.ndarray:
        """Draw the model's input with a frame around one patch: `(k * height, k * width, 3)`, uint8."""
        return self._framed(photo_pixels(self.viewed, photograph.photo), row, column)

    def draw_attention(self, photograph: Photograph, attention: PatchAttention, row: int, column: int) -> np.ndarray:
        """
        Draw attention over the photograph in grey, with a frame around the patch that attends. Colours follow the
        square root of attention, from dark blue (none) to yellow (the largest). The size is that of
        [`draw_photograph`].
        """
        photo = photo_pixels(self.viewed, photograph.photo)
        colours = enlarge(heat_colours(attention.weights), self.config.patch_size).astype(np.float64)
        grey = np.asarray(Image.fromarray(photo).convert("L"), dtype=np.float64)[..., None]
        picture = np.clip(colours + 0.15 * (grey - grey.mean()), 0, 255).astype(np.uint8)
        return self._framed(picture, row, column)

    def _framed(self, picture: np.ndarray, row: int, column: int) -> np.ndarray:
        factor = max(448 // picture.shape[1], 1)
        return outlined(enlarge(picture, factor), (row, column), self.config.patch_size * factor)

    def patch_at(self, x: float, y: float, size: tuple[int, int]) -> tuple[int, int]:
        """
        Find the patch at a pixel.

        Args:
            x, y (`float`): A place in a picture of [`draw_photograph`].
            size (`tuple[int, int]`): `(height, width)` of that picture.

        Returns:
            Row and column, from 0; for a place outside the picture those of the nearest patch.
        """
        rows, columns = self.grid_size
        row, column = int(y * rows / size[0]), int(x * columns / size[1])
        return min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)


def facts_of_weights(folder: str | os.PathLike, model: C2FMAEForPreTraining) -> WeightsFacts:
    """
    Describe the weights in a folder. The record of their training is looked for in the folder, beside it (where
    `c2fmae pretrain` leaves it) and in its `runs`; it must hold the weights' fingerprint. `data_names` in `card.yaml`
    gives the names under which to show the records' datasets.
    """
    folder = Path(folder).resolve()
    config = model.config
    height, width = config.image_height_width
    number = sum(parameter.numel() for parameter in model.parameters())
    stages = ", ".join(name for name in GRANULARITIES if name in config.granularities)
    architecture = (
        f"{type(model).__name__} with {number / 1e6:.1f} million parameters: an encoder of {config.num_hidden_layers} "
        f"blocks, width {config.hidden_size}, for photographs of {height} x {width} pixels in patches of "
        f"{config.patch_size}, and a {config.decoder_type} decoder ({stages})"
    )
    candidates = [folder, folder.parent, *sorted(path for path in folder.glob("runs/*") if path.is_dir())]
    training = "No record says how these weights were trained."
    for candidate in candidates:
        if not (candidate / RUN_FILE).is_file():
            continue
        try:
            run = run_of_weights(load_run(candidate, "training"), model)
        except ValueError:  # not JSON
            run = None
        if run is not None and run.role == "made":
            training = _training_of(run, _data_names(folder))
            break
        training = "No record says how these weights were trained; the records beside them belong to other weights."
    return WeightsFacts("/".join(folder.parts[-2:]).lstrip("/"), architecture, training)


def _data_names(folder: Path) -> dict[Any, Any]:
    """Names of datasets by their names in the records; empty without a readable `card.yaml`."""
    try:
        names = yaml.safe_load((folder / "card.yaml").read_text(encoding="utf-8"))["data_names"]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return {}
    return names if isinstance(names, dict) else {}


def _training_of(run: Run, data_names: Mapping[Any, Any]) -> str:
    record, data = run.record, data_of(run)
    states = [content for file, content in run.files.items() if Path(file).name == STATE_FILE]
    steps = states[0].get("global_step") if states else None
    rows = (record.get("rows") or {}).get("train")
    parts = [
        f"on {data_names.get(data, data)}" if data != "not recorded" else "on data that the record does not name",
        "" if rows is None else f"({rows:,} images)".replace(",", " "),
        "for an unrecorded number of steps" if steps is None else f"for {steps:,} steps".replace(",", " "),
        f"of {record['batch_size']} images" if "batch_size" in record else "",
    ]
    started = f", started on {record['started'][:10]}" if record.get("started") else ""
    return f"Trained {' '.join(filter(None, parts))}{started}."
