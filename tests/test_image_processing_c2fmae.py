"""Image processor: every kind of input, maps beside images, and outputs back to what people look at."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from c2fmae_hf import C2FMAEConfig, C2FMAEForPreTrainingOutput, C2FMAEImageProcessor, MaskRCNNImageProcessor
from c2fmae_hf.targets import instance_labels_from_map, patchify


@pytest.fixture
def processor(config) -> C2FMAEImageProcessor:
    return C2FMAEImageProcessor.from_config(config)


def photo(height: int = 50, width: int = 70, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def test_defaults():
    batch = C2FMAEImageProcessor()(photo(300, 400), return_tensors="pt")
    assert set(batch) == {"pixel_values"}
    assert batch["pixel_values"].shape == (1, 3, 224, 224)
    assert batch["pixel_values"].dtype == torch.float32


@pytest.mark.parametrize("size", [(90, 64), (101, 75), (64, 91)])
def test_pixels_are_those_of_torchvision(processor, size):
    """Also where the crop's margin is odd."""
    from c2fmae_hf.data.transforms import evaluation_transform

    image = photo(*size)
    expected = evaluation_transform((32, 32))(image, None, None, 0)["pixel_values"]
    assert torch.allclose(processor(image, return_tensors="pt")["pixel_values"][0], expected, atol=1e-5)


def test_every_kind_of_image_comes_out_alike(processor):
    rgb = photo()
    array = np.asarray(rgb)
    expected = processor(rgb, return_tensors="pt")["pixel_values"]
    opaque = Image.merge("RGBA", [*rgb.split(), Image.new("L", rgb.size, 255)])
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.transpose(Image.Transpose.ROTATE_90).save(turned, "PNG", exif=exif)
    for image in (
        array,
        array.transpose(2, 0, 1),
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        array.astype(np.uint16) * 257,
        torch.from_numpy(array.astype(np.uint16) * 257).permute(2, 0, 1),
        opaque,
        Image.open(turned),
    ):
        got = processor(image, return_tensors="pt")["pixel_values"]
        assert torch.allclose(got, expected, atol=1e-5), type(image)
    grey = processor(rgb.convert("L"), return_tensors="pt")["pixel_values"]
    wide = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    assert torch.allclose(processor(wide, return_tensors="pt")["pixel_values"], grey, atol=1e-5)
    cmyk = processor(rgb.convert("CMYK"), return_tensors="pt")["pixel_values"]
    assert (cmyk - expected).abs().mean() < 0.05


def test_batches_of_different_sizes(processor):
    batch = processor([photo(40, 60), photo(64, 33), photo(90, 90)], return_tensors="pt")
    assert batch["pixel_values"].shape == (3, 3, 32, 32)


def test_maps_go_with_the_images(processor):
    semantic = np.zeros((50, 70), dtype=np.uint8)
    semantic[:, 35:], semantic[:5] = 3, 255
    instance = np.zeros((50, 70), dtype=np.uint16)
    instance[20:40, 20:50], instance[45:] = 1000, 65_535
    maps = {"segmentation_maps": Image.fromarray(semantic), "instance_maps": Image.fromarray(instance)}
    batch = processor(photo(), **maps, return_tensors="pt")
    assert batch["semantic_labels"].shape == (1, 8, 8)
    assert batch["semantic_labels"].dtype == torch.int64
    assert set(batch["semantic_labels"].unique().tolist()) <= {0, 3, -100}
    assert batch["semantic_labels"][0, 4].tolist() == [0, 0, 0, 0, 3, 3, 3, 3]
    assert batch["instance_labels"].shape == (1, 3, 8, 8)
    assert set(batch["instance_labels"][0, 2].unique().tolist()) <= {0.0, 1.0, -100.0}
    # Arrays and tensors mark what is ignored by -100.
    arrays = [np.where(m == np.iinfo(m.dtype).max, -100, m.astype(np.int64)) for m in (semantic, instance)]
    for convert in (np.asarray, torch.as_tensor):
        again = processor(
            [photo()], segmentation_maps=[convert(arrays[0])], instance_maps=[convert(arrays[1])], return_tensors="pt"
        )
        assert torch.equal(again["semantic_labels"], batch["semantic_labels"])
        assert torch.equal(again["instance_labels"], batch["instance_labels"])


