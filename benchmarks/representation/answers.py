"""Which photographs an encoder classed rightly, as the files of results hold it."""

from __future__ import annotations

from typing import TypedDict

import numpy as np


class Answers(TypedDict):
    """Which photographs were classed rightly, in their order: a bit each, the first highest, in hexadecimal digits."""

    photographs: int
    right: str


def pack_answers(right: np.ndarray) -> Answers:
    return {"photographs": len(right), "right": np.packbits(right).tobytes().hex()}


def unpack_answers(answers: Answers) -> np.ndarray:
    """`(photographs,)` bool."""
    packed = np.frombuffer(bytes.fromhex(answers["right"]), dtype=np.uint8)
    return np.unpackbits(packed, count=answers["photographs"]).astype(bool)
