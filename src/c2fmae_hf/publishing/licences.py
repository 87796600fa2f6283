"""Licences follow weights: what was trained from weights under a licence is published under it, with its text."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from torch import nn


LICENSE_FILE = "LICENSE"


@dataclass(frozen=True)
class Inherited:
    """
    The licence of the weights that a model was made from.

    Args:
        text (`str`): As it lay beside them.
        license (`str`): As the Hub names it; `other` if their card does not say.
        license_name (`str`, *optional*): Short name of an `other` one.
    """

    text: str
    license: str = "other"
    license_name: str | None = None


def own_license() -> str:
    """Text of Apache-2.0, this package's."""
    distribution = metadata.distribution("c2fmae-hf")
    text = distribution.read_text("licenses/LICENSE") or distribution.read_text("LICENSE")
    if text is None:
        raise FileNotFoundError("LICENSE: expected it in the installed package's metadata; pass license_text")
    return text


def inherited_license(model: nn.Module) -> Inherited | None:
    """
    The licence that a model's weights came with: of the folder that it, or a part of it, was loaded from. `None` if
    there was none, or Apache-2.0.
    """
    texts: list[Any] = [getattr(part, "license_text", None) for part in model.modules()]
    text = next(filter(None, texts), None)
    folder = Path(str(getattr(model, "name_or_path", None) or ""))
    if text is None and folder.is_dir() and (folder / LICENSE_FILE).is_file():
        text = (folder / LICENSE_FILE).read_text(encoding="utf-8")
    if not isinstance(text, str) or text.split() == own_license().split():
        return None
    license, name = "other", "as-its-source"
    if (folder / LICENSE_FILE).is_file() and (folder / "README.md").is_file():
        try:
            data = ModelCard.load(folder / "README.md").data
            if data.license != "apache-2.0":  # which the text is not, whatever a later card says
                license, name = data.license or license, data.license_name or name
        except (ValueError, yaml.YAMLError):  # no card of a model
            pass
    return Inherited(text, license, name if license == "other" else None)


def note_license(model: Any, name: str | os.PathLike, subfolder: str = "") -> None:
    """Keep the text of the licence, if the folder that a model was loaded from has one."""
    path = Path(name, subfolder, LICENSE_FILE)
    if path.is_file():
        model.license_text = path.read_text(encoding="utf-8")


def carry_license(model: nn.Module, folder: str | os.PathLike) -> None:
    """Write the licence that a model's weights came with beside them, if there is one and none is there."""
    inherited, path = inherited_license(model), Path(folder) / LICENSE_FILE
    if inherited is not None and path.parent.is_dir() and not path.exists():
        path.write_text(inherited.text, encoding="utf-8")


__all__ = ["Inherited", "carry_license", "inherited_license", "note_license"]
