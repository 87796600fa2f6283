"""A published repository: its files, and what loads them. No hub is needed for that."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoBackbone,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    TimmWrapperForImageClassification,
    pipeline,
)

from c2fmae_hf import (
    C2FMAEBackbone,
    C2FMAEConfig,
    C2FMAEForImageClassification,
    C2FMAEForPreTraining,
    C2FMAEForSemanticSegmentation,
    C2FMAEImageProcessor,
    C2FMAEModel,
    MaskRCNNForObjectDetection,
)
from c2fmae_hf.publishing.repository import AUTO_CLASSES, check_saved, load_saved, save_repository
from c2fmae_hf.transfer.detection import build_mask_rcnn
from testing_utils import randomized, require_timm_local_dir, with_fields
from transfer_utils import save_encoders


CLASSES = {
    C2FMAEModel: {"model.safetensors"},
    C2FMAEForPreTraining: {"model.safetensors", "decoder.safetensors"},
    C2FMAEForImageClassification: {"model.safetensors"},
    C2FMAEForSemanticSegmentation: {"model.safetensors", "decode_head.safetensors"},
    C2FMAEBackbone: {"model.safetensors", "fpn.safetensors"},
}
NAMES = {0: "cat", 1: "dog", 2: "owl"}


def build(model_class, config, **fields):
    if model_class is C2FMAEBackbone:
        fields.update(add_fpn=True, out_indices=[1], out_features=None)
    fields = {"id2label": NAMES, "label2id": {name: index for index, name in NAMES.items()}, **fields}
    return randomized(model_class(with_fields(config, **fields)))


def processor_of(model):
    return C2FMAEImageProcessor.from_config(model.config, image_mean=[0.1, 0.2, 0.3], size={"shortest_edge": 40})


@pytest.fixture
def pixels(config):
    return torch.randn(2, 3, *config.image_height_width)


@pytest.mark.parametrize("model_class", CLASSES, ids=lambda c: c.__name__)
def test_the_class_itself_comes_back(model_class, config, tmp_path):
    model = build(model_class, config)
    files = save_repository(model, tmp_path / "one", processor_of(model))
    assert {name for name in files if name.endswith(".safetensors")} == CLASSES[model_class]
    assert {"LICENSE", "config.json", "preprocessor_config.json", "modeling_c2fmae.py"} <= set(files)
    loaded, processor = load_saved(tmp_path / "one")
    assert type(loaded) is model_class
    assert isinstance(processor, C2FMAEImageProcessor)
    first, second = model.state_dict(), loaded.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    # What was published can be published again, and saved in one file, from which a Trainer resumes.
    save_repository(loaded, tmp_path / "two", processor)
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    loaded.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved/model.safetensors")
    published = {
        name: value for file in CLASSES[model_class] for name, value in load_file(tmp_path / "one" / file).items()
    }
    assert saved.keys() == published.keys()
    fresh = build(model_class, config)
    fresh.load_state_dict(saved)
    assert all(torch.equal(first[name], value) for name, value in fresh.state_dict().items())
    saved = json.loads((tmp_path / "saved/config.json").read_text())
    assert "transformers_weights" not in saved


@require_timm_local_dir
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("model_class", CLASSES, ids=lambda c: c.__name__)
def test_stock_timm_and_automodel_load_the_encoder_of_all(model_class, pooling, config, pixels, tmp_path):
    model = build(model_class, config, pooling=pooling)
    save_repository(model, tmp_path / "repository", processor_of(model))
    encoder = getattr(model, "c2fmae", model)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'repository'}", pretrained=True).eval()
    ours = AutoModel.from_pretrained(tmp_path / "repository").eval()
    with torch.no_grad():
        expected = encoder(pixels)
        assert torch.equal(ours(pixels).last_hidden_state, expected.last_hidden_state)
        torch.testing.assert_close(theirs.forward_features(pixels), expected.last_hidden_state, atol=1e-5, rtol=0)
        if model_class is C2FMAEForImageClassification:
            torch.testing.assert_close(theirs(pixels), model(pixels).logits, atol=1e-5, rtol=0)
            assert theirs.pretrained_cfg["label_names"] == list(NAMES.values())
        else:
            torch.testing.assert_close(theirs(pixels), expected.pooler_output, atol=1e-5, rtol=0)
    data = timm.data.resolve_model_data_config(theirs)
    assert tuple(data["mean"]) == (0.1, 0.2, 0.3)
    assert data["crop_pct"] == 0.8


def test_auto_classes_and_pipelines(config, tmp_path):
    folder = tmp_path / "whole"
    model = build(C2FMAEForPreTraining, config)
    save_repository(model, folder, processor_of(model))
    assert isinstance(AutoModelForPreTraining.from_pretrained(folder), C2FMAEForPreTraining)
    for auto_class in (AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation, AutoBackbone):
        if auto_class is AutoBackbone:
            loaded = C2FMAEBackbone.from_pretrained(folder)  # the library's AutoBackbone takes no local folders
        else:
            loaded = auto_class.from_pretrained(folder)
        assert type(loaded) is AUTO_CLASSES[auto_class.__name__]
        assert torch.equal(getattr(loaded, "c2fmae", loaded).cls_token, model.c2fmae.cls_token)
    image = Image.new("RGB", (50, 60), (200, 100, 50))
    features = pipeline("image-feature-extraction", str(folder))(image)
    assert len(features[0]) == 1 + config.num_patches
    model = build(C2FMAEForImageClassification, config)
    save_repository(model, tmp_path / "classifier", processor_of(model))
    assert {entry["label"] for entry in pipeline("image-classification", str(tmp_path / "classifier"))(image)} == set(
        NAMES.values()
    )
    model = build(C2FMAEForSemanticSegmentation, config)
    save_repository(model, tmp_path / "segmenter", processor_of(model))
    for segment in pipeline("image-segmentation", str(tmp_path / "segmenter"))(image):
        assert segment["label"] in NAMES.values()


def test_a_classifier_s_head_is_new_for_another_class_and_trains_on(config, tmp_path):
    model = build(C2FMAEForImageClassification, config)
    save_repository(model, tmp_path / "classifier")
    segmenter = C2FMAEForSemanticSegmentation.from_pretrained(tmp_path / "classifier")
    assert torch.equal(segmenter.c2fmae.cls_token, model.c2fmae.cls_token)
    other = C2FMAEForImageClassification.from_pretrained(
        tmp_path / "classifier", num_labels=5, ignore_mismatched_sizes=True
    )
    assert other.classifier.out_features == 5
    with pytest.raises(ValueError, match="not a pre-training checkpoint"):
        C2FMAEForPreTraining.from_pretrained(tmp_path / "classifier")


def test_what_timm_cannot_express_is_saved_whole(config, tmp_path):
    model = build(C2FMAEForPreTraining, config, input_granularities=["semantic", "image"])
    files = save_repository(model, tmp_path / "repository", processor_of(model))
    assert [name for name in files if name.endswith(".safetensors")] == ["model.safetensors"]
    assert "pretrained_cfg" not in json.loads((tmp_path / "repository/config.json").read_text())
    loaded, _ = load_saved(tmp_path / "repository")
    first, second = model.state_dict(), loaded.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_models_on_the_encoder(tmp_path):
    names = save_encoders(tmp_path / "encoders")
    small = {"pyramid_channels": 16, "box_hidden_size": 16, "num_mask_convolutions": 1}
    model = build_mask_rcnn(names["c2fmae"], {0: "disc"}, image_size=32, **small)
    files = save_repository(model, tmp_path / "repository")
    assert "modeling_c2fmae.py" not in files
    loaded, processor = load_saved(tmp_path / "repository")
    assert isinstance(loaded, MaskRCNNForObjectDetection)
    assert processor is None
    first, second = model.state_dict(), loaded.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


# What does not fit


def test_a_folder_with_files_is_left_alone(config, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="expected an empty folder"):
        save_repository(build(C2FMAEModel, config), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_processor_must_be_the_model_s(config, tmp_path):
    model = build(C2FMAEModel, config)
    with pytest.raises(ValueError, match=r"processor.patch_size: expected the model's 8, got 16"):
        save_repository(model, tmp_path / "a", C2FMAEImageProcessor())
    with pytest.raises(ValueError, match=r"image_mean: expected a number for each of 3 channels, got \[0.5\]"):
        save_repository(model, tmp_path / "b", C2FMAEImageProcessor.from_config(model.config, image_mean=[0.5]))


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json: expected a saved model, found nothing"):
        load_saved(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "c2fmae", "architectures": ["NoSuchModel"]}')
    with pytest.raises(ValueError, match=r"architectures: expected the name of a model .* got 'NoSuchModel'"):
        load_saved(tmp_path)
    for name in ("pipeline", "C2FMAEConfig"):  # of the libraries, but no models
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "c2fmae", "architectures": [name]}))
        with pytest.raises(ValueError, match=rf"expected the name of a model .* got '{name}'"):
            load_saved(tmp_path)
    for content in ("{", "[]", '{"architectures": ["C2FMAEModel"]}', '{"model_type": "c2fmae", "hidden_size": "x"}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"config\.json: expected (a model's configuration|JSON|a JSON object)"):
            load_saved(tmp_path)


def test_weights_that_are_not_all_there_are_not_made_up(config, tmp_path):
    build(C2FMAEForImageClassification, config).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: weights[name] for name in weights if not name.startswith("head")}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"expected all weights of C2FMAEForImageClassification, missing: \['classifier"
    ):
        load_saved(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match=r"expected a whole safetensors file"):
        load_saved(tmp_path)


@pytest.mark.parametrize(
    ("fields", "mean", "std"),
    [
        ({"do_normalize": False}, 0.0, 1.0),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3}, 0.5, 0.2),
        ({"do_rescale": False, "do_normalize": False}, 0.0, 1 / 255),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, 0.5, 0.5),
    ],
    ids=["not normalised", "not rescaled", "neither", "another scale"],
)
def test_timm_is_told_what_the_processor_does(config, tmp_path, fields, mean, std):
    model = build(C2FMAEModel, config)
    processor = C2FMAEImageProcessor.from_config(model.config, resample=2, **fields)
    save_repository(model, tmp_path, processor)
    image = Image.effect_noise((60, 50), 60).convert("RGB")
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["image_mean"], saved["image_std"]) == (pytest.approx([mean] * 3), pytest.approx([std] * 3))
    data_config = timm.data.resolve_data_config(pretrained_cfg=saved["pretrained_cfg"])
    expected = timm.data.create_transform(**data_config, is_training=False)(image)
    found = processor(image, return_tensors="pt")["pixel_values"][0]
    assert (found - expected).abs().max() <= 2 / 255 / std  # two steps of 8-bit pixels


def test_what_timm_cannot_do_with_an_image_that_is_not_square_is_told(config, tmp_path, caplog):
    for name, size in (("square", [32, 32]), ("wide", [32, 64])):
        caplog.clear()
        model = build(C2FMAEModel, C2FMAEConfig(**{**config.to_dict(), "image_size": size}))
        save_repository(model, tmp_path / name, C2FMAEImageProcessor.from_config(model.config))
        assert ("timm resizes to cover a crop that is not square" in caplog.text) is (name == "wide")


# Without this package

SCRIPT = """
import importlib.util, sys, timm, torch
assert importlib.util.find_spec("c2fmae_hf") is None
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining, TimmWrapperModel, ViTMAEModel
folder, inputs, outputs, takes_folders = sys.argv[1:]
tensors = load_file(inputs)
with torch.no_grad():
    wrapped = TimmWrapperModel.from_pretrained(folder).eval()(tensors["pixels"])
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    whole = AutoModelForPreTraining.from_pretrained(folder, trust_remote_code=True).eval()
    found = {
        "wrapper": wrapped.last_hidden_state,
        "own code": model(tensors["pixels"]).last_hidden_state,
        "whole": whole(tensors["pixels"], bool_masked_pos=tensors["mask"] > 0).image_logits,
        "pixels": AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)(
            tensors["photo"].byte(), return_tensors="pt"
        )["pixel_values"],
    }
    if takes_folders == "True":
        encoder = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        found["timm"] = encoder.forward_features(tensors["pixels"])
