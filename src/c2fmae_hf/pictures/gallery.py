"""Write pictures and captions as one HTML file without scripts that loads nothing else."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ..images import open_image
from ..utils.files import replace_file
from .captions import Picture


TEMPLATE = Path(__file__).with_name("gallery_template.html")


def write_gallery(
    path: str | os.PathLike,
    title: str,
    sections: Mapping[str, Sequence[Picture]],
    command: str,
    notes: Sequence[str] = (),
) -> None:
    """
    Write the page. All texts are escaped.

    Args:
        path: Where to write.
        title (`str`): Title of the page.
        sections: Pictures by heading; the PNGs are read from their files.
        command (`str`): The command that made them, shown at the top and with every picture.
        notes: Paragraphs at the top.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    shown = [(heading, [_entry(picture) for picture in pictures]) for heading, pictures in sections.items()]
    page = template.render(title=title, notes=notes, command=command, sections=shown, version=version("c2fmae-hf"))
    with replace_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _entry(picture: Picture) -> dict[str, Any]:
    width, height = open_image(str(picture.path)).size
    entries = picture.facts.entries()
    return {
        "title": picture.title,
        "caption": picture.caption,
        "image": entries["image"],
        "entries": {**entries, "file": picture.path.name},
        "source": f"data:image/png;base64,{base64.b64encode(picture.path.read_bytes()).decode('ascii')}",
        "width": width,
        "height": height,
    }
