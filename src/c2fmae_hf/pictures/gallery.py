"""Pictures and their captions as one HTML file that needs nothing else: no other file, no script, no network."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from ..utils.files import replace_file
from .captions import Picture


TEMPLATE = Path(__file__).with_name("gallery_template.html")
# By which a page of ours is known.
GENERATOR = '<meta name="generator" content="c2fmae-hf">'


@dataclass
class Section:
    """A heading and what is below it."""

    title: str
    pictures: list[Picture] = field(default_factory=list)


def write_gallery(
    path: str | os.PathLike, title: str, sections: Sequence[Section], command: str, notes: Sequence[str] = ()
) -> None:
    """
    Write the page. Sections without pictures are left out; what comes from outside is escaped.

    Args:
        path: Where to write.
        title (`str`): Of the page.
        sections: In their order; their pictures are read from their files, which are PNGs.
        command (`str`): What made them; shown once above, and with every picture.
        notes: Paragraphs above all.

    Raises:
        `FileNotFoundError`: if a picture is not there.
    """
    try:
        package_version = version("c2fmae-hf")
    except PackageNotFoundError:  # run from a checkout
        package_version = ""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    shown = [
        {"title": section.title, "pictures": [_entry(picture) for picture in section.pictures]}
        for section in sections
        if section.pictures
    ]
    page = template.render(title=title, notes=notes, command=command, sections=shown, version=package_version)
    with replace_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _entry(picture: Picture) -> dict[str, Any]:
    content = picture.path.read_bytes()
    with Image.open(picture.path) as image:
        width, height = image.size
    return {
        "title": picture.title,
        "caption": picture.caption,
        "facts": list(picture.facts.items()),
        "image": picture.facts.get("image", ""),
        "file": picture.path.name,
        "source": f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}",
        "width": width,
        "height": height,
    }


__all__ = ["GENERATOR", "Section", "write_gallery"]