save_file({name: value.contiguous() for name, value in found.items()}, outputs)
whole.save_pretrained(f"{outputs}-saved")
again = type(whole).from_pretrained(f"{outputs}-saved")
assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
try:
    AutoModel.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    print(error)
"""


def test_stock_libraries_need_no_package(config, pixels, tmp_path, python_without_package):
    model = build(C2FMAEForPreTraining, config)
    processor = processor_of(model)
    save_repository(model, tmp_path / "repository", processor)
    photo = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8)
    mask = torch.zeros(2, config.num_patches)
    mask[:, ::2] = 1
    tensors = {"pixels": pixels, "mask": mask, "photo": photo.float()}
    save_file(tensors, tmp_path / "in.safetensors")
    arguments = [str(tmp_path / name) for name in ("repository", "in.safetensors", "out.safetensors")]
    arguments.append(str(not require_timm_local_dir.args[0]))
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    process = subprocess.run(
        [python_without_package, "-c", SCRIPT, *arguments],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert "trust_remote_code=True" in process.stdout
    found = load_file(tmp_path / "out.safetensors")
    with torch.no_grad():
        features = model.c2fmae(pixels).last_hidden_state
        logits = model(pixels, bool_masked_pos=mask > 0).image_logits
    for name in ("wrapper", "own code", *(["timm"] if "timm" in found else [])):
        torch.testing.assert_close(found[name], features, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["whole"], logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["pixels"], processor(photo, return_tensors="pt")["pixel_values"])


def test_code_is_left_out_on_request(config, tmp_path):
    files = save_repository(build(C2FMAEModel, config), tmp_path / "repository", custom_code=False)
    assert not [name for name in files if name.endswith(".py")]
    assert "auto_map" not in json.loads((tmp_path / "repository/config.json").read_text())


def test_as_many_classes_as_imagenet_are_not_taken_for_imagenet_s(config, tmp_path):
    names = {index: f"fungus {index}" for index in range(1000)}
    model = build(C2FMAEForImageClassification, config, id2label=names, label2id={n: i for i, n in names.items()})
    save_repository(model, tmp_path / "repository", processor_of(model))
    wrapper = TimmWrapperForImageClassification.from_pretrained(tmp_path / "repository")
    assert wrapper.config.id2label == names


def test_a_key_mapping_is_added_to_the_class_s_own(config, tmp_path):
    model = build(C2FMAEForImageClassification, config)
    save_repository(model, tmp_path / "repository")
    loaded = C2FMAEForImageClassification.from_pretrained(tmp_path / "repository", key_mapping={"^nothing": "x"})
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("preprocessor_config.json", b'{"image_mean": [0, 0'),
        ("preprocessor_config.json", b"[]"),
        ("preprocessor_config.json", b"{}"),
        ("preprocessor_config.json", b""),
        ("preprocessor_config.json", b'{"a": "\xe9"}'),
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("model.safetensors", b"\x08"),
    ],
)
def test_a_damaged_file_of_a_model_is_named(config, tmp_path, name, content):
    """And not passed over: another processor would make other features."""
    C2FMAEModel(config).save_pretrained(tmp_path)
    C2FMAEImageProcessor.from_config(config).save_pretrained(tmp_path)
    check_saved(str(tmp_path))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path / name))}: expected "):
        check_saved(str(tmp_path))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / name))):
        load_saved(tmp_path)
