"""Features of photographs in Parquet: what is written, and that an interrupted job goes on."""

from __future__ import annotations

import io
import json
import shutil

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModel, TimmWrapperConfig, ViTImageProcessor

from c2fmae_hf import C2FMAEImageProcessor
from c2fmae_hf.labelling.sources.open import open_source
from c2fmae_hf.transfer import embedding
from testing_utils import load_command
from transfer_utils import save_encoders


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> dict[str, str]:
    return save_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture
def photos(tmp_path):
    """Seven photographs of different sizes in two folders, one of them turned by its EXIF data."""
    generator = np.random.default_rng(0)
    for index in range(7):
        folder = tmp_path / "photos" / ("cats" if index % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(generator.integers(0, 255, (40 + index, 50, 3), dtype=np.uint8))
        exif = Image.Exif()
        if index == 3:
            exif[0x0112] = 6
        image.save(folder / f"{index}.jpg", quality=95, exif=exif)
    return tmp_path / "photos"


def read(path):
    return datasets.load_dataset("parquet", data_files=str(path), split="train").with_format("numpy")


def embed(*args) -> list[str]:
    return load_command("embed").main([*map(str, args), "--device", "cpu"])


def test_features_are_the_models(encoders, photos, tmp_path):
    assert embed(encoders["c2fmae"], photos, "--output", tmp_path / "mean.parquet", "--batch_size", 3) == []
    embed(encoders["c2fmae"], photos, "--output", tmp_path / "cls.parquet", "--features", "cls", "--batch_size", 2)
    embed(encoders["c2fmae"], photos, "--output", tmp_path / "all.parquet", "--features", "patches", "--half")
    rows, cls, patches = (read(tmp_path / f"{name}.parquet") for name in ("mean", "cls", "all"))
    assert sorted(rows["image_id"]) == sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.jpg"))
    model = AutoModel.from_pretrained(encoders["c2fmae"]).eval()
    processor = AutoImageProcessor.from_pretrained(encoders["c2fmae"])
    for row, one, many in zip(rows, cls, patches):
        image = ImageOps.exif_transpose(Image.open(photos / str(row["image_id"])))
        with torch.no_grad():
            tokens = model(**processor(image, return_tensors="pt")).last_hidden_state[0].numpy()
        np.testing.assert_allclose(row["features"], tokens[1:].mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(one["features"], tokens[0], atol=1e-5)
        np.testing.assert_allclose(many["features"], tokens[1:], atol=1e-2)
        assert many["features"].shape == tokens[1:].shape
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("kind", ["vit", "timm"])
def test_other_encoders(encoders, photos, tmp_path, kind):
    name = encoders.get(kind, str(tmp_path / "timm"))
    if kind == "timm":
        model_args = {"img_size": 32, "patch_size": 8, "depth": 1, "dynamic_img_size": True}
        config = TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=model_args)
        AutoModel.from_config(config).save_pretrained(name)
    embed(name, photos, "--output", tmp_path / "out.parquet", "--image_size", 32)
    features = np.stack(list(read(tmp_path / "out.parquet")["features"]))
    assert len(features) == 7
    assert np.isfinite(features).all()
    assert len(np.unique(features[:, 0])) == 7


def test_another_librarys_model_keeps_its_processor(encoders, photos, tmp_path):
    """Photographs are wider than high: a square of another processor would give other features."""
    name = str(tmp_path / "vit")
    AutoModel.from_pretrained(encoders["vit"]).save_pretrained(name)
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1] * 3, image_std=[0.9] * 3).save_pretrained(
        name
    )
    embed(name, photos, "--output", tmp_path / "own.parquet")
    model, processor = AutoModel.from_pretrained(name).eval(), AutoImageProcessor.from_pretrained(name)
    for row in read(tmp_path / "own.parquet"):
        image = ImageOps.exif_transpose(Image.open(photos / str(row["image_id"])))
        with torch.no_grad():
            tokens = model(**processor(image, return_tensors="pt")).last_hidden_state[0].numpy()
        np.testing.assert_allclose(row["features"], tokens[1:].mean(axis=0), atol=1e-5)