def test_maps_at_full_size_for_segmentation(processor):
    semantic = np.arange(32 * 32).reshape(32, 32) % 7
    arguments = {"do_resize": False, "do_center_crop": False, "label_stride": 1, "return_tensors": "pt"}
    batch = processor(photo(32, 32), segmentation_maps=semantic, **arguments)
    assert torch.equal(batch["semantic_labels"][0], torch.from_numpy(semantic))


def test_what_a_crop_pads_is_ignored(processor):
    semantic = np.full((16, 16), 2)
    batch = processor(photo(16, 16), segmentation_maps=semantic, do_resize=False, return_tensors="pt")
    assert batch["semantic_labels"][0, 0].tolist() == [-100] * 8
    assert batch["semantic_labels"][0, 4].tolist() == [-100, -100, 2, 2, 2, 2, -100, -100]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"segmentation_maps": np.zeros((50, 60), int)},
            r"segmentation_maps\[0\]: expected the image's size \(50, 70\) \(height, width\), got \(50, 60\)",
        ),
        (
            {"instance_maps": Image.new("L", (50, 70))},
            r"instance_maps\[0\]: expected the image's size .*got \(70, 50\)",
        ),
        ({"instance_maps": Image.new("RGB", (70, 50))}, r"instance_maps\[0\]: expected a single-channel"),
        (
            {"segmentation_maps": [np.zeros((50, 70))] * 2},
            "segmentation_maps: expected one map for each of 1 images, got 2",
        ),
        ({"crop_size": {"height": 30, "width": 32}}, r"images\[0\]: expected an output .* patch_size=8, got 30 x 32"),
        ({"do_resize": False, "do_center_crop": False}, r"images\[0\]: expected an output .*got 50 x 70"),
        ({"label_stride": 3}, "label_stride: expected a divisor of patch_size=8, got 3"),
    ],
)
def test_bad_input_is_named(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(photo(), **arguments)


def test_pixels_that_are_not_finite_are_named(processor):
    images = [np.zeros((40, 40, 3), dtype=np.float32) for _ in range(3)]
    images[1][3, 4, 2] = np.nan
    with pytest.raises(ValueError, match=r"images\[1\]: expected finite pixels, got NaN or infinity"):
        processor(images)


def test_an_image_smaller_than_a_patch_is_named(processor):
    with pytest.raises(ValueError, match=r"images\[0\]: expected .*divisible by patch_size=8, got 4 x 6"):
        processor(photo(4, 6), do_resize=False, do_center_crop=False)


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ((61, 37), {"size": {"shortest_edge": 32}}, (32, 56)),  # 37 x 61 at a shorter side of 32 is 32 x 52.8
        ((37, 61), {"size": {"shortest_edge": 32}}, (56, 32)),
        ((5, 300), {"size": {"shortest_edge": 32}}, (1920, 32)),
        ((300, 50), {"size": {"shortest_edge": 32, "longest_edge": 64}}, (8, 64)),
        ((50, 50), {"size": {"height": 29, "width": 61}}, (32, 64)),
    ],
)
def test_whole_images_to_multiples_of_the_patch(size, options, expected):
    whole = C2FMAEImageProcessor(do_center_crop=False, size_divisor=8, patch_size=8, label_stride=1, **options)
    image = Image.new("RGB", size)
    label_map = np.zeros((size[1], size[0]), dtype=np.int64)
    outputs = whole(image, segmentation_maps=label_map, return_tensors="pt")
    assert outputs["pixel_values"].shape == (1, 3, *expected)
    assert outputs["semantic_labels"].shape == (1, *expected)
    assert C2FMAEImageProcessor.from_dict(whole.to_dict()).size_divisor == 8
    with pytest.raises(ValueError, match="size: expected shortest_edge, or height and width, beside size_divisor"):
        whole(image, size={"max_height": 32, "max_width": 32})


