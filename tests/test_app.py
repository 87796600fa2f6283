"""What `c2fmae app` computes; `test_app_page.py` looks at its page."""

from __future__ import annotations

import io
import json
import re
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from huggingface_hub import SpaceCard
from packaging.version import Version
from PIL import Image

from c2fmae_hf import C2FMAEForPreTraining
from c2fmae_hf.app.playground import Photograph, Playground, facts_of_weights
from c2fmae_hf.constants import IGNORE_INDEX
from c2fmae_hf.pictures.captions import photo_pixels
from c2fmae_hf.pictures.colours import UNKNOWN_COLOUR, enlarge
from c2fmae_hf.pictures.encoder_views import attention_maps
from c2fmae_hf.pictures.photographs import embedded_photographs, open_photograph
from c2fmae_hf.publishing.records import RunRecord
from testing_utils import randomized, small_config, with_fields


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def rotated_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    return encoded(gradient(80, 60), "JPEG", exif=exif)


def claiming_png(width: int, height: int) -> bytes:
    """A file of 100 bytes that says it is so large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


GOOD_FILES = {
    "PNG": (encoded(gradient(80, 60), "PNG"), (80, 60), ""),
    "CMYK": (encoded(gradient(80, 60).convert("CMYK"), "JPEG"), (80, 60), "CMYK colours were converted"),
    "EXIF": (rotated_jpeg(), (60, 80), "was rotated"),
    "animated": (
        encoded(
            gradient(80, 60),
            "GIF",
            save_all=True,
            append_images=[Image.new("RGB", (80, 60), c) for c in ("red", "blue")],
        ),
        (80, 60),
        "holds 3 pictures; the first",
    ),
    "16 bits": (encoded(Image.fromarray(np.full((60, 80), 40000, dtype=np.uint16)), "PNG"), (80, 60), ""),
    "transparent": (encoded(Image.new("RGBA", (80, 60), (0, 0, 0, 0)), "PNG"), (80, 60), ""),
    "palette": (encoded(gradient(80, 60).quantize(16), "PNG"), (80, 60), ""),
    "panorama": (encoded(gradient(30_000, 40), "PNG"), (30_000, 40), "Only the middle"),
    "pillar": (encoded(gradient(40, 9_000), "PNG"), (40, 9_000), "Only the middle"),
}
BAD_FILES = {
    "text": (b"I am no picture.", "none of the formats JPEG"),
    "nothing": (b"", "zero bytes"),
    "one pixel": (encoded(Image.new("RGB", (1, 1)), "PNG"), "at least 32 pixels a side, got 1 x 1"),
    "cut off": (encoded(gradient(300, 300), "JPEG")[:2000], "cannot be decoded"),
    "huge": (claiming_png(30_000, 30_000), "expected at most 50000000 pixels"),
    "large": (claiming_png(9_000, 9_000), "at most 50000000 pixels, got 9000 x 9000"),
    "document": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "none of the formats"),
    "floating point": (encoded(Image.fromarray(np.full((60, 80), 7, dtype=np.float32)), "TIFF"), "pixels in"),
}


@pytest.mark.parametrize("name", GOOD_FILES)
def test_files_that_are_taken(name):
    content, size, note = GOOD_FILES[name]
    image, notes = open_photograph(content)
    assert (image.mode, image.size) == ("RGB", size)
    assert note in " ".join(notes)
    assert bool(notes) == bool(note)


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_files_that_are_refused_with_a_message(name):
    content, message = BAD_FILES[name]
    with pytest.raises(ValueError, match=message):
        open_photograph(content)


def test_what_was_done_to_a_photograph():
    turned = np.asarray(open_photograph(rotated_jpeg())[0]).astype(int)
    assert turned[-1, 30, 0] > turned[0, 30, 0] + 200  # what grew to the right grows downwards
    grey = np.asarray(open_photograph(GOOD_FILES["16 bits"][0])[0])
    assert (grey == round(40000 / 257)).all()
    assert (np.asarray(open_photograph(GOOD_FILES["transparent"][0])[0]) == 255).all()


def test_embedded_photographs():
    photographs = embedded_photographs(["coins", "china"])
    assert {name: image.size for name, image in photographs.items()} == {"coins": (384, 303), "china": (640, 427)}
    assert {image.mode for image in photographs.values()} == {"RGB"}
    with pytest.raises(ValueError, match=r"names: expected some of .*chelsea.*, got \['dog'\]"):
        embedded_photographs(["dog"])


# The model's part


@pytest.fixture
def playground() -> Playground:
    config = small_config(image_size=64, semantic_id2label={0: "ground", 1: "sky"})
    return Playground(randomized(C2FMAEForPreTraining(config)).train())


@pytest.fixture
def photograph(playground) -> Photograph:
    return playground.open(gradient(90, 70))


def with_maps(photograph: Photograph) -> Photograph:
    """Four classes and instances, a quarter of the photograph each: what a model without training never predicts."""
    quarters = torch.arange(4).view(2, 2).repeat_interleave(8, dim=0).repeat_interleave(8, dim=1)
    return replace(photograph, photo=replace(photograph.photo, semantic=quarters, instance=1 + quarters))


def test_label_maps_are_means_over_the_passes_in_which_patches_were_masked(playground, photograph):
    assert not playground.model.training
    pixel_values, semantic, instance = (
        getattr(photograph.photo, name) for name in ("pixel_values", "semantic", "instance")
    )
    assert semantic.shape == instance.shape == (16, 16)
    assert semantic.min() >= 0
    # The same by other means: every mask that the model was shown, and its probabilities on the label grid.
    seen = []
    handle = playground.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["bool_masked_pos"]), with_kwargs=True
    )
    repeated = playground.open(gradient(90, 70)).photo
    handle.remove()
    assert torch.equal(repeated.semantic, semantic)
    assert torch.equal(repeated.instance, instance)
    (masks,) = seen
    assert masks.shape == (4, 64)
    assert (masks.sum(dim=0) == 3).all()
    total = torch.zeros(16, 16, 5)
    for mask in masks:
        with torch.no_grad():
            outputs = playground.model(pixel_values[None], bool_masked_pos=mask[None])
        probabilities = outputs.semantic_logits[0].softmax(dim=-1)
        for position, patch in enumerate(outputs.patch_ids[0].tolist()):
            row, column = 2 * (patch // 8), 2 * (patch % 8)
            total[row : row + 2, column : column + 2] += probabilities[position].view(2, 2, 5)
    assert torch.equal(total.argmax(dim=-1), semantic)


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.9, 0.99])
def test_label_maps_at_other_mask_ratios_and_sizes(ratio):
    config = small_config(image_size=(40, 56), mask_ratio=ratio)
    playground = Playground(C2FMAEForPreTraining(config))
    photograph = playground.open(gradient(90, 70))
    assert photograph.photo.pixel_values.shape == (3, 40, 56)
    assert photograph.photo.semantic.shape == (10, 14)
    assert photograph.photo.semantic.min() >= 0


@pytest.mark.parametrize("strategy", ["semantic", "instance", "random"])
@pytest.mark.parametrize(("ratio", "num_masked"), [(0.75, 48), (0.001, 1), (0.999, 63)])
def test_predictions(playground, photograph, strategy, ratio, num_masked):
    photograph = with_maps(photograph)
    found = playground.predict(photograph, strategy, ratio, seed=3)
    assert (found.strategy, found.num_masked, found.num_patches) == (strategy, num_masked, 64)
    sizes = {name: picture.shape[0] for name, picture in found.panels.items()}
    regions = {} if strategy == "random" else {"regions": 16}
    assert sizes == {"photograph": 64, **regions, "masked": 64, "semantic": 16, "instance": 16, "image": 64}
    assert next(iter(sizes)) == "photograph"
    assert sum(share for _, _, share in found.classes) == pytest.approx(1)
    named = {name for name, _, _ in found.classes}
    if strategy == "semantic":  # the legend is also that of the regions
        assert named >= {"ground", "sky", "class 2", "class 3"}
    assert named <= {"ground", "sky", "class 2", "class 3", "class 4"}

    photo = photo_pixels(playground.viewed, photograph.photo)
    grey = np.array(UNKNOWN_COLOUR)
    hidden = (found.panels["masked"] == grey).all(axis=-1).reshape(8, 8, 8, 8).all(axis=(1, 3))
    assert hidden.sum() == num_masked
    visible = ~enlarge(hidden, 8)
    assert np.array_equal(found.panels["image"][visible], photo[visible])
    for name in ("semantic", "instance"):
        assert np.array_equal((found.panels[name] == grey).all(axis=-1), ~enlarge(hidden, 2))
    if strategy != "random" and ratio == 0.75:  # of each of four regions the same share is hidden
        assert (hidden.reshape(2, 4, 2, 4).mean(axis=(1, 3)) == 0.75).all()

    same, other = (playground.predict(photograph, strategy, ratio, seed=seed) for seed in (3, 4))
    assert np.array_equal(same.panels["masked"], found.panels["masked"])
    if ratio == 0.75:
        assert not np.array_equal(other.panels["masked"], found.panels["masked"])


def test_without_instances_and_classes_masking_is_random(playground, photograph):
    empty = torch.full_like(photograph.photo.semantic, IGNORE_INDEX)
    blank = Photograph(replace(photograph.photo, semantic=empty, instance=torch.zeros_like(empty)))
    found = playground.predict(blank, "instance", 0.5, 0)
    assert found.strategy == "random"
    assert "regions" not in found.panels


@pytest.mark.parametrize("granularities", [["image"], ["semantic"], ["instance", "image"]])
def test_models_of_fewer_granularities(granularities):
    config = with_fields(small_config(), granularities=granularities)
    playground = Playground(C2FMAEForPreTraining(config))
    assert playground.strategies == [name for name in granularities if name != "image"] + ["random"]
    photograph = playground.open(gradient(90, 70))
    for strategy in playground.strategies:
        found = playground.predict(photograph, strategy, 0.5, 0)
        assert set(granularities) == {"semantic", "instance", "image"} & set(found.panels)
    with pytest.raises(ValueError, match="strategy: expected one of"):
        playground.predict(photograph, ({"semantic", "instance"} - set(granularities)).pop(), 0.5, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("columns", 0.5, 0), "strategy: expected one of .*, got 'columns'"),
        (("random", 1.0, 0), "mask_ratio: expected a number between 0 and 1, got 1.0"),
        (("random", float("nan"), 0), "mask_ratio: expected"),
    ],
)
def test_settings_that_are_refused(playground, photograph, arguments, message):
    with pytest.raises(ValueError, match=message):
        playground.predict(photograph, *arguments)


def test_attention(playground, photograph):
    before = playground.model.config._attn_implementation
    expected = attention_maps(playground.model.c2fmae, photograph.photo.pixel_values[None])[
        1, 0
    ]  # heads, tokens, tokens
    patch = 1 + 3 * 8 + 5
    head = playground.attention(photograph, row=3, column=5, layer=1, head=1)
    np.testing.assert_allclose(head.weights, expected[1, patch, 1:].view(8, 8).numpy(), rtol=1e-5)
    mean = playground.attention(photograph, row=3, column=5, layer=1)
    np.testing.assert_allclose(mean.weights, expected[:, patch, 1:].mean(dim=0).view(8, 8).numpy(), rtol=1e-5)
    assert mean.weights.sum() + mean.class_token == pytest.approx(1, abs=1e-5)
    assert playground.model.config._attn_implementation == before != "eager"
    for wrong in ({"row": 8}, {"column": 8}, {"layer": 2}, {"head": 2}):
        with pytest.raises(IndexError):
            playground.attention(photograph, **{"row": 0, "column": 0, "layer": 0, **wrong})


def test_pictures_of_attention(playground, photograph):
    plain = enlarge(photo_pixels(playground.viewed, photograph.photo), 7)
    picture = playground.draw_photograph(photograph, 3, 5)
    changed = np.argwhere((picture != plain).any(axis=-1))
    top, left = 3 * 8 * 7, 5 * 8 * 7
    around = 448 // 75  # the frame lies around the patch
    assert changed.min(axis=0).tolist() == [top - around, left - around]
    assert changed.max(axis=0).tolist() == [top + 55 + around, left + 55 + around]
    for place, expected in (((left, top), (3, 5)), ((left + 55, top + 55), (3, 5)), ((-5, 9999), (7, 0))):
        assert playground.patch_at(*place, picture.shape[:2]) == expected
    found = playground.attention(photograph, 3, 5, 0)
    drawn = playground.draw_attention(photograph, found, 3, 5).astype(int)
    assert drawn.shape == picture.shape
    row, column = np.unravel_index(found.weights.argmax(), (8, 8))
    brightest = drawn[row * 56 + 28, column * 56 + 28]
    assert brightest[0] > brightest[2] + 50  # yellow


def test_several_threads_get_what_one_gets(playground, photograph):
    photograph = with_maps(photograph)

    def ask(number: int) -> np.ndarray:
        if number % 2:
            return playground.attention(photograph, number % 8, 0, number % 2).weights
        return playground.predict(photograph, "semantic", 0.5, number).panels["image"]

    expected = [ask(number) for number in range(24)]
    barrier = threading.Barrier(8)

    def ask_together(start: int) -> list[np.ndarray]:
        barrier.wait(timeout=30)
        return [ask(number) for number in range(start, 24, 8)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask_together, range(8)))
    for start, found in enumerate(answers):
        for index, answer in enumerate(found):
            assert np.array_equal(answer, expected[start + 8 * index])


# Which weights


@pytest.fixture
def folder(playground, tmp_path):
    """As c2fmae pretrain leaves it: the model's folder within that of the run."""
    folder = tmp_path / "run" / "model"
    playground.model.save_pretrained(folder)
    playground.viewed.processor.save_pretrained(folder)
    return folder