def test_another_size_changes_nothing_else(encoders, photos, tmp_path):
    saved = C2FMAEImageProcessor.from_pretrained(encoders["c2fmae"], crop_pct=1.0, resample=2)
    folder = tmp_path / "encoder"
    shutil.copytree(encoders["c2fmae"], folder)
    saved.save_pretrained(folder)
    own = saved.crop_size["height"]
    found = []
    for size in (None, own, 2 * own):
        output = tmp_path / f"{size}.parquet"
        embed(folder, photos, "--output", output, *([] if size is None else ["--image_size", size]))
        found.append(read(output)["features"])
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_whole_photographs_of_different_sizes(encoders, photos, tmp_path):
    """A processor without a central crop, as that of a segmenter, gives images of several sizes."""
    folder = tmp_path / "encoder"
    shutil.copytree(encoders["c2fmae"], folder)
    whole = {"size": {"shortest_edge": 32}, "do_center_crop": False, "size_divisor": 8, "patch_size": 8}
    C2FMAEImageProcessor(**whole).save_pretrained(folder)
    embed(folder, photos, "--output", tmp_path / "together.parquet")
    embed(folder, photos, "--output", tmp_path / "alone.parquet", "--batch_size", 1)
    together, alone = (read(tmp_path / f"{name}.parquet")["features"] for name in ("together", "alone"))
    assert len(together) == 7
    np.testing.assert_allclose(together, alone, atol=1e-5)
    with pytest.raises(ValueError, match=r"features: expected photographs of one size.*; pass --image_size"):
        embed(folder, photos, "--output", tmp_path / "all.parquet", "--features", "patches")


@pytest.mark.parametrize("option", ["--batch_size", "--rows_per_shard", "--num_threads"])
def test_numbers_are_checked_before_anything_is_written(encoders, photos, tmp_path, option):
    with pytest.raises(ValueError, match=rf"{option[2:]}: expected at least 1, got 0"):
        embed(encoders["c2fmae"], photos, "--output", tmp_path / "out", option, 0)
    with pytest.raises(ValueError, match="device: 'nothing' cannot be used"):
        load_command("embed").main([encoders["c2fmae"], str(photos), "--output", "x.parquet", "--device", "nothing"])
    assert not (tmp_path / "out").exists()


def test_a_call_that_failed_does_not_stand_in_the_way(encoders, photos, tmp_path):
    with pytest.raises(ValueError, match="30"):
        embed(encoders["c2fmae"], photos, "--output", tmp_path / "out.parquet", "--image_size", 30)
    embed(encoders["c2fmae"], photos, "--output", tmp_path / "out.parquet")
    assert len(read(tmp_path / "out.parquet")) == 7


def test_a_folder_of_shards_is_a_dataset(encoders, photos, tmp_path):
    """One shard has no image that can be read."""
    for name in ("0", "2"):
        (photos / "dogs" / f"{name}.jpg").write_bytes(b"no image")
    rejected = embed(encoders["c2fmae"], photos, "--output", tmp_path / "out", "--rows_per_shard", 1)
    assert len(rejected) == 2
    assert len(datasets.load_dataset(str(tmp_path / "out"), split="train")) == 5
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="expected at least one image that can be read, got none"):
        embed(encoders["c2fmae"], photos, "--output", tmp_path / "none.parquet")


def test_classes_of_folders_are_kept(encoders, photos, tmp_path):
    embed(encoders["c2fmae"], photos, "--output", tmp_path / "out.parquet", "--class_folders")
    rows = read(tmp_path / "out.parquet")
    assert [int(row["label"]) for row in rows] == [int(str(row["image_id"]).startswith("dogs")) for row in rows]