def test_saving_and_loading(config, tmp_path):
    config = C2FMAEConfig(**{**config.to_dict(), "image_size": [32, 64]})
    C2FMAEImageProcessor.from_config(config, image_mean=[0.5, 0.5, 0.5]).save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, C2FMAEImageProcessor)
    assert (loaded.patch_size, loaded.label_stride, *loaded.image_mean) == (8, 4, 0.5, 0.5, 0.5)
    assert loaded(photo(100, 100), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 64)


# Back from outputs: a model whose predictions are perfect


def perfect_outputs(semantic, instance, pixels, norm_pix_loss, grid) -> C2FMAEForPreTrainingOutput:
    patches = grid[0] * grid[1]
    patch_ids = torch.stack([torch.randperm(patches)[: patches - 2] for _ in range(len(semantic))])

    def gather(values):
        index = patch_ids[:, :, None, None].expand(-1, -1, *values.shape[2:])
        return values.gather(1, index)

    classes = gather(patchify(semantic[:, None], 2))
    instance_labels = instance_labels_from_map(instance)
    instance_labels[:, 2] = (instance_labels[:, 2] - 0.5) * 20
    images = patchify(pixels, 8)
    if norm_pix_loss:
        flat = images.flatten(2)
        variance, mean = torch.var_mean(flat, dim=-1, keepdim=True)
        images = ((flat - mean) / (variance + 1e-6) ** 0.5).view_as(images)
    return C2FMAEForPreTrainingOutput(
        semantic_logits=torch.nn.functional.one_hot(classes[..., 0], 9).float(),
        instance_logits=gather(patchify(instance_labels, 2)),
        image_logits=gather(images),
        patch_ids=patch_ids,
    )


@pytest.mark.parametrize("grid", [(4, 4), (2, 5)])
@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_perfect_predictions_give_the_targets_back(config, grid, norm_pix_loss):
    height, width = grid[0] * 2, grid[1] * 2
    config = C2FMAEConfig(**{**config.to_dict(), "image_size": [grid[0] * 8, grid[1] * 8]})
    processor = C2FMAEImageProcessor.from_config(config)
    semantic = torch.randint(0, 9, (3, height, width))
    instance = torch.zeros(3, height, width, dtype=torch.long)
    instance[:, :, :2], instance[:, :, -3:] = 7, 4
    images = [photo(grid[0] * 8, grid[1] * 8, seed) for seed in range(3)]
    pixels = processor(images, do_resize=False, return_tensors="pt")["pixel_values"]
    outputs = perfect_outputs(semantic, instance, pixels, norm_pix_loss, grid)
    predicted = torch.zeros(3, grid[0] * grid[1], dtype=torch.bool).scatter_(1, outputs.patch_ids, True)
    predicted = predicted.view(3, *grid).repeat_interleave(2, 1).repeat_interleave(2, 2)

    for got, target, where in zip(processor.post_process_semantic_segmentation(outputs), semantic, predicted):
        assert torch.equal(got[where], target[where])
        assert (got[~where] == -100).all()

    results = processor.post_process_instance_segmentation(outputs, radius=0.05, min_cells=1)
    for result, target, where in zip(results, instance, predicted):
        got = result["segmentation"]
        assert torch.equal(got[where] > 0, target[where] > 0)
        assert (got[~where] == 0).all()
        for instance_id in (4, 7):
            assert len(got[where & (target == instance_id)].unique()) == 1
        assert sorted(segment["id"] for segment in result["segments_info"]) == [1, 2]
        assert all(segment["score"] > 0.99 and 0 <= segment["label_id"] < 9 for segment in result["segments_info"])

    reconstructed = processor.post_process_reconstruction(outputs, pixels, norm_pix_loss=norm_pix_loss)
    for got, image in zip(reconstructed, images):
        assert got.dtype == np.uint8
        assert np.abs(got.astype(int) - np.asarray(image)).max() <= 1


