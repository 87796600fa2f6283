"""Joint transforms: image and maps stay aligned, ids stay ids, randomness is the sample's own."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torchvision.transforms import v2

from c2fmae_hf.data import rows as data_rows
from c2fmae_hf.data.dataset import C2FMAEDataset
from c2fmae_hf.data.sampling import SampleKey
from c2fmae_hf.data.transforms import JointTransform, evaluation_transform, training_transform
from c2fmae_hf.images import expand_label_map, open_photograph
from c2fmae_hf.targets import reduce_label_map


def blocks(height: int = 60, width: int = 90) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """Blocks of 15 pixels; the image's red is 20 times the block's id, the maps hold the id and 300 more."""
    y, x = np.mgrid[:height, :width]
    ids = (y // 15) * 3 % 4 + (x // 15) * 2 % 7
    image = np.stack([ids * 20, np.zeros_like(ids), np.full_like(ids, 255)], axis=-1).astype(np.uint8)
    return Image.fromarray(image), ids.astype(np.int32), (ids + 300).astype(np.int32)


IDENTITY = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.mark.parametrize("make", [training_transform, evaluation_transform])
def test_maps_as_they_are_stored_give_what_expanded_ones_give(make):
    generator = np.random.default_rng(0)
    for seed, (height, width, stride) in enumerate([(61, 90, 2), (59, 95, 3), (70, 64, 1), (63, 97, 7)] * 4):
        image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        shape = (-(-height // stride), -(-width // stride))
        stored = [generator.integers(-1, 9, shape, dtype=np.int32) for _ in range(2)]
        expanded = [expand_label_map(ids, (height, width)) for ids in stored]
        transform = make((32, 48), label_stride=4)
        found, expected = (transform(image, *maps, seed) for maps in (stored, expanded))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match="expected the image's size"):
        transform(image, stored[0][:-1], stored[1], 0)


@pytest.mark.parametrize("seed", range(8))
def test_image_and_maps_get_the_same_crop_and_flip(seed):
    image, semantic, instance = blocks()
    sample = training_transform((64, 64), scale=(0.3, 1.0), label_stride=1, **IDENTITY)(
        image, semantic, instance, seed
    )
    assert sample["pixel_values"].shape == (3, 64, 64)
    from_pixels = (sample["pixel_values"][0] * 255 / 20).round().long()
    # Bicubic and nearest differ at the edges of blocks only.
    assert (from_pixels == sample["semantic"]).float().mean() > 0.75
    assert torch.equal(sample["semantic"] + 300, sample["instance"])


def test_crops_differ_in_place_scale_and_side():
    image, semantic, instance = blocks()
    transform = training_transform((32, 32))
    crops = [transform(image, semantic, instance, seed)["semantic"] for seed in range(50)]
    assert len({crop.numpy().tobytes() for crop in crops}) > 40
    column = np.tile(np.arange(90, dtype=np.int32), (60, 1))
    directions = [transform(image, column, None, seed)["semantic"][0].diff().sign().unique() for seed in range(50)]
    flipped = sum(int(-1 in d) for d in directions)
    assert 10 < flipped < 40


def test_ids_stay_ids():
    """Nearest only: no id is invented, however large ids are."""
    image, semantic, instance = blocks()
    instance = instance * 187 + 1  # up to 57,000
    instance[:10] = -100
    for transform in (training_transform((48, 48)), evaluation_transform((48, 48))):
        for seed in range(10):
            sample = transform(image, semantic, instance, seed)
            assert set(sample["semantic"].unique().tolist()) <= set(np.unique(semantic).tolist())
            assert set(sample["instance"].unique().tolist()) <= set(np.unique(instance).tolist())


def test_randomness_is_the_sample_s_own():
    arguments = blocks()
    transform = training_transform((32, 32))
    before = torch.random.get_rng_state()
    first = transform(*arguments, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(100)
    again = transform(*arguments, seed=5)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pixel_values"], transform(*arguments, seed=6)["pixel_values"])


def test_normalisation_and_the_label_grid():
    image, semantic, instance = blocks()
    sample = evaluation_transform((56, 56))(image, semantic, instance, 0)
    blue = sample["pixel_values"][2]
    assert torch.allclose(blue, torch.full_like(blue, (1 - 0.406) / 0.225), atol=1e-5)
    assert sample["semantic"].shape == sample["instance"].shape == (14, 14)
    assert sample["semantic"].dtype == torch.int64
    full = evaluation_transform((56, 56), label_stride=1)(image, semantic, instance, 0)
    assert torch.equal(full["semantic"][2::4, 2::4], sample["semantic"])


def test_evaluation_is_central_and_fixed():
    image, semantic, instance = blocks(60, 100)
    semantic = np.tile(np.arange(100, dtype=np.int32), (60, 1))
    transform = evaluation_transform((60, 60), crop_pct=1.0, label_stride=1)
    first, second = (transform(image, semantic, instance, seed) for seed in (0, 1))
    assert torch.equal(first["pixel_values"], second["pixel_values"])
    assert first["semantic"][0].tolist() == list(range(20, 80))


def test_missing_maps():
    image, semantic, _ = blocks()
    sample = training_transform((32, 64))(image, semantic, None, 0)
    assert sample["semantic"].shape == (8, 16)
    assert torch.equal(sample["instance"], torch.full((8, 16), -100))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 2), (7, 7)])
@pytest.mark.parametrize("make", [training_transform, evaluation_transform])
def test_odd_sizes(size, make):
    height, width = size
    image = Image.fromarray(np.full((height, width, 3), 128, dtype=np.uint8))
    semantic = np.ones((height, width), dtype=np.int32)
    sample = make((32, 48))(image, semantic, semantic, 0)
    assert sample["pixel_values"].shape == (3, 32, 48)
    assert sample["pixel_values"].isfinite().all()
    assert set(sample["semantic"].unique().tolist()) <= {0, 1}


@pytest.mark.parametrize("seed", range(12))
def test_maps_cropped_to_the_grid_are_those_cropped_to_pixels_and_reduced(seed):
    image, _, instance = blocks(97, 131)
    semantic = np.arange(97 * 131, dtype=np.int32).reshape(97, 131)  # every pixel its own id
    size, scale = (64, 48), (0.1, 1.0)
    plain = v2.Compose([v2.RandomResizedCrop(size, scale), v2.RandomHorizontalFlip()])
    pixels = JointTransform(plain, size, label_stride=1)(image, semantic, instance, seed)["semantic"]
    is_flipped = pixels[0, 0] > pixels[0, -1]
    for stride in (2, 4, 8):
        sample = training_transform(size, scale=scale, label_stride=stride)(image, semantic, instance, seed)
        # Flipped, it is the other one of the two pixels that are nearest to a cell's centre.
        expected = reduce_label_map(pixels.flip(1), stride).flip(1) if is_flipped else reduce_label_map(pixels, stride)
        assert torch.equal(sample["semantic"], expected)


def test_accelerators_are_not_asked_to_be_seeded():
    """In a process that has not started CUDA every such request is kept, one a sample."""
    before = len(torch.cuda._queued_calls)
    for seed in range(5):
        training_transform((32, 32))(*blocks(), seed=seed)
    assert len(torch.cuda._queued_calls) == before


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("image_size", [(97, 131), (40, 30), (300, 41)])
def test_pixels_are_those_of_torchvision_s_own_pipeline(seed, image_size):
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*image_size, 3), dtype=np.uint8))
    size, statistics = (48, 64), {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
    crop = v2.RandomResizedCrop(size, (0.1, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    theirs = v2.Compose([v2.PILToTensor(), crop, v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        scaled = theirs(image)
    exact = training_transform(size, scale=(0.1, 1.0), **IDENTITY)(image, None, None, seed)["pixel_values"]
    assert torch.equal((exact * 255).round(), (scaled * 255).round())
    pixels = training_transform(size, scale=(0.1, 1.0), **statistics)(image, None, None, seed)["pixel_values"]
    torch.testing.assert_close(pixels, v2.functional.normalize(scaled, **statistics), atol=2e-6, rtol=0)


def large_row(orientation: int, size: tuple[int, int]) -> dict:
    """A smooth JPEG as a camera stores it, and a map of it as it is displayed."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    shown = np.stack([255 * x, 255 * y, 127 * (1 + np.sin(9 * x * y))], axis=-1).astype(np.uint8)
    ids = (8 * y).astype(np.uint8) * 8 + (8 * x).astype(np.uint8)
    stored, exif = Image.fromarray(shown), Image.Exif()
    if orientation != 1:  # what turning it back makes of the stored pixels
        back = {6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180, 5: Image.Transpose.TRANSPOSE}
        stored = stored.transpose(back[orientation])
        exif[ExifTags.Base.Orientation] = orientation
    files = [io.BytesIO() for _ in range(2)]
    stored.save(files[0], "JPEG", quality=95, exif=exif)
    Image.fromarray(ids).save(files[1], "PNG")
    return {"image": files[0].getvalue(), "semantic": files[1].getvalue(), "instance": None}


