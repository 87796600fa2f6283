"""Pictures at the end of a command. A failure to draw does not lose the results."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any


logger = logging.getLogger(__name__)


def try_to_draw(path: Path, draw: Callable[[Path], Any]) -> bool:
    """
    Draw a picture; if that fails, warn and continue.

    Args:
        path: File to write.
        draw: Writes the picture to a path.

    Returns:
        `bool`: Whether it was drawn.
    """
    try:
        draw(path)
    except Exception as error:
        logger.warning("%s could not be drawn: %s: %s", path, type(error).__name__, error)
        return False
    return True
