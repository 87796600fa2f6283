"""Helpers for segmentation checkpoints: thing classes, identity, device and precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...utils.files import file_sha256


# The 50 of ADE20K's 150 classes that are not things, counted from 0 as in the panoptic benchmark.
# fmt: off
_ADE20K_STUFF = frozenset((
    0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63, 68, 77, 79,
    84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145,
))
# fmt: on
# By name of class 0 and number of classes: the ids of things in the datasets that checkpoints are trained on.
_THINGS = {
    ("person", 133): frozenset(range(80)),  # COCO panoptic
    ("person", 80): frozenset(range(80)),  # COCO instances
    ("wall", 150): frozenset(range(150)) - _ADE20K_STUFF,
    ("road", 19): frozenset(range(11, 19)),  # Cityscapes
}


def find_things(id2label: dict[int, str], thing_classes: str | None) -> frozenset[int]:
    """
    Ids of the classes that are things (have instances).

    Args:
        id2label (`dict[int, str]`): The checkpoint's classes.
        thing_classes (`str`, *optional*): `all`, `none`, or names, ids and ranges of ids separated by `;`, such as
            `person; car; 10-19`. Known by default for checkpoints trained on COCO, ADE20K or Cityscapes.

    Raises:
        `ValueError`: if a class does not exist, or things are neither given nor known.
    """
    if thing_classes is None:
        first = id2label.get(0, "").split(",")[0].strip().lower()
        if (first, len(id2label)) in _THINGS:
            return _THINGS[first, len(id2label)]
        raise ValueError(
            f"thing_classes: expected which of the checkpoint's {len(id2label)} classes are things, since it was not "
            "trained on COCO, ADE20K or Cityscapes; give names or ids separated by ';', 'all' or 'none'. Its "
            f"classes: {', '.join(f'{i} {name}' for i, name in list(id2label.items())[:12])} ..."
        )
    if thing_classes in ("all", "none"):
        return frozenset(id2label) if thing_classes == "all" else frozenset()
    ids = {name.strip().lower(): index for index, name in id2label.items()}
    things: set[int] = set()
    for word in (word.strip().lower() for word in thing_classes.split(";")):
        bounds = word.split("-")
        if word in ids:
            things.add(ids[word])
        elif len(bounds) <= 2 and all(bound.strip().isdigit() for bound in bounds):
            things.update(range(int(bounds[0]), int(bounds[-1]) + 1))
        else:
            raise ValueError(f"thing_classes: expected names or ids of the checkpoint's classes, got {word!r}")
    unknown = sorted(things - set(id2label))
    if unknown:
        raise ValueError(f"thing_classes: expected ids of the checkpoint's classes, got {unknown[:10]}")
    return frozenset(things)


def pick_device(device: str | None, worker: int) -> torch.device:
    """The requested device, else the machine's accelerators in turn, else the CPU."""
    if device is not None:
        return torch.device(device)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, worker % torch.accelerator.device_count())


def pick_dtype(dtype: str | None, device: torch.device) -> torch.dtype:
    """The requested precision, else bfloat16 on accelerators and float32 on the CPU."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return getattr(torch, dtype)


def check_dtype(dtype: str | None) -> None:
    """Raise `ValueError` for an unknown precision."""
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"dtype: expected float32, bfloat16 or float16, got {dtype!r}")


def identify_checkpoint(name_or_path: str, config: Any) -> dict[str, Any]:
    """A checkpoint's commit on the Hub, or checksums of a local folder's weights."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        return {"checkpoint": name_or_path, "revision": getattr(config, "_commit_hash", None)}
    weights = {file.name: file_sha256(file) for file in sorted(folder.glob("*.safetensors"))}
    return {"checkpoint": folder.name, "weights_sha256": weights}


def limit_size(image_size: tuple[int, int], longest_edge: int) -> tuple[int, int]:
    """`(height, width)`, scaled down until the longer side is at most `longest_edge`."""
    factor = min(longest_edge / max(image_size), 1)
    return max(round(image_size[0] * factor), 1), max(round(image_size[1] * factor), 1)
