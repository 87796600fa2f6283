"""Exports: the model's outputs, at any batch size, in a process that knows nothing of this package."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from c2fmae_hf import (
    C2FMAEBackbone,
    C2FMAEConfig,
    C2FMAEForImageClassification,
    C2FMAEForPreTraining,
    C2FMAEForSemanticSegmentation,
    C2FMAEImageProcessor,
    C2FMAEModel,
)
from c2fmae_hf.interop import export as export_module
from c2fmae_hf.interop.export import compare, export_onnx, export_program, export_pt2
from testing_utils import load_command, with_fields


HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason='ONNX needs the extra: pip install "c2fmae-hf[all]"')
FORMATS = [pytest.param(export_pt2, "model.pt2"), pytest.param(export_onnx, "model.onnx", marks=needs_onnx)]
each_format = pytest.mark.parametrize(("export", "name"), FORMATS)

RUN_PT2 = """
import json, sys, torch
from torch.export import load
path, inputs, outputs = sys.argv[1:]
extra_files = {"metadata.json": ""}
program = load(path, extra_files=extra_files).module()
results = [program(images) for images in torch.load(inputs)]
assert not any(value.requires_grad for result in results for value in result.values())
torch.save((results, json.loads(extra_files["metadata.json"])), outputs)
assert not {"c2fmae_hf", "transformers", "torchvision"} & set(sys.modules)
"""
RUN_ONNX = """
import sys, numpy, onnxruntime
path, inputs, outputs = sys.argv[1:]
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
results = {}
for index, images in numpy.load(inputs).items():
    for name, value in zip(names, session.run(None, {session.get_inputs()[0].name: images})):
        results[f"{index}/{name}"] = value