@pytest.mark.parametrize(
    ("orientation", "width", "height", "decoded"),
    [(1, 1203, 901, 301), (3, 1203, 901, 1203), (3, 1204, 900, 301), (5, 1204, 900, 301), (6, 1204, 900, 301)],
)
def test_a_large_jpeg_is_decoded_smaller_and_gives_the_same_sample(orientation, width, height, decoded, monkeypatch):
    rows, opened = [large_row(orientation, (width, height))], []
    transform = training_transform((32, 48))
    monkeypatch.setattr(
        data_rows, "open_photograph", lambda *args: opened.append(open_photograph(*args)) or opened[-1]
    )
    dataset = C2FMAEDataset(rows, transform)
    fast = [dataset[SampleKey(0, epoch, 0.0)] for epoch in range(6)]
    assert all(max(image.size) <= decoded and size == (height, width) for image, size in opened)
    monkeypatch.setattr(transform, "reduction", lambda *args: 1)
    for epoch, sample in enumerate(fast):
        exact = dataset[SampleKey(0, epoch, 0.0)]
        assert opened[-1][0].size == (width, height)
        assert torch.equal(sample["semantic"], exact["semantic"])
        levels = 58 * (sample["pixel_values"] - exact["pixel_values"])  # of 255
        assert levels.abs().max() < 4
        assert levels[:2].mean(dim=(1, 2)).abs().max() < 0.2  # a shift by 1 of 1203 pixels is 0.2 levels


def test_what_is_decoded_smaller():
    transform = training_transform((32, 32), scale=(1.0, 1.0), ratio=(1.0, 1.0))
    for side, divisor in ((127, 1), (128, 2), (255, 2), (256, 4), (511, 4), (512, 8), (9000, 8)):
        assert transform.reduction((side, side), seed=0) == divisor
    row = large_row(1, (1203, 901))
    given = Image.open(io.BytesIO(row["image"]))
    assert open_photograph(given, lambda size: 8)[0].size == (1203, 901)  # not ours to change
    png = io.BytesIO()
    given.save(png, "PNG")
    assert open_photograph(png.getvalue(), lambda size: 8)[0].size == (1203, 901)
    assert evaluation_transform((32, 32)).reduction((9000, 9000), seed=0) == 1
