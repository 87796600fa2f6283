"""Compact storage, for result files, of which photographs an encoder classified correctly."""

from __future__ import annotations

from typing import TypedDict

import numpy as np


class Answers(TypedDict):
    """One bit per photograph, in order, set if it was classified correctly; hexadecimal, first bit highest."""

    photographs: int
    right: str


def pack_answers(right: np.ndarray) -> Answers:
    return {"photographs": len(right), "right": np.packbits(right).tobytes().hex()}


def unpack_answers(answers: Answers) -> np.ndarray:
    """Whether each photograph was classified correctly, `(photographs,)` bool."""
    packed = np.frombuffer(bytes.fromhex(answers["right"]), dtype=np.uint8)
    return np.unpackbits(packed, count=answers["photographs"]).astype(bool)