def write_record(folder, model) -> None:
    record = RunRecord("pretraining", [], {"train": 1234, "validation": 5}, {}, batch_size=16, data="me/photos")
    (folder / "run.json").write_text(json.dumps(record.finish(model)))
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 4200, "log_history": []}))


@pytest.mark.parametrize("place", ["", "..", "runs/training"])
def test_the_weights_are_told_by_their_records(folder, place):
    playground = Playground.from_folder(folder)
    assert facts_of_weights(folder, playground.model).training == "No record says how these weights were trained."
    (folder / place).mkdir(parents=True, exist_ok=True)
    write_record(folder / place, playground.model)
    facts = facts_of_weights(folder, playground.model)
    assert facts.folder == "run/model"
    assert facts.training.startswith("Trained on me/photos (1 234 images) for 4 200 steps of 16 images, started on 20")
    assert "an encoder of 2 blocks, width 32, for photographs of 64 x 64 pixels in patches of 8" in facts.architecture
    assert "a cascaded decoder (semantic, instance, image)" in facts.architecture


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ("data_names: {me/photos: Holiday photographs}", "Holiday photographs"),
        ("data_names: {another: Another}", "me/photos"),
        ("data_names: [me/photos]", "me/photos"),
        ("license: mit", "me/photos"),
        ("- me/photos", "me/photos"),
        ("data_names: {", "me/photos"),
    ],
)
def test_the_card_names_the_data(folder, card, name):
    playground = Playground.from_folder(folder)
    write_record(folder, playground.model)
    (folder / "card.yaml").write_text(card)
    assert facts_of_weights(folder, playground.model).training.startswith(f"Trained on {name} (1 234 images) for")