def test_target_sizes(processor):
    semantic, instance = torch.randint(0, 9, (2, 8, 8)), torch.ones(2, 8, 8, dtype=torch.long)
    outputs = perfect_outputs(semantic, instance, torch.randn(2, 3, 32, 32), True, (4, 4))
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=[(32, 32), (50, 70)])
    assert [tuple(m.shape) for m in maps] == [(32, 32), (50, 70)]
    assert torch.equal(maps[0][2::4, 2::4], processor.post_process_semantic_segmentation(outputs)[0])
    results = processor.post_process_instance_segmentation(outputs, target_sizes=[(16, 16), (8, 8)])
    assert results[0]["segmentation"].shape == (16, 16)
    with pytest.raises(ValueError, match="target_sizes: expected one for each of 2 images, got 1"):
        processor.post_process_semantic_segmentation(outputs, target_sizes=[(8, 8)])


def test_outputs_of_the_segmentation_model(processor):
    class Output:
        logits = torch.randn(2, 4, 8, 8)

    plain = processor.post_process_semantic_segmentation(Output)
    assert torch.equal(torch.stack(plain), Output.logits.argmax(dim=1))
    resized = processor.post_process_semantic_segmentation(Output, target_sizes=[(32, 32), (20, 10)])
    assert [tuple(m.shape) for m in resized] == [(32, 32), (20, 10)]


def test_missing_predictions_are_named(processor):
    empty = C2FMAEForPreTrainingOutput(patch_ids=torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="expected semantic_logits, got none"):
        processor.post_process_semantic_segmentation(empty)
    with pytest.raises(ValueError, match="expected instance_logits, got none"):
        processor.post_process_instance_segmentation(empty)
    with pytest.raises(ValueError, match="expected image_logits, got none"):
        processor.post_process_reconstruction(empty, torch.zeros(1, 3, 32, 32), True)


def test_a_grid_that_does_not_hold_the_patches_is_named(processor):
    semantic, instance = torch.zeros(1, 8, 16, dtype=torch.long), torch.ones(1, 8, 16, dtype=torch.long)
    outputs = perfect_outputs(semantic, instance, torch.randn(1, 3, 32, 64), True, (4, 8))
    with pytest.raises(ValueError, match="grid_size: expected a grid that holds patch"):
        processor.post_process_semantic_segmentation(outputs)
    assert processor.post_process_semantic_segmentation(outputs, grid_size=(4, 8))[0].shape == (8, 16)


# Channels and ranges of arrays


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor], ids=["array", "tensor"])
def test_a_processor_follows_the_model_s_channels(channels, kind):
    """The number of channels tells channels first from channels last; grey images may have no channel axis."""
    config = C2FMAEConfig.from_size("tiny", image_size=32, num_channels=channels)
    processor = C2FMAEImageProcessor.from_config(config)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, channels), dtype=np.uint8)
    last = processor(kind(pixels), return_tensors="pt")["pixel_values"]
    first = processor(kind(np.ascontiguousarray(pixels.transpose(2, 0, 1))), return_tensors="pt")["pixel_values"]
    assert last.shape == (1, channels, 32, 32)
    assert torch.equal(last, first)
    if channels in (1, 3):
        flat = processor([kind(pixels[..., 0])] * 2, return_tensors="pt")["pixel_values"]
        expected = processor(Image.fromarray(pixels[..., 0]), return_tensors="pt")["pixel_values"]
        assert torch.equal(flat, expected.repeat(2, 1, 1, 1))
    else:
        with pytest.raises(ValueError, match=f"expected an image of {channels} channels, got one of 1"):
            processor(kind(pixels[..., 0]))


