"""Pictures at the end of a command. One that fails must not cost the command's results."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any


logger = logging.getLogger(__name__)


def try_to_draw(path: Path, draw: Callable[[Path], Any]) -> bool:
    """
    Draw a picture. One that cannot be drawn is a warning: the command goes on with what it was run for.

    Args:
        path: Of the picture.
        draw: Draws it.

    Returns:
        `bool`: Whether it was drawn.
    """
    try:
        draw(path)
    except Exception as error:
        logger.warning("%s could not be drawn: %s: %s", path, type(error).__name__, error)
        return False
    return True