def test_an_interrupted_job_goes_on(encoders, photos, tmp_path, monkeypatch):
    options = ("--rows_per_shard", 2, "--batch_size", 1)
    embed(encoders["c2fmae"], photos, "--output", tmp_path / "whole.parquet", *options)
    computed: list[int] = []
    compute = embedding._Embedder._features

    def stop_after_three(self, images):
        if len(computed) == 3:
            raise KeyboardInterrupt
        computed.append(len(images))
        return compute(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(embedding._Embedder, "_features", stop_after_three)
        with pytest.raises(KeyboardInterrupt):
            embed(encoders["c2fmae"], photos, "--output", tmp_path / "out.parquet", *options)
    assert not (tmp_path / "out.parquet").exists()
    assert len(list((tmp_path / ".out.parquet.parts").glob("*.parquet"))) == 1
    # Other settings do not mix with what is there.
    with pytest.raises(ValueError, match=r"begun with other settings \(features\)"):
        embed(encoders["c2fmae"], photos, "--output", tmp_path / "out.parquet", *options, "--features", "cls")

    first = sorted(photos.rglob("*.jpg"))[0]
    content = first.read_bytes()
    first.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    with pytest.raises(ValueError, match=r"or id have changed since .*part-00000\.parquet was made"):
        embed(encoders["c2fmae"], photos, "--output", tmp_path / "out.parquet", *options)
    first.write_bytes(content)
    part = tmp_path / ".out.parquet.parts" / "part-00000.parquet"
    shutil.copytree(part.parent, tmp_path / "kept")

    def count(self, images):
        computed.append(len(images))
        return compute(self, images)

    monkeypatch.setattr(embedding._Embedder, "_features", count)
    computed.clear()
    embed(encoders["c2fmae"], photos, "--output", tmp_path / "out.parquet", *options)
    assert sum(computed) == 5  # the first shard's two photographs were done
    assert pq.read_table(tmp_path / "out.parquet").equals(pq.read_table(tmp_path / "whole.parquet"))
    # A part that is gone or has changed, or a note that is no note, is made again; others' files are no parts.
    for name, damage in (
        ("part", lambda folder: (folder / part.name).unlink()),
        ("part", lambda folder: (folder / part.name).write_bytes(b"PAR1" + bytes(99))),
        ("note", lambda folder: next(folder.rglob("part-00000.json")).write_text("{}")),
        ("note", lambda folder: next(folder.rglob("part-00000.json")).write_text('{"rows": "x", "contents": 5}')),
        ("other", lambda folder: shutil.copy(folder / part.name, folder / "part-00009.parquet")),
    ):
        (tmp_path / "out.parquet").unlink()
        shutil.copytree(tmp_path / "kept", part.parent)
        damage(part.parent)
        computed.clear()
        embed(encoders["c2fmae"], photos, "--output", tmp_path / "out.parquet", *options)
        assert sum(computed) == (5 if name == "other" else 7)
        assert pq.read_table(tmp_path / "out.parquet").equals(pq.read_table(tmp_path / "whole.parquet"))
    with pytest.raises(FileExistsError, match="expected a new file"):
        embed(encoders["c2fmae"], photos, "--output", tmp_path / "out.parquet")


def test_what_cannot_be_read_is_named(encoders, photos, tmp_path, caplog):
    (photos / "cats" / "broken.jpg").write_bytes(b"no image")
    main = load_command("embed")
    rejected = embed(encoders["c2fmae"], photos, "--output", tmp_path / "out")
    assert len(rejected) == 1
    assert "broken.jpg" in rejected[0]
    assert "broken.jpg" in caplog.text
    assert main.exit_code(rejected) == 3
    assert main.exit_code([]) == 0
    # A folder of shards stays one, and says so again.
    assert embed(encoders["c2fmae"], photos, "--output", tmp_path / "out") == rejected
    assert read(tmp_path / "out" / "*.parquet").num_rows == 7
    assert json.loads((tmp_path / "out/.embedding/settings.json").read_text())["features"] == "mean"


def test_rows_of_a_dataset(encoders, tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 10, 10)).save(buffer, "PNG")
    rows = [{"image": {"bytes": buffer.getvalue(), "path": None}, "image_id": f"row {i}"} for i in range(3)]
    features = datasets.Features(image=datasets.Image(), image_id=datasets.Value("string"))
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    embed(encoders["c2fmae"], tmp_path / "rows.parquet", "--output", tmp_path / "out.parquet")
    assert list(read(tmp_path / "out.parquet")["image_id"]) == ["row 0", "row 1", "row 2"]
    assert open_source(str(tmp_path / "rows.parquet")).num_records(2) == 3