numpy.savez(outputs, **results)
assert not {"c2fmae_hf", "transformers", "torch", "onnx"} & set(sys.modules)
"""


@pytest.fixture
def shallow(config) -> C2FMAEConfig:
    """For what another block would not change."""
    return with_fields(config, num_hidden_layers=1)


def make_model(kind: str, config: C2FMAEConfig):
    """A model whose biases and norms are not at their initial zeros and ones, and whose head is not near zero."""
    config = copy.deepcopy(config)
    if kind == "cls":
        config.pooling = "cls"
    elif kind == "portrait":
        config.image_size = [48, 24]
    config.id2label = {0: "ant", 1: "bee", 2: "cicada"}
    classes = {"classifier": C2FMAEForImageClassification, "segmenter": C2FMAEForSemanticSegmentation}
    model = classes.get(kind, C2FMAEModel)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model


def run_elsewhere(code: str, *paths: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@each_format
@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        pytest.param("mean", "sdpa", marks=pytest.mark.slow),  # as the classifier, but for the head
        pytest.param("mean", "eager", marks=pytest.mark.slow),
        pytest.param("cls", "sdpa", marks=pytest.mark.slow),
        ("portrait", "eager"),
        ("classifier", "sdpa"),
        ("segmenter", "eager"),
    ],
)
def test_same_outputs(tmp_path, config, export, name, kind, attention):
    model = make_model(kind, config)
    model.set_attn_implementation(attention)
    assert export(model, tmp_path / name) <= 1e-4
    # Batch sizes that neither the trace nor the verification saw.
    assert compare(model, tmp_path / name, batch_sizes=(3, 8), seed=1) <= 1e-4
    assert [path.name for path in tmp_path.iterdir()] == [name]


@each_format
def test_another_image_size(tmp_path, shallow, export, name):
    model = make_model("classifier", shallow)
    images = torch.randn(3, 3, 24, 56)
    assert export(model, tmp_path / name, image_size=(24, 56), pixel_values=images) <= 1e-4
    assert model.config.image_height_width == (32, 32)
    assert model.c2fmae.pos_embed.shape[1] == 17
    with pytest.raises(ValueError, match=r"pixel_values: expected images of shape \(3, 24, 56\), got \(3, 32, 32\)"):
        compare(model, tmp_path / name, pixel_values=torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("image_size", [(24, 30), (0, 32)])
def test_an_image_size_that_does_not_fit(config, image_size):
    with pytest.raises(ValueError, match="image_size: expected multiples of patch_size=8"):
        export_program(C2FMAEModel(config), image_size=image_size)


def test_program_has_named_inputs_and_outputs_and_no_local_paths(tmp_path, config):
    program = export_program(make_model("mean", config))
    assert list(program.graph_signature.user_inputs) == ["pixel_values"]
    outputs = program.module()(torch.zeros(1, 3, 32, 32))
    assert {key: tuple(value.shape) for key, value in outputs.items()} == {
        "last_hidden_state": (1, 17, 32),
        "pooler_output": (1, 32),
    }
    torch.export.save(program, tmp_path / "model.pt2")
    assert str(Path(export_module.__file__).parent).encode() not in (tmp_path / "model.pt2").read_bytes()


def test_pt2_runs_without_this_package(tmp_path, config):
    model = make_model("classifier", config)
    export_pt2(model, tmp_path / "model.pt2", processor=C2FMAEImageProcessor.from_config(config))
    batches = [torch.randn(size, 3, 32, 32) for size in (1, 4)]
    torch.save(batches, tmp_path / "inputs.pt")
    run_elsewhere(RUN_PT2, tmp_path / "model.pt2", tmp_path / "inputs.pt", tmp_path / "outputs.pt")
    results, metadata = torch.load(tmp_path / "outputs.pt")
    with torch.no_grad():
        for images, result in zip(batches, results):
            torch.testing.assert_close(result, {"logits": model.eval()(images).logits}, atol=1e-4, rtol=0)
    assert metadata == {
        "model_type": "c2fmae",
        "architecture": "C2FMAEForImageClassification",
        "image_size": [32, 32],
        "id2label": {"0": "ant", "1": "bee", "2": "cicada"},
        "pixel_mean": [0.485, 0.456, 0.406],
        "pixel_std": [0.229, 0.224, 0.225],
    }


@needs_onnx
def test_onnx_runs_without_torch(tmp_path, shallow):
    model = make_model("mean", shallow)
    export_onnx(model, tmp_path / "model.onnx")
    batches = {str(size): torch.randn(size, 3, 32, 32) for size in (1, 4)}
    np.savez(tmp_path / "inputs.npz", **{key: images.numpy() for key, images in batches.items()})
    run_elsewhere(RUN_ONNX, tmp_path / "model.onnx", tmp_path / "inputs.npz", tmp_path / "outputs.npz")
    results = np.load(tmp_path / "outputs.npz")
    assert len(results) == 4
    with torch.no_grad():
        for key, images in batches.items():
            expected = model.eval()(images)
            for name in ("last_hidden_state", "pooler_output"):
                np.testing.assert_allclose(results[f"{key}/{name}"], expected[name].numpy(), atol=1e-4, rtol=0)


@needs_onnx
def test_what_an_onnx_file_says_of_itself(tmp_path, shallow):
    import onnx

    path = tmp_path / "model.onnx"
    export_onnx(make_model("segmenter", shallow), path, (24, 56), C2FMAEImageProcessor.from_config(shallow))
    file = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in file.opset_import] == [("", export_module.OPSET)]
    metadata = {entry.key: entry.value for entry in file.metadata_props}
    assert metadata["model_type"] == "c2fmae"
    assert metadata["architecture"] == "C2FMAEForSemanticSegmentation"
    assert json.loads(metadata["image_size"]) == [24, 56]
    assert json.loads(metadata["id2label"]) == {"0": "ant", "1": "bee", "2": "cicada"}
    assert json.loads(metadata["pixel_mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(metadata["pixel_std"]) == [0.229, 0.224, 0.225]
    shapes = {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*file.graph.input, *file.graph.output)
    }
    assert shapes == {"pixel_values": ["batch", 3, 24, 56], "logits": ["batch", 3, 12, 28]}
    # The position table is resampled at export, and nothing tells where that was.
    assert not {"Resize", "RandomUniform", "RandomNormal", "Dropout"} & {node.op_type for node in file.graph.node}
    assert str(Path(export_module.__file__).parent).encode() not in path.read_bytes()


@each_format
def test_random_layers_are_off_and_the_model_stays_as_it_is(tmp_path, config, export, name):
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = config.drop_path_rate = 0.5
    model = make_model("classifier", config).train()
    model.c2fmae.norm.eval()
    model.set_attn_implementation("flex_attention")
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    assert export(model, tmp_path / name, image_size=(16, 16)) <= 1e-4
    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == "flex_attention"
    assert [name for name, one in model.named_parameters() if not one.requires_grad] == ["c2fmae.pos_embed"]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_program_has_weights_of_its_own(config):
    model = make_model("mean", config)
    program = export_program(model)
    with torch.no_grad():
        model.norm.weight.add_(1)
    with pytest.raises(ValueError, match=r"last_hidden_state: expected the model's values to 0\.0001, got a diff"):
        compare(model, program)


@pytest.mark.parametrize(
    ("export", "name", "dtype"),
    [
        (export_pt2, "model.pt2", torch.bfloat16),
        pytest.param(export_onnx, "model.onnx", torch.float16, marks=needs_onnx),
    ],
)
def test_half_precision_is_widened(tmp_path, shallow, export, name, dtype):
    model = make_model("classifier", shallow).to(dtype)
    wide = copy.deepcopy(model).float()
    export(model, tmp_path / name)
    assert compare(wide, tmp_path / name) <= 1e-4
    assert model.dtype == dtype


@each_format
@pytest.mark.parametrize("model_class", [C2FMAEForPreTraining, C2FMAEBackbone, torch.nn.Linear])
def test_other_models_are_refused(tmp_path, config, export, name, model_class):
    model = torch.nn.Linear(2, 2) if model_class is torch.nn.Linear else model_class(config)
    expected = rf"model: expected one of \['C2FMAEModel', .*, got {model_class.__name__}"
    if model_class is C2FMAEForPreTraining:
        expected += r"; .*image_encoder\(\)"
        assert compare(model.image_encoder(), export_program(model.image_encoder())) <= 1e-4
    with pytest.raises(ValueError, match=expected):
        export(model, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("export", "name"),
    [
        (export_pt2, "model.pt2"),
        # Each export takes seconds, and test_weights_beside_a_large_file fails with it.
        pytest.param(export_onnx, "model.onnx", marks=[needs_onnx, pytest.mark.slow]),
    ],
)
def test_a_failed_verification_leaves_what_was_there(tmp_path, monkeypatch, shallow, export, name):
    model, other = make_model("classifier", shallow), make_model("mean", shallow)

    def export_and_fail(model):
        with monkeypatch.context() as broken:
            # No difference is small enough.
            broken.setattr(compare, "__defaults__", (None, (1, 2, 5), 0, -1.0))
            export(model, tmp_path / name)

    with pytest.raises(ValueError, match="expected the model's values"):
        export_and_fail(model)
    assert not list(tmp_path.iterdir())
    export(model, tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="expected the model's values"):
        export_and_fail(other)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert compare(model, tmp_path / name) <= 1e-4


@pytest.mark.slow
@needs_onnx
def test_weights_beside_a_large_file(tmp_path, monkeypatch, shallow):
    monkeypatch.setattr(export_module, "_LARGEST_FILE", 0)
    path, data = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    for _ in range(2):
        model = make_model("mean", shallow)
        assert export_onnx(model, path) <= 1e-4
        assert {file.name for file in tmp_path.iterdir()} == {path.name, data.name}
    assert data.stat().st_size > path.stat().st_size / 2
    # Both can be moved together.
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in (path, data):
        file.rename(moved / file.name)
    assert compare(model, moved / "model.onnx") <= 1e-4
    # An earlier file does not stay to read the weights of one that fails.
    monkeypatch.setattr(compare, "__defaults__", (None, (1, 2, 5), 0, -1.0))
    with pytest.raises(ValueError, match="expected the model's values"):
        export_onnx(model, moved / "model.onnx")
    assert [file.name for file in moved.iterdir()] == ["model.onnx.data"]


def test_not_a_number_is_a_difference(config):
    model = C2FMAEModel(config)
    program = export_program(model)
    with torch.no_grad():
        model.norm.bias[0] = torch.nan
    with pytest.raises(ValueError, match="got a difference of nan"):
        compare(model, program)


def test_another_model_s_outputs(config):
    program = export_program(make_model("segmenter", config))
    with pytest.raises(ValueError, match=r"exported: expected outputs of shapes \{'logits': \(1, 3\)\}, got"):
        compare(make_model("classifier", config), program)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages(tmp_path, monkeypatch, config, missing):
    for name in ("onnx", "onnx_ir", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None if name == missing else sys)
    with pytest.raises(ImportError, match=rf'needs {missing}: pip install "c2fmae-hf\[all\]"'):
        export_onnx(C2FMAEModel(config), tmp_path / "model.onnx")


@pytest.fixture
def export_model():
    return load_command("export")


@needs_onnx
def test_command(tmp_path, capsys, shallow, export_model):
    model = make_model("classifier", shallow)
    model.save_pretrained(tmp_path / "model")
    C2FMAEImageProcessor.from_config(shallow).save_pretrained(tmp_path / "model")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    arguments = [str(tmp_path / "model"), str(tmp_path / "out"), "--image", str(tmp_path / "p.png")]
    differences = export_model.main([*arguments, "--image_size", "24", "40"])
    assert set(differences) == {"onnx", "pt2"}
    assert max(differences.values()) <= 1e-4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", "model.pt2"}
    printed = capsys.readouterr().out
    assert len(re.findall(r"^  \S+/model\.\w+: \S+ MB, largest difference \S+$", printed, re.MULTILINE)) == 2
    assert "\nResults:\n" in printed
    uses = re.findall(r"in Python, with \S+:\n((?:    .+\n){3})", printed)
    assert len(uses) == 2
    for code in uses:
        values: dict = {}
        exec(textwrap.dedent(code), values)
        outputs = values["outputs"]
        assert (outputs["logits"] if isinstance(outputs, dict) else outputs[0]).shape == (1, 3)


def test_command_without_a_processor(tmp_path, config, export_model):
    make_model("mean", config).save_pretrained(tmp_path / "model")
    assert set(export_model.main([str(tmp_path / "model"), str(tmp_path / "out"), "--format", "pt2"])) == {"pt2"}
    assert compare(C2FMAEModel.from_pretrained(tmp_path / "model"), tmp_path / "out" / "model.pt2") <= 1e-4


def test_command_takes_the_encoder_of_pre_training_models(tmp_path, model, export_model, capsys):
    model.save_pretrained(tmp_path / "model")
    export_model.main([str(tmp_path / "model"), str(tmp_path / "out"), "--format", "pt2"])
    assert "only its encoder is exported" in capsys.readouterr().out
    assert compare(model.image_encoder(), tmp_path / "out/model.pt2") <= 1e-4


def test_command_says_what_is_wrong_in_a_line(tmp_path, config, export_model):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.png").write_bytes(b"not a picture")
    vit = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16)
    ViTModel(vit).save_pretrained(tmp_path / "vit")
    make_model("mean", config).save_pretrained(tmp_path / "model")
    for name, options, message in (
        ("not/there/at all", [], "expected a folder or a name on the Hub, found no such folder"),
        ("empty", [], r"config\.json: expected a saved model, found nothing"),
        ("vit", [], "expected a model of c2fmae_hf, got ViTModel"),
        ("model", ["--image_size", "33", "40"], "image_size"),
        ("model", ["--image", str(tmp_path / "photo.png")], "photo.png"),
        ("model", ["--image", str(tmp_path / "damaged.png")], r"damaged\.png: cannot be opened"),
    ):
        with pytest.raises((OSError, ValueError), match=message):
            export_model.main([str(tmp_path / name), str(tmp_path / "out"), "--format", "pt2", *options])
    with pytest.raises(FileNotFoundError, match=r"nowhere/a\.pt2: expected a path in an existing folder"):
        export_pt2(make_model("mean", config), tmp_path / "nowhere/a.pt2")
