"""
One photograph, one mask, and what a pre-trained model predicts: what the page shows, without Gradio, for several
visitors.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
    Which weights these are, as far as their folder says.

    Args:
        folder (`str`): Its last two names.
        architecture (`str`): In words.
        training (`str`): Steps and data, of the run whose record has these weights' fingerprint; or why they are not
            known.
    """

    folder: str
    architecture: str
    training: str


@dataclass(frozen=True)
class Photograph:
    """
    What the model is shown.

    Args:
        photo ([`~c2fmae_hf.pictures.views.Photo`]): Prepared for the model; its label maps are the model's own, since
            a photograph has none.
        notes: Sentences about what was done to the file.
    """

    photo: Photo
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Pictures:
    """
    Pictures of one masked photograph.

    Args:
        panels: `(height, width, 3)` uint8 by name, a pixel for each pixel or label cell: `photograph`, `masked`, and
            the predicted `semantic`, `instance` and `image`; visible patches are light grey in the maps. `regions` is
            what the mask follows, unless it is random.
        classes: Name, colour `(3,)` uint8 and share of the masked area of each predicted class, the largest first;
            then, with a share of 0, classes of the `regions` that were not predicted.
        strategy (`str`): How it was masked: at random if the label maps are empty.
        num_masked, num_patches (`int`).
        num_instances (`int`, *optional*): Predicted instances.
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
        weights: `(rows, columns)` float32; with `class_token` they add up to 1.
        class_token (`float`).
    """

    weights: np.ndarray
    class_token: float


class Playground:
    """
    A pre-trained model for several threads, of which one computes at a time.

    Args:
        model ([`C2FMAEForPreTraining`]): Put into evaluation mode.
    """

    def __init__(self, model: C2FMAEForPreTraining) -> None:
        self.model, self.config = model, model.config
        self.viewed = view(model, "the model")
        # Also because asking for attention changes the model's attention during the call.
        self._lock = threading.Lock()

    @classmethod
    def from_folder(cls, folder: str | os.PathLike) -> Playground:
        """
        Raises:
            `FileNotFoundError`: if there is no such folder, or no `config.json` or safetensors in it.
            `ValueError`: if it holds another model than `C2FMAEForPreTraining`, or not all of its weights.
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
        """Patches per column and per row of a photograph."""
        return self.config.grid_size

    @property
    def strategies(self) -> list[str]:
        """The masking strategies for which this model can predict the label maps."""
        return [name for name in MASKING_STRATEGIES if name == "random" or name in self.config.granularities]

    def open(self, value: Any) -> Photograph:
        """
        Args:
            value: A file, its content or a PIL image, as for [`~c2fmae_hf.pictures.photographs.open_photograph`].

        Raises:
            `ValueError`: if it is not a photograph that can be shown; the message is for the one who sent it.
        """
        image, notes = open_photograph(value)
        photo = prepare_photo("photograph", image, self.config)
        with self._lock:
            return Photograph(with_predicted_maps(self.viewed, photo), tuple(notes))

    def predict(self, photograph: Photograph, strategy: str, mask_ratio: float, seed: int) -> Pictures:
        """
        Args:
            photograph ([`Photograph`]).
            strategy (`str`): One of [`Playground.strategies`].
            mask_ratio (`float`): In (0, 1); at least one patch is masked and one stays visible.
            seed (`int`): Of the mask, in [0, 2**31).

        Raises:
            `ValueError`: for another strategy or ratio.
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
        What a patch of the unmasked photograph attends to.

        Args:
            photograph ([`Photograph`]).
            row, column (`int`): The patch, from 0.
            layer (`int`): Block of the encoder, from 0.
            head (`int`, *optional*): From 0; by default the mean of all.

        Raises:
            `IndexError`: for one that does not exist.
        """
        with self._lock:
            attention = photo_attention(self.viewed, photograph.photo)[layer]
        heads = attention.view(len(attention), *self.grid_size, *self.grid_size)[:, row, column]
        weights = heads.mean(dim=0) if head is None else heads[head]
        return PatchAttention(weights.numpy(), max(1 - float(weights.sum()), 0.0))

    def draw_photograph(self, photograph: Photograph, row: int, column: int) -> np.ndarray:
        """What the model is shown, with a frame around one patch: `(k * height, k * width, 3)` uint8."""
        return self._framed(photo_pixels(self.viewed, photograph.photo), row, column)

    def draw_attention(self, photograph: Photograph, attention: PatchAttention, row: int, column: int) -> np.ndarray:
        """
        The square root of attention over the photograph in grey, from dark blue (none) to yellow (the most of any
        patch), which readers of all colour vision and of grey prints can order; a frame around the patch that attends.
        As [`draw_photograph`].
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
        Args:
            x, y (`float`): A place in a picture of [`draw_photograph`].
            size (`tuple[int, int]`): `(height, width)` of that picture.

        Returns:
            Row and column of the patch there, from 0; the nearest, outside the picture.
        """
        rows, columns = self.grid_size
        row, column = int(y * rows / size[0]), int(x * columns / size[1])
        return min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)


def facts_of_weights(folder: str | os.PathLike, model: C2FMAEForPreTraining) -> WeightsFacts:
    """
    What a folder and its records say: records in the folder, beside it (where `c2fmae pretrain` leaves them) and in
    its `runs`. A record counts if it holds the weights' fingerprint.
    """
    folder = Path(folder).resolve()
    config = model.config
    height, width = config.image_height_width
    number = sum(parameter.numel() for parameter in model.parameters())
    stages = ", ".join(name for name in GRANULARITIES if name in config.granularities)
    architecture = (
        f"{type(model).__name__}, {number / 1e6:.1f} million parameters: an encoder of {config.num_hidden_layers} "
        f"blocks, width {config.hidden_size}, patches of {config.patch_size} pixels, for photographs of {height} x "
        f"{width} pixels; a {config.decoder_type} decoder of {stages}"
    )
    candidates = [folder, folder.parent, *sorted(path for path in folder.glob("runs/*") if path.is_dir())]
    training = "There is no record of how these weights were trained."
    for candidate in candidates:
        if not (candidate / RUN_FILE).is_file():
            continue
        try:
            run = run_of_weights(load_run(candidate, "training"), model)
        except ValueError:  # not JSON
            run = None
        if run is not None and run.role == "made":
            training = _training_of(run)
            break
        training = (
            "There is no record of how these weights were trained. The records beside them are of other weights."
        )
    return WeightsFacts("/".join(folder.parts[-2:]).lstrip("/"), architecture, training)


def _training_of(run: Run) -> str:
    record = run.record
    states = [content for file, content in run.files.items() if Path(file).name == STATE_FILE]
    steps = states[0].get("global_step") if states else None
    rows = (record.get("rows") or {}).get("train")
    parts = [
        "a number of steps that is not recorded" if steps is None else f"{steps:,} steps".replace(",", " "),
        f"of {record['batch_size']} images" if "batch_size" in record else "",
        f"on the dataset “{data_of(run)}”",
        "" if rows is None else f"({rows:,} training images)".replace(",", " "),
    ]
    begun = f", begun on {record['started'][:10]}" if record.get("started") else ""
    return f"Trained for {' '.join(filter(None, parts))}{begun}."
