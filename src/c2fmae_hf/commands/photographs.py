"""For `c2fmae pretrain`: the number of steps, and labels for photographs without label maps."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from ..data.tars import find_tars, hold_maps
from ..labelling.job import label_images
from ..labelling.labellers.classical import ClassicalLabeller
from ..labelling.sources.base import ImageSource
from ..labelling.sources.folder import FolderSource
from ..labelling.sources.open import open_source
from ..labelling.sources.tar import TarSource


logger = logging.getLogger(__name__)

RECIPE = "photographs"
#: Passes over the photographs, and the smallest and largest number of images in a run. With very many photographs,
#: `FEWEST_PASSES` overrides `MOST_IMAGES`. Our choice: minutes for a few photographs, an hour for thousands.
PASSES = 100
FEWEST_IMAGES = 6_400
MOST_IMAGES = 1_000_000
FEWEST_PASSES = 10


def open_photographs(name: str | None, split: str | None = None) -> ImageSource | None:
    """The photographs in a folder, or in tar files without label maps; `None` if the name means a dataset."""
    if name is None:
        return None
    folder, tars = Path(name).expanduser(), find_tars(name)
    if (not tars and not folder.is_dir()) or hold_maps(tars):
        return None
    if (folder / "run.json").is_file() or (folder / "trainer_state.json").is_file():
        raise ValueError(
            f"{name}: expected photographs or a dataset, got the folder of a run; is {folder / 'dataset'} meant?"
        )
    try:
        source = open_source(name, split)
    except (FileNotFoundError, ValueError):  # no images; `load_splits` says what is wrong with it
        return None
    return source if isinstance(source, (FolderSource, TarSource)) else None


def choose_steps(num_photographs: int, images_per_step: int) -> int:
    """Number of steps for this many photographs."""
    most = max(MOST_IMAGES, FEWEST_PASSES * num_photographs)
    return math.ceil(min(max(PASSES * num_photographs, FEWEST_IMAGES), most) / images_per_step)


def photographs_labeller(source: ImageSource, name: str) -> ClassicalLabeller:
    """
    The labeller of photographs without label maps.

    Raises:
        `ImportError`: if a package for labelling is missing.
        `ValueError`: if there are fewer than two photographs.
    """
    number = source.num_records(1000)
    if number is not None and number < 2:
        raise ValueError(f"{name}: expected at least 2 photographs, got {number}")
    # A few photographs have too few regions for 32 classes.
    return ClassicalLabeller(32 if number is None else min(32, max(2, number // 2)))


def label_photographs(source: ImageSource, name: str, folder: Path) -> None:
    """
    Label with [`photographs_labeller`], or continue an interrupted job.

    Args:
        source: The photographs.
        name (`str`): The user's name for them.
        folder: The dataset's folder.
    """
    labeller = photographs_labeller(source, name)
    number = source.num_records(1000)
    logger.warning(
        "%s: %s photographs without label maps. They are labelled into %s by colour and texture, which does not "
        "recognise objects. For better labels, stop and label them into another folder with: c2fmae label %s FOLDER "
        "--labeller panoptic --checkpoint facebook/mask2former-swin-large-coco-panoptic",
        *(name, "an unknown number of" if number is None else number, folder, name),
    )
    summary: Any = label_images(source, labeller, folder)
    if summary.rejects:
        logger.warning("%d photographs could not be used: see %s.", summary.rejects, folder / "rejects.jsonl")
