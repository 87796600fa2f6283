"""The gallery: every picture made, a page that needs nothing else, and views that are what their captions say."""

from __future__ import annotations

import base64
import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from c2fmae_hf import C2FMAEConfig, C2FMAEForImageClassification, C2FMAEForPreTraining, C2FMAEImageProcessor
from c2fmae_hf.constants import IGNORE_INDEX, MASKING_STRATEGIES
from c2fmae_hf.masking import MaskingCurriculum
from c2fmae_hf.pictures import captions, panels
from c2fmae_hf.pictures.captions import Facts, Picture, class_legend
from c2fmae_hf.pictures.colours import UNKNOWN_COLOUR
from c2fmae_hf.pictures.encoder_panels import spread
from c2fmae_hf.pictures.encoder_views import choose_patches, feature_pictures, objects_attention, parse_patch
from c2fmae_hf.pictures.gallery import write_gallery
from c2fmae_hf.pictures.views import (
    Photo,
    ViewedModel,
    complementary_masks,
    curriculum_frames,
    load_viewed_model,
    predict,
    predict_everywhere,
    prepare_photo,
    same_patch,
    strategy_mask,
    view,
    with_predicted_maps,
)
from testing_utils import load_command, make_rows, randomized, with_fields


NAMES = {0: "ground", 1: "red", 2: "green", 3: "blue", 4: "grey"}


@pytest.fixture(scope="module")
def visualize():
    return load_command("visualize")


def save_model(config: C2FMAEConfig, folder: Path) -> str:
    model = randomized(C2FMAEForPreTraining(config))
    model.save_pretrained(folder)
    C2FMAEImageProcessor.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def pretrained(config, tmp_path) -> str:
    return save_model(with_fields(config, semantic_id2label=NAMES), tmp_path / "models" / "whole")


@pytest.fixture
def saved_rows(tmp_path) -> str:
    datasets.DatasetDict({"validation": make_rows(5)}).save_to_disk(tmp_path / "rows")
    return str(tmp_path / "rows")


