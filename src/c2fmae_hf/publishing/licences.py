"""Licences follow weights: a model trained from others' weights is published under their licence, with its text."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from torch import nn
from transformers.utils import cached_file


logger = logging.getLogger(__name__)

LICENSE_FILE = "LICENSE"
# Names of files with a licence's text, in order of preference.
_NAMES = (LICENSE_FILE, "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "LICENCE.md", "COPYING")
_APACHE = "apache-2.0"
# The appendix after this line differs between users of the licence.
_END_OF_APACHE = "END OF TERMS AND CONDITIONS"
_NO_TEXT = "The model card of the weights that these were made from names their licence"


@dataclass(frozen=True)
class Inherited:
    """
    The licence of the weights that a model started from.

    Args:
        text (`str`): Its text, from the folder of the weights.
        license (`str`): Its name on the Hub; `other` if their card does not name it.
        license_name (`str`, *optional*): Short name of an `other` licence.
        is_named (`bool`): Whether their card names it.
        has_text (`bool`): Whether `text` is the licence's; otherwise it is a sentence with the licence's name.
    """

    text: str
    license: str = "other"
    license_name: str | None = None
    is_named: bool = True
    has_text: bool = True


def own_license() -> str:
    """Text of this package's licence, Apache-2.0."""
    distribution = metadata.distribution("c2fmae-hf")
    text = distribution.read_text("licenses/LICENSE") or distribution.read_text("LICENSE")
    if text is None:
        raise FileNotFoundError("LICENSE: expected it in the installed package's metadata; pass license_text")
    return text


def is_apache(text: str) -> bool:
    """Whether a text is that of Apache-2.0, whatever its appendix says."""
    terms = [one.partition(_END_OF_APACHE)[0].split() for one in (text, own_license())]
    return terms[0] == terms[1]


def read_license(folder: Path) -> str | None:
    """Text of the licence in a folder; `None` if it is missing or empty."""
    for name in _NAMES:
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            for encoding in ("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8", "latin-1"):
                try:
                    return content.decode(encoding).strip() and content.decode(encoding)
                except UnicodeDecodeError:
                    continue
    return None


def read_card(folder: Path) -> tuple[str | None, str | None]:
    """Licence and short name of an `other` licence on the card in a folder; `None` where the card lacks them."""
    try:
        data = ModelCard.load(folder / "README.md").data
    except (OSError, ValueError, yaml.YAMLError):  # no card of a model
        return None, None
    names = [value if isinstance(value, str) and value else None for value in (data.license, data.license_name)]
    return names[0], names[1]


def inherited_license(model: nn.Module) -> Inherited | None:
    """
    Licence of the folder that a model, or a part of it, was loaded from. `None` if it has none, or Apache-2.0.
    """
    texts: list[Any] = [getattr(part, "license_text", None) for part in model.modules()]
    text = next(filter(None, texts), None)
    folder = Path(str(getattr(model, "license_folder", None) or getattr(model, "name_or_path", None) or ""))
    is_there = folder.is_dir() and folder != Path()
    if text is None and is_there:
        text = license_of(folder)
    if not isinstance(text, str) or is_apache(text):
        return None
    license, name = read_card(folder) if is_there and license_of(folder) == text else (None, None)
    if license in (None, _APACHE):  # the text is not Apache-2.0, even if a later card says so
        return Inherited(text, "other", "as-its-source", is_named=False)
    return Inherited(text, str(license), name if license == "other" else None, has_text=not text.startswith(_NO_TEXT))


def license_of(folder: Path) -> str | None:
    """
    Text of the licence in a folder, or a sentence with its name if only the card names one. `None` if there is
    neither, or only a card that names Apache-2.0.
    """
    text = read_license(folder)
    if text:
        return text
    license, name = read_card(folder)
    if license in (None, _APACHE):
        return None
    return f"{_NO_TEXT}: {name or license}.\n"


def note_license(model: Any, name: str | os.PathLike, subfolder: str = "", **options: Any) -> None:
    """
    Keep the licence of the folder or repository that a model was loaded from, if it has one, as `model.license_text`.

    Args:
        model: The model; its configuration knows the commit.
        name: The folder, or the repository's name on the Hub.
        subfolder (`str`): Folder of the weights in it.
        options: How the weights were loaded, such as `revision` and `cache_dir`.
    """
    folder: Path | None = Path(name, subfolder)
    if not Path(name).exists():
        commit = getattr(model.config, "_commit_hash", None)
        folder = _cached_license(str(name), subfolder, _commit_hash=commit, **options)
    if folder is not None and folder.is_dir():
        model.license_folder, model.license_text = str(folder), license_of(folder)


def _cached_license(name: str, subfolder: str, **options: Any) -> Path | None:
    """The cached folder of a repository's card and licence; `None` if it has neither, or cannot be reached."""
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("gated_repo", "missing_entries", "connection_errors")}
    for place in dict.fromkeys((subfolder, "")):
        files = ("README.md", *_NAMES[:3])
        try:
            found = [cached_file(name, file, subfolder=place, **quiet, **options) for file in files]
        except OSError:  # no name on the Hub
            return None
        if any(found):
            return Path(next(filter(None, found))).parent
    return None


def carry_license(model: nn.Module, folder: str | os.PathLike) -> None:
    """Write the inherited licence of a model, if any, into the folder that it is saved to, replacing another one."""
    inherited, path = inherited_license(model), Path(folder) / LICENSE_FILE
    if inherited is None or not path.parent.is_dir():
        return
    if path.exists() and read_license(path.parent) != inherited.text:
        logger.warning("%s is replaced by the licence of the weights that are saved beside it.", path)
    path.write_text(inherited.text, encoding="utf-8")


__all__ = ["Inherited", "carry_license", "inherited_license", "is_apache", "note_license"]
