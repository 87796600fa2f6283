"""Labels without models."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from c2fmae_hf.labelling.labellers.classical import ClassicalLabeller
from labelling_utils import photograph


PHOTOS = [photograph(seed, 96, 72) for seed in range(8)]


@pytest.mark.parametrize("regions", ["felzenszwalb", "slic"])
def test_regions_become_classes_and_instances(regions):
    labeller = ClassicalLabeller(6, regions).fit(PHOTOS)
    used = set()
    for photo in PHOTOS:
        maps = labeller.label(photo)
        assert maps.semantic.shape == maps.instance.shape == (72, 96)
        used |= set(np.unique(maps.semantic))
        shares = np.bincount(maps.instance.ravel())[1:] / maps.instance.size
        shares = shares[shares > 0]
        assert len(shares) > 0
        assert shares.min() >= 0.002
        assert shares.max() <= 0.12
        for name in np.unique(maps.instance[maps.instance > 0]):
            assert len(np.unique(maps.semantic[maps.instance == name])) == 1
    assert used <= set(range(6))
    assert len(used) >= 4


def test_a_class_means_the_same_in_every_photograph():
    # Two photographs with a red, a green and a blue third, in different positions.
    red, green, blue = (
        np.full((60, 30, 3), colour, np.uint8) for colour in ((200, 30, 30), (30, 180, 30), (30, 30, 200))
    )
    first = Image.fromarray(np.concatenate([red, green, blue], axis=1))
    second = Image.fromarray(np.concatenate([blue, red, green], axis=1))
    labeller = ClassicalLabeller(3).fit([first, second])
    a, b = labeller.label(first).semantic, labeller.label(second).semantic
    assert a[30, 15] == b[30, 45]
    assert a[30, 45] == b[30, 75]
    assert a[30, 75] == b[30, 15]
    assert len(np.unique(a)) == 3


def test_a_fit_is_saved_and_reused(tmp_path):
    labeller = ClassicalLabeller(6, fit_images=4)
    labeller.prepare(iter(PHOTOS), tmp_path / "labeller")
    again = ClassicalLabeller(6, fit_images=4)
    again.prepare(iter(()), tmp_path / "labeller")
    assert all((labeller.fitted[name] == again.fitted[name]).all() for name in labeller.fitted)
    # Other settings are fitted anew.
    other = ClassicalLabeller(5, fit_images=4)
    other.prepare(iter(PHOTOS), tmp_path / "labeller")
    assert len(other.fitted["centres"]) == 5
    fresh = ClassicalLabeller(6, fit_images=4).fit(PHOTOS[:4])
    assert all((labeller.fitted[name] == fresh.fitted[name]).all() for name in labeller.fitted)


def test_large_photographs_are_segmented_small():
    labeller = ClassicalLabeller(4, working_size=48).fit(PHOTOS)
    assert labeller.label(photograph(0, 200, 100)).semantic.shape == (48, 96)


def test_a_photograph_of_one_colour():
    labeller = ClassicalLabeller(4).fit(PHOTOS)
    maps = labeller.label(Image.new("RGB", (32, 32), "white"))
    assert len(np.unique(maps.semantic)) == 1
    assert not maps.instance.any()


def test_errors():
    with pytest.raises(ValueError, match="regions: expected 'felzenszwalb' or 'slic', got 'quick'"):
        ClassicalLabeller(regions="quick")
    with pytest.raises(ValueError, match="num_classes: expected at least 1"):
        ClassicalLabeller(0)
    with pytest.raises(
        ValueError, match=r"num_classes: expected at most as many as the sample's regions \(1\), got 4"
    ):
        ClassicalLabeller(4).fit([Image.new("RGB", (32, 32))])
    with pytest.raises(ValueError, match="expected some that can be decoded"):
        ClassicalLabeller(4).fit([])
    with pytest.raises(RuntimeError, match="has not been fitted"):
        ClassicalLabeller().label(PHOTOS[0])