@pytest.mark.parametrize(
    "change",
    [
        lambda pixels: (pixels / 255).astype(np.float32),
        lambda pixels: pixels.astype(np.float32),
        lambda pixels: pixels.astype(np.uint16) * 257,
        lambda pixels: torch.from_numpy(pixels / 255),
    ],
    ids=["floats to 1", "floats to 255", "16 bits", "doubles to 1"],
)
def test_other_types_give_what_8_bits_do(change):
    pixels = np.random.default_rng(0).integers(90, 166, (60, 60, 3), dtype=np.uint8)  # no overshoot to cut off
    processor = C2FMAEImageProcessor(crop_size={"height": 32, "width": 32}, size={"shortest_edge": 40})
    expected, got = (processor(one, return_tensors="pt")["pixel_values"] for one in (pixels, change(pixels)))
    assert torch.allclose(got.float(), expected, atol=0.03)


def test_bool_pixels_are_black_and_white():
    pixels = np.random.default_rng(0).random((60, 60)) > 0.5
    processor = C2FMAEImageProcessor()
    expected = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(pixels, return_tensors="pt")["pixel_values"], expected)


def test_what_does_not_fit_the_statistics_is_said(monkeypatch):
    said = []
    monkeypatch.setattr("c2fmae_hf.image_processing_c2fmae.logger.warning_once", said.append)
    processor, pixels = C2FMAEImageProcessor(), np.full((60, 60, 3), 200, np.uint8)
    processor(pixels)
    processor(pixels / 255, do_rescale=False)
    assert not said
    processor(pixels, do_rescale=False)
    assert "normalised by statistics for [0, 1]" in said.pop()
    processor(pixels / 255)
    assert "not divided by 255" in said.pop()


def test_a_dark_image_is_as_dark_beside_others(monkeypatch):
    """The range of floating-point pixels is one for all images of a call."""
    said = []
    monkeypatch.setattr("c2fmae_hf.image_processing_c2fmae.logger.warning_once", said.append)
    dark, bright = np.zeros((64, 64, 3), np.float32), np.full((64, 64, 3), 200, np.float32)
    dark[:32] = 1
    for processor in (C2FMAEImageProcessor(do_normalize=False), MaskRCNNImageProcessor()):
        one, other = (image.max() for image in processor([dark, bright])["pixel_values"])
        assert float(one) == pytest.approx(1 / 255, abs=1e-3)  # cubic interpolation overshoots
        assert float(other) == pytest.approx(200 / 255, abs=1e-3)
    assert said == ["Floating-point images of one call are in [0, 1] and beyond: all are divided by 255."] * 2


def test_labels_are_reduced_as_beit_s_processor_does():
    """Scripts for segmentation read `do_reduce_labels`, too."""
    label_map = torch.tensor([[0, 1, 150, -100]]).repeat_interleave(8, dim=1).repeat(32, 1)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "label_stride": 8}
    pixels = np.zeros((32, 32, 3), np.uint8)
    plain = C2FMAEImageProcessor(**sizes)
    assert plain.do_reduce_labels is False
    assert plain(pixels, label_map, return_tensors="pt")["semantic_labels"][0, 0].tolist() == [0, 1, 150, -100]
    reduced = C2FMAEImageProcessor(**sizes, do_reduce_labels=True)
    assert reduced(pixels, label_map, return_tensors="pt")["semantic_labels"][0, 0].tolist() == [-100, 0, 149, -100]
    instances = plain(pixels, instance_maps=label_map.clamp(min=0), return_tensors="pt")["instance_labels"]
    again = reduced(pixels, instance_maps=label_map.clamp(min=0), return_tensors="pt")["instance_labels"]
    assert torch.equal(again, instances)