def test_records_of_other_weights_do_not_count(folder):
    playground = Playground.from_folder(folder)
    write_record(folder, playground.model)
    randomized(playground.model)
    expected = "No record says how these weights were trained; the records beside them belong to other weights."
    assert facts_of_weights(folder, playground.model).training == expected
    (folder / "run.json").write_text("{")
    assert facts_of_weights(folder, playground.model).training == expected


def test_folders_that_hold_no_such_model(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: expected a folder of a pre-training model, found none"):
        Playground.from_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.json: expected a saved model"):
        Playground.from_folder(tmp_path)
    C2FMAEForPreTraining.from_pretrained(folder).image_encoder().save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="expected a C2FMAEForPreTraining, whose decoder predicts, got a C2FMAEModel"):
        Playground.from_folder(tmp_path / "encoder")
    # A pickle of PyTorch is not even tried.
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"expected one of model.safetensors, .*, found neither"):
        Playground.from_folder(folder)


# The files of a Space


def test_the_settings_of_the_space(repository):
    card = SpaceCard.load(repository / "examples/app/README.md").data
    assert (card.sdk, card.app_file, card.license) == ("gradio", "app.py", "apache-2.0")
    assert len(card.to_dict()["short_description"]) <= 60  # as the Hub has it
    setup = (repository / "setup.py").read_text(encoding="utf-8")
    oldest = re.search(r'"gradio>=([\d.]+)"', setup)[1]
    assert Version(card.sdk_version) >= Version(oldest)
    lines = (repository / "examples/app/requirements.txt").read_text(encoding="utf-8").splitlines()
    requirements = [line for line in lines if not line.startswith("#")]
    assert [line for line in requirements if f'"{line}"' not in setup] == []