@pytest.fixture
def photos_folder(tmp_path) -> str:
    """Photographs as people have them."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.convert("L").save(folder / "grey.jpg")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder / "turned.jpg", exif=turned)
    image.resize((1, 1)).save(folder / "one pixel.png")
    image.resize((900, 5)).save(folder / "more" / "wide.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / '<script>&".png')
    (folder / "notes.txt").write_text("no photograph")
    return str(folder)


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def check_page(written: list[Path]) -> Page:
    """The page holds exactly the pictures, and reaches for nothing else."""
    page = Page(written[0])
    assert page.open == []
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    shown = []
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        if tag == "img":
            head, _, content = attributes["src"].partition(",")
            assert head == "data:image/png;base64"
            shown.append(base64.b64decode(content, validate=True))
            assert attributes["alt"]
        else:
            assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in written[0].read_text(encoding="utf-8")
    assert "@import" not in written[0].read_text(encoding="utf-8")
    assert sorted(shown) == sorted(path.read_bytes() for path in written[1:])
    for path in written[1:]:
        with Image.open(path) as image:
            assert image.width == 960
            assert image.convert("RGB").getcolors(5) is None  # more than so many
    assert {path.name for path in written[0].parent.iterdir()} == {path.name for path in written}
    return page


def test_labelled_dataset(visualize, config, saved_rows, tmp_path):
    config = with_fields(config, image_size=[64, 48], semantic_id2label=NAMES)
    model = save_model(config, tmp_path / "models" / "whole")
    args = ["--model", model, "--dataset_name", saved_rows, "--num_images", "2", "--seed", "3", "--patches", "1,2"]
    written = visualize.main([*args, "--output_dir", str(tmp_path / "out"), "--device", "cpu"])
    page = check_page(written)
    own = ["strategies", "maps", "attention", "heads-1-2"]
    assert [path.name for path in written] == [
        *("index.html", "predictions.png", "curriculum.png", "features.png", "attention_in_objects.png"),
        *(f"01-r0-{name}.png" for name in own),
        *(f"02-r4-{name}.png" for name in own),
    ]
    for words in ("36 of 48 patches (75%)", "come from the dataset's maps", "through 4 masks", "seed"):
        assert words in page.text
    command = page.text[page.text.index("c2fmae visualize ") :]
    assert "--patches 1,2" in command
    assert str(tmp_path) not in page.text  # folders of this machine
    assert page.text.count("c2fmae visualize ") == len(written)  # above, and with each picture


def test_photographs_without_maps(visualize, pretrained, photos_folder, tmp_path):
    args = ["--model", pretrained, "--images", photos_folder, "--patches", "1,4", "--layers", "1", "--heads", "2"]
    written = visualize.main([*args, "--output_dir", str(tmp_path / "out")])
    page = check_page(written)
    assert "come from the model's own predictions" in page.text
    assert "not the checkpoint's" not in page.text
    assert "attention_in_objects.png" not in {path.name for path in written}  # nobody knows the objects
    assert sum(path.name.endswith("strategies.png") for path in written) == 6
    assert '<script>&".png' in page.text


def test_classical_regions_for_a_model_that_predicts_pixels_alone(visualize, config, photos_folder, tmp_path):
    model = save_model(with_fields(config, granularities=["image"]), tmp_path / "models" / "pixels")
    files = [f"{photos_folder}/cmyk.jpg", f"{photos_folder}/turned.jpg"]
    args = ["--model", model, "--images", *files, "--patches", "2,2", "--layers", "1"]
    written = visualize.main([*args, "--output_dir", str(tmp_path / "out")])
    page = check_page(written)
    assert "classical labeller" in page.text
    assert "not the checkpoint's" in page.text
    assert not any(path.name.endswith("maps.png") for path in written)
    assert any(path.name.endswith("strategies.png") for path in written)


def test_photographs_that_cannot_be_read_are_named_on_the_page(visualize, pretrained, photos_folder, tmp_path):
    files = [f"{photos_folder}/broken.jpg", f"{photos_folder}/grey.jpg"]
    Path(files[0]).write_bytes(b"no photograph")
    args = ["--model", pretrained, "--images", *files, "--layers", "1", "--heads", "1"]
    written = visualize.main([*args, "--on_bad_row", "skip", "--output_dir", str(tmp_path / "out")])
    assert "Left out: broken.jpg, image: cannot be opened: none of the formats" in Page(written[0]).text


def test_models_that_see_other_parts_have_their_own_chance(visualize, config, saved_rows, tmp_path):
    sizes = {"fine": [32, 32], "wide": [32, 64]}
    fine, wide = (
        save_model(with_fields(config, image_size=size, patch_size=4), tmp_path / "models" / name)
        for name, size in sizes.items()
    )
    args = ["--model", fine, "--compare_model", wide, "--dataset_name", saved_rows, "--patches", "1,1"]
    args += ["--indices", "0", "3", "--layers", "1", "--heads", "1"]
    written = visualize.main([*args, "--output_dir", str(tmp_path / "out")])
    text = check_page(written).text
    assert "Dashed lines: even attention" in text
    even = list(re.finditer(r"; (\d+) objects?, even attention (\d+)%", text))
    assert len(even) == 2
    viewed = [load_viewed_model(name) for name in (fine, wide)]
    rows = datasets.load_from_disk(saved_rows)["validation"].select([0, 3])
    for model, found in zip(viewed, even):
        maps = [(np.asarray(row["semantic"]), np.asarray(row["instance"])) for row in rows]
        photos = [
            prepare_photo("it", row["image"].convert("RGB"), model.config, *own, are_known=True)
            for row, own in zip(rows, maps)
        ]
        expected = objects_attention(model, photos)
        assert (int(found[1]), int(found[2])) == (expected.num_objects, round(100 * expected.even))

    coarse = save_model(config, tmp_path / "models" / "coarse")  # in whose patches no object is large enough
    args[1] = coarse
    text = check_page(visualize.main([*args, "--output_dir", str(tmp_path / "again")])).text
    assert "coarse has no line: it sees no object of at least 4 patches." in text


def test_the_same_patch_of_another_model(config):
    other = with_fields(config, image_size=64)  # twice the size: the same view
    assert same_patch((0, 0), config, with_fields(config, image_size=[32, 64])) == (0, 1)  # less high
    for patch in ((0, 0), (1, 3), (3, 2)):
        found = same_patch(patch, config, other)
        assert same_patch(found, other, config) == patch
        assert {side // 2 for side in found} == set(patch) or found == tuple(2 * side + 1 for side in patch)


def test_classes_of_others_have_colours_and_names_of_their_own(visualize, config):
    config = with_fields(config, semantic_id2label=NAMES)
    viewed = ViewedModel("it", C2FMAEForPreTraining(config).c2fmae, C2FMAEImageProcessor.from_config(config))
    semantic = np.where(np.arange(32) < 20, 1, 0).repeat(32).reshape(32, 32)
    original = visualize.Original(
        "it", Image.new("RGB", (32, 32)), {"semantic": semantic, "instance": semantic}, visualize.FROM_DATASET
    )
    (same,) = visualize.prepare([original], viewed, NAMES)
    assert same.shares_classes
    assert set(same.semantic.unique().tolist()) == {0, 1}
    (other,) = visualize.prepare([original], viewed, {0: "cat", 1: "dog"})
    assert not other.shares_classes
    assert torch.equal(other.semantic, same.semantic + config.num_semantic_classes)
    assert torch.equal(other.instance, same.instance)
    assert other.class_names == {5: "cat (known)", 6: "dog (known)"}
    predicted = np.array([[0, 1, -100]])
    legend = class_legend((predicted, viewed.class_names), (other.semantic.numpy(), other.class_names))
    assert list(legend) == ["ground", "red", "cat (known)", "dog (known)"]  # by id
    assert [entry.area for entry in legend.values()] == [1, 1, 24, 40]
    assert len({tuple(entry.colour) for entry in legend.values()}) == 4
    original.maps_from = visualize.FROM_CLASSICAL  # whose classes have no names
    (regions,) = visualize.prepare([original], viewed, {})
    assert regions.class_names == {}
    assert regions.semantic.min() >= config.num_semantic_classes


def test_every_colour_of_the_regions_is_in_the_legend(pretrained, tmp_path, monkeypatch):
    viewed = load_viewed_model(pretrained)
    image = Image.fromarray(np.random.default_rng(3).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    photo = with_predicted_maps(viewed, prepare_photo("it", image, viewed.config))
    drawn = {}
    monkeypatch.setattr(captions, "draw_grid", lambda cells, path, **options: drawn.update(cells=cells, **options))
    panels.draw_strategies(viewed, photo, tmp_path / "it.png")
    regions = drawn["cells"][drawn["row_names"].index("semantic")][0]
    legend = {tuple(entry.colour) for entry in drawn["legend"].values()}
    assert {tuple(colour) for colour in regions.reshape(-1, 3)} - {UNKNOWN_COLOUR} <= legend


def test_the_page_of_an_encoder_has_attention_and_features_only(visualize, config, saved_rows, tmp_path):
    folder = tmp_path / "models" / "encoder"
    C2FMAEForPreTraining(config).image_encoder().save_pretrained(folder)
    args = ["--model", str(folder), "--dataset_name", saved_rows, "--indices", "0", "--patches", "1,1", "2,2"]
    written = visualize.main([*args, "--output_dir", str(tmp_path / "out")])
    page = check_page(written)
    assert "an encoder without a decoder, so only attention and features" in page.text
    assert {path.name for path in written} == {
        *("index.html", "features.png", "01-r0-attention.png", "01-r0-heads-1-1.png", "01-r0-heads-2-2.png")
    }


def test_side_by_side_with_other_sizes_and_classes(visualize, pretrained, config, saved_rows, tmp_path):
    other = with_fields(config, image_size=48, patch_size=12, num_semantic_classes=7, supervise_visible_labels=True)
    other = save_model(other, tmp_path / "models" / "other")
    args = ["--model", pretrained, "--compare_model", other, "--dataset_name", saved_rows, "--num_images", "1"]
    args += ["--patches", "1,1", "--layers", "2"]
    written = visualize.main([*args, "--output_dir", str(tmp_path / "out")])
    page = check_page(written)
    assert written[-1].name == "01-r0-comparison.png"
    assert "Row 1: whole, 12 of 16 patches (75%) masked; semantics and instances from 4 complementary" in page.text
    assert "Row 2: other, 12 of 16 patches (75%) masked; semantics and instances from one pass" in page.text
    # An encoder beside it has no decoder; a second model of the same folder name is told from the first.
    folder = tmp_path / "elsewhere" / "whole"
    C2FMAEForPreTraining(config).image_encoder().save_pretrained(folder)
    args[3] = str(folder)
    page = check_page(visualize.main([*args, "--output_dir", str(tmp_path / "again")]))
    assert "Row 2: elsewhere/whole, no decoder" in page.text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--images", "nowhere"], "images: expected a file or folder, found nothing at 'nowhere'"),
        (["--images", "photos/broken.jpg"], "broken.jpg, image: cannot be opened: none of the formats"),
        (
            ["--images", "photos/broken.jpg", "--on_bad_row", "skip"],
            "expected at least one readable photograph, got none",
        ),
        (["--images", "empty"], "expected images in 'empty', found none"),
        (["--dataset_name", "rows", "--split", "train"], "split: expected one of \\['validation'\\], got 'train'"),
        (["--dataset_name", "rows", "--indices", "5"], "indices: expected numbers from 0 to 4, got \\[5\\]"),
        (["--dataset_name", "bare"], "dataset: expected a column 'image', got \\['picture'\\]"),
        (
            ["--dataset_name", "rows", "--patches", "4,0"],
            "patches: expected a row from 1 to 4 and a column from 1 to 4",
        ),
        (["--dataset_name", "rows", "--device", "tpu"], "Expected one of cpu, cuda"),
        (["--dataset_name", "rows", "--layers", "3"], "layers: expected numbers from 1 to 2, got \\[3\\]"),
        (["--dataset_name", "rows", "--heads", "0"], "heads: expected numbers from 1 to 4, got \\[0\\]"),
        (["--dataset_name", "rows", "--model", "photos"], "config.json: expected a saved model, found nothing"),
        (["--dataset_name", "rows", "--compare_model", "no/such/model"], "found no such folder"),
    ],
)
def test_mistakes_are_told(visualize, pretrained, saved_rows, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("empty").mkdir()
    Path("photos/broken.jpg").write_bytes(b"no photograph")
    datasets.Dataset.from_dict({"picture": [1]}).save_to_disk("bare")
    with pytest.raises((OSError, RuntimeError, ValueError), match=message):
        visualize.main(["--model", pretrained, *args, "--output_dir", "out"])
    assert not Path("out/index.html").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "expected either --images or --dataset_name"),
        (["--images", "a", "--dataset_name", "b"], "expected either --images or --dataset_name"),
        (["--images", "a", "--num_images", "0"], "num_images: expected at least 1, got 0"),
        (["--images", "a", "--mask_ratio", "1"], "mask_ratio: expected a number between 0 and 1, got 1.0"),
    ],
)
def test_mistakes_of_the_command_line(visualize, capsys, args, message):
    with pytest.raises(SystemExit):
        visualize.main(["--model", "m", "--output_dir", "o", *args])
    assert message in capsys.readouterr().err


# Views


@pytest.fixture
def viewed(pretrained) -> ViewedModel:
    return load_viewed_model(pretrained)


@pytest.fixture
def photo(config) -> Photo:
    """Two objects of two classes: the left half, and the lower right quarter."""
    pixels = np.random.default_rng(1).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    semantic, instance = np.zeros((32, 32), dtype=np.int32), np.zeros((32, 32), dtype=np.int32)
    semantic[:, :16], instance[:, :16] = 1, 1
    semantic[16:, 16:], instance[16:, 16:] = 2, 2
    image = Image.fromarray(pixels)
    return prepare_photo("it", image, config, semantic, instance, maps_from="of this test", are_known=True)


def test_the_model_is_left_as_it_was(viewed, photo):
    config = viewed.whole.config
    before = config._attn_implementation
    found = objects_attention(viewed, [photo])
    assert config._attn_implementation == before != "eager"
    assert viewed.encoder.config._attn_implementation == before
    assert not viewed.whole.training
    assert found.shares.shape == (2,)
    assert found.num_objects == 2
    assert found.even == pytest.approx((0.5 + 0.25) / 2, abs=0.07)  # the middle of the photograph is cut out
    assert objects_attention(viewed, [replace(photo, are_known=False)]) is None


@pytest.mark.parametrize("num_masked", [1, 4, 9, 12, 15])
def test_complementary_masks_cover_every_patch(num_masked):
    masks = complementary_masks(16, num_masked)
    assert (masks.sum(dim=1) == num_masked).all()
    assert masks.any(dim=0).all()
    assert len(complementary_masks(16, 12)) == 4
    assert (complementary_masks(16, 12).sum(dim=0) == 3).all()
    assert not torch.equal(complementary_masks(16, 12, seed=1), complementary_masks(16, 12))


def test_no_patch_is_predicted_from_its_own_pixels(config, tmp_path, photo):
    config = with_fields(config, norm_pix_loss=False)  # else brightness is borrowed from the photograph
    viewed = load_viewed_model(save_model(config, tmp_path / "m"))
    changed = photo.pixel_values.clone()
    changed[:, 8:16, 16:24] += 1  # the patch in row 1, column 2
    before, after = predict_everywhere(viewed, photo), predict_everywhere(viewed, replace(photo, pixel_values=changed))
    assert before.passes == 4
    assert (before.semantic != IGNORE_INDEX).all()
    assert (before.instance != IGNORE_INDEX).all()
    own = np.s_[8:16, 16:24]
    np.testing.assert_array_equal(before.image[own], after.image[own])
    np.testing.assert_array_equal(before.semantic[2:4, 4:6], after.semantic[2:4, 4:6])
    assert (before.image != after.image).any()


def test_predictions_have_gaps_where_patches_are_visible(viewed, photo):
    mask, applied = strategy_mask(photo, viewed.config, "random", seed=5)
    assert applied == "random"
    found = predict(viewed, photo, mask)
    visible = ~mask.reshape(4, 4).numpy().repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(found.semantic == IGNORE_INDEX, visible)
    np.testing.assert_array_equal(found.instance == IGNORE_INDEX, visible)
    pixels = viewed.processor.to_pixels(photo.pixel_values[None])[0]
    shown = ~mask.reshape(4, 4).numpy().repeat(8, axis=0).repeat(8, axis=1)
    np.testing.assert_array_equal(found.image[shown], pixels[shown])
    assert (found.image != pixels).any()


def test_labels_of_visible_patches_come_from_an_unmasked_pass(config, tmp_path, photo):
    viewed = load_viewed_model(save_model(with_fields(config, supervise_visible_labels=True), tmp_path / "m"))
    found = predict_everywhere(viewed, photo)
    assert found.passes == 0
    assert (found.semantic != IGNORE_INDEX).all()
    assert found.image is not None
    pixel_values, nothing = photo.pixel_values[None], torch.zeros(1, 16, dtype=torch.bool)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a loss over no pixels
        outputs = viewed.whole(pixel_values, bool_masked_pos=nothing)
    expected = viewed.processor.post_process_semantic_segmentation(outputs)[0]
    np.testing.assert_array_equal(found.semantic, expected.numpy())
    masked = predict(viewed, photo, strategy_mask(photo, config, "random")[0])
    assert (masked.semantic != IGNORE_INDEX).all()


def test_strategies_hide_regions(viewed, photo):
    mask, applied = strategy_mask(photo, viewed.config, "semantic", mask_ratio=0.5)
    assert applied == "semantic"
    assert mask.sum() == 8
    bare = replace(photo, semantic=torch.full((8, 8), IGNORE_INDEX), instance=torch.full((8, 8), IGNORE_INDEX))
    assert strategy_mask(bare, viewed.config, "semantic")[1] == "random"
    regions = with_predicted_maps(viewed, bare)
    assert regions.maps_from == "the model's own predictions"
    assert not regions.has_objects
    assert strategy_mask(regions, viewed.config, "semantic")[1] == "semantic"


def test_the_film_goes_from_semantic_to_random(viewed, photo):
    rows = curriculum_frames(photo, viewed.config, MaskingCurriculum(), [0.0, 0.5, 1.0])
    assert [[frame.strategy for frame in row] for row in rows] == [list(MASKING_STRATEGIES)] * 3
    rows = curriculum_frames(photo, viewed.config, MaskingCurriculum(), [0.25], num_draws=4)
    assert [row[0].strategy for row in rows] == ["semantic", "semantic", "instance", "instance"]
    assert all(frame.mask.sum() == 12 for row in rows for frame in row)


def test_patches_lie_in_objects(config, photo):
    (first, second) = choose_patches(photo, config)
    ids = photo.instance[::2, ::2]
    assert (ids[first], ids[second]) == (1, 2)  # the larger one first
    assert choose_patches(replace(photo, are_known=False), config) == [(2, 2), (1, 1)]
    assert parse_patch("4, 1", (4, 4)) == (3, 0)
    for text in ("3", "a,b", "1,2,3", "-1,0"):
        with pytest.raises(ValueError, match="patches: expected ROW,COLUMN"):
            parse_patch(text, (4, 4))


def test_features_as_colours(viewed, photo):
    flat = replace(photo, pixel_values=torch.zeros_like(photo.pixel_values))
    found = feature_pictures(viewed, [photo, flat])
    assert [picture.shape for picture in found.pictures] == [(4, 4, 3)] * 2
    assert 0 < found.explained <= 1
    assert len(np.unique(found.pictures[0].reshape(-1, 3), axis=0)) > 8
    again = feature_pictures(viewed, [photo, flat])
    assert all(np.array_equal(*pair) for pair in zip(found.pictures, again.pictures))


def test_long_photographs_are_cut_to_their_middle(config):
    image = Image.new("RGB", (4000, 4), "red")
    image.paste("blue", (1900, 0, 2100, 4))
    semantic = np.zeros((4, 4000), dtype=np.int32)
    semantic[:, 1900:2100] = 3
    photo = prepare_photo("long", image, config, semantic)
    assert photo.pixel_values.shape == (3, 32, 32)
    assert (photo.semantic == 3).all()
    assert (photo.pixel_values[2] > photo.pixel_values[0]).all()


def test_models_that_are_looked_at(config, tmp_path):
    C2FMAEForImageClassification(config).save_pretrained(tmp_path / "classifier")
    viewed = load_viewed_model(str(tmp_path / "classifier"))
    assert viewed.whole is None
    assert viewed.granularities == ()
    save_model(with_fields(config, num_channels=1, image_mean=[0.5], image_std=[0.5]), tmp_path / "grey")
    with pytest.raises(ValueError, match="expected a model of RGB images, got num_channels=1"):
        load_viewed_model(str(tmp_path / "grey"))
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="expected the name of a model"):
        load_viewed_model(str(tmp_path / "vit"))


def test_spread():
    assert spread(12, 4) == [0, 4, 7, 11]
    assert spread(3, 8) == [0, 1, 2]
    assert spread(9, 1) == [0]


def test_what_comes_from_outside_is_escaped(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    evil = '<img src=x onerror="alert(1)">'
    picture = Picture(tmp_path / "a.png", evil, evil, Facts([evil], [evil]))
    write_gallery(tmp_path / "index.html", evil, {evil: [picture]}, f"python --x {evil}", [evil])
    page = Page(tmp_path / "index.html")
    assert [tag for tag, _ in page.tags].count("img") == 1
    assert evil in page.text


def test_facts_are_said_twice():
    one = Facts(["folder/model"], ["a.jpg"], (12, 16), seed=3)
    assert one.headline() == "folder/model | a.jpg | 75% masked | seed 3"
    assert one.entries() == {
        "checkpoint": "folder/model",
        "image": "a.jpg",
        "masked": "12 of 16 patches (75%)",
        "seed": "3",
    }
    long = "x" * 60
    two = Facts([long, "b"], ["first, of two", "2 images: b"])
    assert two.headline() == f"1: {'x' * 13}...{'x' * 24}  2: b | 2 images"
    assert two.entries() == {"checkpoint": f"1: {long}, 2: b", "image": "2 images: first, of two, 2 images: b"}
    first, second = Facts([long, long], [long]).headline().splitlines()
    assert second == f"{'x' * 13}...{'x' * 24}"
    assert len(first) <= 88


def test_the_grid_shows_predictions_where_patches_are_hidden_and_the_photograph_elsewhere(
    config, tmp_path, monkeypatch
):
    viewed = view(C2FMAEForPreTraining(config), "model")
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    photos = [prepare_photo(str(index), pixels, viewed.config) for index in range(10)]
    drawn = []
    monkeypatch.setattr(panels, "draw_picture", lambda cells, *args, **options: drawn.extend(cells))
    panels.draw_predictions(viewed, photos, tmp_path / "predictions.png")
    assert len(drawn) == panels.MAX_ROWS
    masks = set()
    for photograph, visible, *predictions in drawn:
        is_hidden = (visible == UNKNOWN_COLOUR).all(axis=-1)
        masks.add(is_hidden.tobytes())
        assert is_hidden.mean() == pytest.approx(0.75, abs=0.01)
        assert len(predictions) == 3
        for picture in predictions:
            assert np.array_equal(picture[~is_hidden], photograph[~is_hidden])
            assert not np.array_equal(picture[is_hidden], photograph[is_hidden])
    assert len(masks) == panels.MAX_ROWS  # each photograph has its own