@pytest.mark.parametrize(("side", "resized"), [(64, 74), (96, 110), (224, 256)])
def test_size_is_the_model_s_input_and_crop_pct_says_what_it_is_cropped_from(side, resized):
    """Scripts read `size` as the model's input; the centre is cropped from larger images nevertheless."""
    processor = C2FMAEImageProcessor.from_config(C2FMAEConfig.from_size("tiny", image_size=side))
    assert processor.size["shortest_edge"] == processor.crop_size["height"] == processor.crop_size["width"] == side
    pixels = np.random.default_rng(0).integers(0, 256, (300, 280, 3), dtype=np.uint8)
    label_map = np.arange(300 * 280).reshape(300, 280) // 997
    crop = {"height": side, "width": side}
    expected = {"size": {"shortest_edge": resized}, "crop_size": crop, "return_tensors": "pt"}  # as written
    for options in ({}, {"segmentation_maps": label_map}):
        default, written = processor(pixels, **options, return_tensors="pt"), processor(pixels, **options, **expected)
        assert all(torch.equal(default[name], written[name]) for name in written)
    whole = processor(pixels, crop_pct=1.0, return_tensors="pt")["pixel_values"]
    again = processor(pixels, do_center_crop=False, size={"height": 300, "width": 280}, do_resize=False, patch_size=20)
    assert whole.shape[-2:] == (side, side)
    assert not torch.equal(whole, default["pixel_values"])
    assert again["pixel_values"][0].shape[-2:] == (300, 280)


def test_a_class_without_a_model_has_the_defaults_of_the_base_size():
    default, base = C2FMAEImageProcessor(), C2FMAEImageProcessor.from_config(C2FMAEConfig.from_size("base"))
    assert default.to_dict() == base.to_dict()


def test_a_size_alone_is_that_of_the_crop_too(tmp_path):
    """Scripts set `size`, as they do ViT's."""
    C2FMAEImageProcessor.from_config(C2FMAEConfig.from_size("tiny", image_size=64)).save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (200, 180, 3), dtype=np.uint8)
    expected = C2FMAEImageProcessor.from_config(C2FMAEConfig.from_size("tiny", image_size=96))(pixels)["pixel_values"]
    crop_pct = C2FMAEImageProcessor.from_config(C2FMAEConfig.from_size("tiny", image_size=96)).crop_pct
    for size in (96, {"shortest_edge": 96}):
        loaded = AutoImageProcessor.from_pretrained(tmp_path, size=size, crop_pct=crop_pct)
        assert torch.equal(loaded(pixels)["pixel_values"][0], expected[0])
        called = AutoImageProcessor.from_pretrained(tmp_path)(pixels, size=size, crop_pct=crop_pct)
        assert torch.equal(called["pixel_values"][0], expected[0])
        assert C2FMAEImageProcessor(size=size)(pixels)["pixel_values"][0].shape == (3, 96, 96)
    for size in ({"height": 96, "width": 48}, (96, 48), [96, 48]):
        squashed = AutoImageProcessor.from_pretrained(tmp_path, size=size)
        assert squashed(pixels)["pixel_values"][0].shape == (3, 96, 48)
        called = AutoImageProcessor.from_pretrained(tmp_path)(pixels, size=size)
        assert torch.equal(called["pixel_values"][0], squashed(pixels)["pixel_values"][0])
    both = AutoImageProcessor.from_pretrained(tmp_path, size={"shortest_edge": 110}, crop_size=96)
    assert both(pixels)["pixel_values"][0].shape == (3, 96, 96)


@pytest.mark.parametrize("crop_pct", [0, -1, 2.0, "a", None])
def test_a_share_that_is_none_is_refused(crop_pct):
    with pytest.raises((ValueError, TypeError), match="crop_pct"):
        C2FMAEImageProcessor(crop_pct=crop_pct)(np.zeros((60, 60, 3), np.uint8), crop_pct=crop_pct)
