"""Train, publish and load by name, with and without this package, over HTTP from a Hub on loopback."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from c2fmae_hf import (
    C2FMAEConfig,
    C2FMAEForImageClassification,
    C2FMAEForPreTraining,
    C2FMAEImageProcessor,
    C2FMAEModel,
)
from c2fmae_hf.publishing.fingerprints import encoder_fingerprint
from hub_clients import command
from hub_faults import OFFLINE, PUSH, TOKENS, check_repositories
from hub_state import Account, File, HubState, Refusal, Repository
from testing_utils import make_rows


TOKEN = TOKENS["writer"]


def run(scene, script, *arguments, token=TOKEN, **options):
    """Run a script that must succeed, and check the Hub afterwards."""
    result = scene.clients.run(script, *arguments, token=token, **options)
    assert result.code == 0, result.err[-3000:]
    assert not any(secret in result.out + result.err for secret in TOKENS.values())
    assert scene.hub.unknown == []
    check_repositories(scene.hub)
    return result.out


# Train, publish, load

# tests/test_repository.py loads a folder where the package is not installed.
WITHOUT_PACKAGE = """
import importlib.util, sys, timm, torch
sys.modules["c2fmae_hf"] = None
assert importlib.util.find_spec("c2fmae_hf") is None
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining, TimmWrapperModel
inputs, outputs, *names = sys.argv[1:]
pixels, found = load_file(inputs)["pixels"], {}
with torch.no_grad():
    for name in names:
        encoder = timm.create_model(f"hf-hub:{name}", pretrained=True).eval()
        found[f"timm {name}"] = encoder.forward_features(pixels)
        found[f"wrapper {name}"] = TimmWrapperModel.from_pretrained(name).eval()(pixels).last_hidden_state
        model = AutoModel.from_pretrained(name, trust_remote_code=True).eval()
        assert type(model).__module__.startswith("transformers_modules.")
        found[f"code {name}"] = model(pixels).last_hidden_state
        AutoModelForPreTraining.from_pretrained(name, trust_remote_code=True)
        AutoImageProcessor.from_pretrained(name, trust_remote_code=True)
save_file({name: value.contiguous() for name, value in found.items()}, outputs)
"""


def write_recipe(folder, **values):
    rows = make_rows(8, size=72)
    datasets.DatasetDict({"train": rows, "validation": rows.select(range(4))}).save_to_disk(folder / "rows")
    recipe = {
        "dataset_name": str(folder / "rows"),
        "output_dir": str(folder / "run"),
        "size": "tiny",
        "image_size": 64,
        "config_overrides": {"num_hidden_layers": 2, "mask_ratio": 0.6},
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "num_drawn": 0,
        "use_cpu": True,
        "disable_tqdm": True,
        **values,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def test_trained_models_load_by_name(hub_scene, tmp_path):
    recipe = write_recipe(tmp_path, push_to_hub=True, hub_model_id="me/trained")
    run(hub_scene, command("pretrain"), recipe)
    folder = tmp_path / "run/c2fmae-vit-tiny-pretraining"
    out = run(hub_scene, PUSH, folder, "me/pushed")
    trained, pushed = (hub_scene.hub.repositories[f"me/{name}"] for name in ("trained", "pushed"))
    assert f"{hub_scene.hub.url}/me/pushed/commit/{pushed.at('main').oid}" in out.split()
    for repository in (trained, pushed):
        assert [commit.title for commit in repository.commits.values()][1:] in (
            ["End of training"],
            ["Upload C2FMAEForPreTraining"],
        )
        assert set(repository.files) >= {
            "README.md",
            "LICENSE",
            "config.json",
            "decoder.safetensors",
            "model.safetensors",
            "modeling_c2fmae.py",
            "preprocessor_config.json",
            "runs/training/run.json",
            "runs/training/trainer_state.json",
        }
    for name in ("model.safetensors", "decoder.safetensors"):
        assert trained.files[name] == pushed.files[name]
    configs = [json.loads(repository.files["config.json"]) for repository in (trained, pushed)]
    configs[0].pop("use_cache", None)  # the library's Trainer sets it while it has the model
    assert configs[0] == configs[1]

    pixels = torch.randn(2, 3, 64, 64)
    save_file({"pixels": pixels}, tmp_path / "in.safetensors")
    names = ("me/trained", "me/pushed")
    run(hub_scene, WITHOUT_PACKAGE, tmp_path / "in.safetensors", tmp_path / "out.safetensors", *names, token=None)
    model = C2FMAEForPreTraining.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model.c2fmae(pixels).last_hidden_state
    found = load_file(tmp_path / "out.safetensors")
    assert len(found) == 6
    for value in found.values():
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=0)


# All classes

PUBLISH = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
import c2fmae_hf
from c2fmae_hf import *
from c2fmae_hf.transfer.detection import build_mask_rcnn
folder = Path(sys.argv[1])
names = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}
saved = C2FMAEForPreTraining.from_pretrained(folder / "whole")
derived = ("add_fpn", "out_features", "out_indices")
fields = {key: value for key, value in saved.config.to_dict().items() if key not in derived}
torch.manual_seed(1)
models = {
    "whole": saved,
    "classifier": C2FMAEForImageClassification(C2FMAEConfig(**{**fields, **names})),
    "segmenter": C2FMAEForSemanticSegmentation(C2FMAEConfig(**{**fields, **names})),
    "backbone": C2FMAEBackbone(C2FMAEConfig(**fields, add_fpn=True, out_indices=[1])),
}
pixels, outputs = torch.randn(2, 3, 32, 32), {}
processor = C2FMAEImageProcessor.from_config(saved.config)
for name, model in models.items():
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    info = model.eval().push_to_hub(f"me/{name}", processor=None if name == "segmenter" else processor)
    assert info.oid
    with torch.no_grad():
        outputs[name] = getattr(model, "c2fmae", model)(pixels)[0] if name == "whole" else model(pixels)
small = {"pyramid_channels": 16, "box_hidden_size": 16, "num_mask_convolutions": 1}
detector = build_mask_rcnn(folder / "whole", {0: "disc"}, image_size=32, **small)
detector.push_to_hub("me/detector")
outputs["classifier"] = outputs["classifier"].logits
outputs["segmenter"] = outputs["segmenter"].logits
outputs["backbone"] = outputs["backbone"].feature_maps[0]
tensors = {f"detector.{name}": value for name, value in detector.state_dict().items()}
tensors.update(outputs, pixels=pixels)
save_file({name: value.contiguous().clone() for name, value in tensors.items()}, sys.argv[2])
"""
LOAD_ALL = """
import sys, timm, torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining,
    AutoModelForSemanticSegmentation, pipeline,
)
import c2fmae_hf
from c2fmae_hf import *
expected = load_file(sys.argv[1])
pixels = expected["pixels"]
close = lambda one, other: torch.testing.assert_close(one, expected[other], atol=1e-5, rtol=0)
with torch.no_grad():
    close(AutoModel.from_pretrained("me/whole").eval()(pixels).last_hidden_state, "whole")
    close(AutoModelForPreTraining.from_pretrained("me/whole").eval().c2fmae(pixels).last_hidden_state, "whole")
    close(timm.create_model("hf-hub:me/whole", pretrained=True).eval().forward_features(pixels), "whole")
    classifier = AutoModelForImageClassification.from_pretrained("me/classifier").eval()
    close(classifier(pixels).logits, "classifier")
    close(timm.create_model("hf-hub:me/classifier", pretrained=True).eval()(pixels), "classifier")
    close(AutoModelForSemanticSegmentation.from_pretrained("me/segmenter").eval()(pixels).logits, "segmenter")
    backbone = AutoBackbone.from_pretrained("me/backbone").eval()
    assert type(backbone) is C2FMAEBackbone
    close(backbone(pixels).feature_maps[0], "backbone")
for name in ("whole", "classifier", "segmenter", "backbone"):
    assert type(AutoConfig.from_pretrained(f"me/{name}")) is C2FMAEConfig
    assert type(AutoImageProcessor.from_pretrained(f"me/{name}")) is C2FMAEImageProcessor
detector = MaskRCNNForObjectDetection.from_pretrained("me/detector").state_dict()
theirs = {name.removeprefix("detector."): value for name, value in expected.items() if name.startswith("detector.")}
assert detector.keys() == theirs.keys()
assert all(torch.equal(detector[name], theirs[name]) for name in theirs)
image = Image.new("RGB", (50, 60), (200, 100, 50))
assert len(pipeline("image-feature-extraction", "me/whole")(image)[0]) == 17
assert {found["label"] for found in pipeline("image-classification", "me/classifier")(image)} == {"cat", "dog", "owl"}
segmenter = pipeline("image-segmentation", "me/segmenter")
assert not segmenter.image_processor.do_center_crop  # maps are of the whole photograph
found = segmenter(image)
assert found and {one["label"] for one in found} <= {"cat", "dog", "owl"}
"""


def test_all_classes_are_published_and_loaded_by_name(hub_scene, tmp_path):
    run(hub_scene, PUBLISH, hub_scene.folder, tmp_path / "expected.safetensors")
    out = run(hub_scene, LOAD_ALL, tmp_path / "expected.safetensors", token=None)
    assert "Do you wish to run the custom code" not in out  # with the package installed, no remote code is needed
    assert "decode_head.safetensors" in hub_scene.hub.repositories["me/segmenter"].files
    assert "image-segmentation" in hub_scene.hub.repositories["me/segmenter"].files["README.md"].decode()


# Names, privacy, revisions, folders

LOAD_NAME = """
import json, sys
import timm
from transformers import AutoModel
import c2fmae_hf
from c2fmae_hf.publishing.records import encoder_fingerprint
name, at, options = sys.argv[1:]
print(encoder_fingerprint(AutoModel.from_pretrained(name, **json.loads(options))))
if at != "not timm":
    encoder = timm.create_model(f"hf-hub:{name}{at}", pretrained=True)
    print(float(encoder.patch_embed.proj.weight.double().sum()))
"""


@dataclass(frozen=True)
class Saved:
    """An encoder in a folder, and what `LOAD_NAME` prints for it."""

    folder: Path
    fingerprint: str
    timm_sum: str


@pytest.fixture(scope="module")
def encoders(hub_scene) -> list[Saved]:
    """Two encoders of the same shape with different weights."""
    found = []
    for number in range(2):
        torch.manual_seed(number)
        model = C2FMAEModel.from_pretrained(hub_scene.folder / "encoder")
        torch.nn.init.normal_(model.patch_embed.proj.weight)
        folder = hub_scene.folder / f"encoder-{number}"
        model.save_pretrained(folder)
        total = float(model.patch_embed.proj.weight.detach().double().sum())
        found.append(Saved(folder, encoder_fingerprint(model), str(total)))
    return found


def load(scene, name: str, at: str = "", *, token: str | None = TOKEN, **options) -> list[str]:
    return run(scene, LOAD_NAME, name, at, json.dumps(options), token=token).split()


def test_a_name_without_an_owner(hub_scene, encoders):
    """The Hub's oldest models have such names. Accounts cannot create one, so the test adds it to the server."""
    run(hub_scene, PUSH, encoders[0].folder, "c2fmae-vit-base")
    made = hub_scene.hub.repositories["me/c2fmae-vit-base"]  # in the namespace of the account
    repository = hub_scene.hub.add(Repository("c2fmae-vit-base"))
    repository.add_commit("main", made.at("main").files, "moved")
    del hub_scene.hub.repositories["me/c2fmae-vit-base"]
    assert load(hub_scene, "c2fmae-vit-base", token=None) == [encoders[0].fingerprint, encoders[0].timm_sum]


def test_private_repositories_open_only_for_their_owner(hub_scene, encoders):
    expected = [encoders[0].fingerprint, encoders[0].timm_sum]
    run(hub_scene, PUSH, encoders[0].folder, "me/private", "--private")
    assert hub_scene.hub.repositories["me/private"].private
    for token in (None, TOKENS["outsider"]):
        for at in ("", "not timm"):
            result = hub_scene.clients.run(LOAD_NAME, "me/private", at, "{}", token=token)
            assert result.code == 1
            assert "me/private is not a local folder and is not a valid model identifier" in result.err
    assert load(hub_scene, "me/private") == expected
    assert load(hub_scene, "me/private", token=TOKENS["reader"]) == expected
    # With the token as an argument, and a repository that is not cached yet.
    run(hub_scene, PUSH, encoders[1].folder, "me/private-too", "--private")
    options = json.dumps({"token": TOKEN})
    out = run(hub_scene, LOAD_NAME, "me/private-too", "not timm", options, token=None)
    assert out.split() == [encoders[1].fingerprint]


def test_branches_commits_and_folders(hub_scene, encoders):
    first, second = encoders
    run(hub_scene, PUSH, first.folder, "lab/versions")
    repository = hub_scene.hub.repositories["lab/versions"]
    oldest = repository.at("main").oid
    run(hub_scene, PUSH, second.folder, "lab/versions", "--revision", "v2")
    assert repository.at("main").oid == oldest
    assert load(hub_scene, "lab/versions") == [first.fingerprint, first.timm_sum]
    assert load(hub_scene, "lab/versions", "@v2", revision="v2") == [second.fingerprint, second.timm_sum]
    # After the next version on main, the first is still there under its hash.
    run(hub_scene, PUSH, second.folder, "lab/versions")
    assert load(hub_scene, "lab/versions") == [second.fingerprint, second.timm_sum]
    assert load(hub_scene, "lab/versions", f"@{oldest}", revision=oldest) == [first.fingerprint, first.timm_sum]
    # A subfolder: timm reads only the root.
    before = repository.at("main").files
    run(hub_scene, PUSH, first.folder, "lab/versions", "--subfolder", "small/one")
    after = repository.at("main").files
    assert {path: file for path, file in after.items() if not path.startswith("small/one/")} == dict(before)
    assert not [path for path in after if path.startswith("small/one/") and path.endswith(".py")]
    assert load(hub_scene, "lab/versions", "not timm", subfolder="small/one") == [first.fingerprint]
    assert load(hub_scene, "lab/versions") == [second.fingerprint, second.timm_sum]


@pytest.mark.parametrize("model_class", [C2FMAEForPreTraining, C2FMAEForImageClassification])
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ((), ""),
        pytest.param(("--revision", "v2/small"), ', revision="v2/small"', marks=pytest.mark.slow),
        (("--subfolder", "small/one/"), ', subfolder="small/one"'),
    ],
    ids=["root", "branch", "folder"],
)
def test_the_code_in_a_card_loads_the_card_s_model(hub_scene, tmp_path, request, model_class, where, said):
    whole = C2FMAEForPreTraining.from_pretrained(hub_scene.folder / "whole")
    if model_class is C2FMAEForPreTraining:
        model = whole
    else:
        names = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
        model = C2FMAEForImageClassification(C2FMAEConfig(**{**whole.config.to_dict(), **names}))
    name = f"me/carded-{request.node.callspec.id}"
    model.save_pretrained(tmp_path / "model")
    C2FMAEImageProcessor.from_config(model.config).save_pretrained(tmp_path / "model")
    run(hub_scene, PUSH, tmp_path / "model", name, *where)
    run(hub_scene, PUSH, tmp_path / "model", name, *where, "--preview", tmp_path / "preview")
    card = (tmp_path / "preview/README.md").read_text(encoding="utf-8")
    commit = hub_scene.hub.repositories[name].at(where[1] if "--revision" in where else "main")
    assert commit.files[f"{where[1] if '--subfolder' in where else ''}README.md"] == File(card.encode())

    Image.new("RGB", (50, 60), (200, 100, 50)).save(tmp_path / "photo.jpg")
    blocks = re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    assert len(blocks) == (1 if "--subfolder" in where else 3)
    for number, block in enumerate(blocks):
        out = run(hub_scene, block, cwd=tmp_path)
        assert ("cat" in out) is (model_class is C2FMAEForImageClassification and number == 0)
    calls = [line for block in blocks for line in block.splitlines() if f'"{name}"' in line]
    assert calls
    assert all(f'"{name}"{said}' in line for line in calls)


def test_the_code_in_the_guide_runs(hub_scene, tmp_path, encoders, repository):
    """Run the blocks of docs/hub.md that need a network, in order."""
    text = (repository / "docs/hub.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^<!-- needs a network: [^\n]* -->\n```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    run(hub_scene, PUSH, hub_scene.folder / "whole", "me/c2fmae-vit-tiny")
    whole = C2FMAEForPreTraining.from_pretrained(hub_scene.folder / "whole")
    classes = {"id2label": {0: "rose", 1: "tulip"}, "label2id": {"rose": 0, "tulip": 1}}
    model = C2FMAEForImageClassification(C2FMAEConfig(**{**whole.config.to_dict(), **classes}))
    model.save_pretrained(tmp_path / "runs/1")
    C2FMAEImageProcessor.from_config(model.config).save_pretrained(tmp_path / "runs/1")
    Image.new("RGB", (50, 60), (200, 100, 50)).save(tmp_path / "photo.jpg")
    for block in blocks:
        run(hub_scene, block, cwd=tmp_path)
    assert hub_scene.hub.repositories["me/flowers"].private


def test_a_new_version_replaces_our_files_in_one_commit(hub_scene, encoders):
    """Publish a pre-training checkpoint, then an encoder: the decoder is deleted, other people's files are kept, and
    nothing is uploaded twice."""
    run(hub_scene, PUSH, hub_scene.folder / "whole", "me/shrinks")
    repository = hub_scene.hub.repositories["me/shrinks"]
    assert "decoder.safetensors" in repository.files
    theirs = {
        name: File(b"mine")
        for name in ("notes.txt", "adapter_model.safetensors", "my_c2fmae.py", "runs/Nov25_host/events.out.tfevents.1")
    }
    repository.add_commit("main", {**repository.at("main").files, **theirs}, "notes")
    run(hub_scene, PUSH, encoders[0].folder, "me/shrinks", "--no_custom_code")
    assert len(repository.commits) == 4
    assert set(theirs) <= set(repository.files)
    assert not {"decoder.safetensors", "model.safetensors.index.json"} & set(repository.files)
    assert [name for name in repository.files if name.endswith(".py")] == ["my_c2fmae.py"]  # ours was deleted
    hub_scene.hub.requests.clear()
    run(hub_scene, PUSH, encoders[0].folder, "me/shrinks", "--no_custom_code")
    assert len(repository.commits) == 4
    assert not hub_scene.hub.count("PUT", "/objects/")


def test_a_repository_that_is_not_ours_loses_nothing(hub_scene, encoders):
    repository = hub_scene.hub.add(Repository("me/used"))
    theirs = {name: File(b"mine") for name in ("model-00001.safetensors", "runs/training/run.json", "losses.py")}
    repository.add_commit("main", {**theirs, "config.json": File(b'{"model_type": "vit"}')}, "theirs")
    run(hub_scene, PUSH, encoders[0].folder, "me/used", "--no_custom_code")
    assert set(theirs) <= set(repository.files)
    assert "model.safetensors" in repository.files


# Tokens

ERRORS = """
import sys
from c2fmae_hf import C2FMAEModel
from c2fmae_hf.publishing.hub import HubError
model = C2FMAEModel.from_pretrained(sys.argv[1])
for name, token in zip(sys.argv[3::2], sys.argv[4::2]):
    try:
        model.push_to_hub(name, token=token)
    except HubError as error:
        assert error.__cause__ is None and error.__context__ is None
        assert token not in repr(error) + repr(vars(error))
        print(error)
# An argument overrides the environment.
print(model.push_to_hub("argument", token=sys.argv[2]).commit_url)
"""


def test_errors_hold_no_token_and_an_argument_overrides_the_environment(hub_scene):
    failing = [("me/a", TOKENS["mistyped"]), ("me/b", TOKENS["reader"]), ("me/c", TOKENS["outsider"])]
    words = [word for pair in failing for word in pair]
    before = set(hub_scene.hub.repositories)
    out = run(hub_scene, ERRORS, hub_scene.folder / "encoder", TOKEN, *words, token=TOKENS["outsider"])
    first, second, third, made = out.splitlines()
    assert "does not accept the access token" in first
    assert "may only read" in second
    assert "me/c is not yours to write to, or not visible: you are other" in third
    assert "/me/argument/commit/" in made
    assert set(hub_scene.hub.repositories) - before == {"me/argument"}


LOG_EVERYTHING = """
import logging, os, sys
import huggingface_hub.constants
huggingface_hub.constants.HF_DEBUG = True  # logs requests as calls of curl; the variable has been read already
logging.basicConfig(level=1)
for name in ("huggingface_hub", "transformers", "httpx", "httpx2", "httpcore", "httpcore2", "c2fmae_hf"):
    logging.getLogger(name).setLevel(1)
from c2fmae_hf.commands.main import main
for token in sys.argv[3:]:
    os.environ["HF_TOKEN"] = token
    print(main(["push", *sys.argv[1:3]]), flush=True)
    print("ended", file=sys.stderr)
"""


def test_no_log_holds_a_token(hub_scene):
    tokens = [TOKENS["writer"], TOKENS["mistyped"]]
    result = hub_scene.clients.run(LOG_EVERYTHING, hub_scene.folder / "encoder", "me/logged", *tokens)
    codes = [line for line in result.out.splitlines() if line in ("0", "1")]
    assert codes == ["0", "1"], result.err[-3000:]
    for log in result.err.split("ended\n")[:2]:
        assert re.search(r"curl .*/api/whoami-v2", log)  # the logs are on
    assert not any(token in result.out + result.err for token in tokens)


def test_the_trainer_reports_before_training_what_would_fail_after_it(hub_scene, tmp_path):
    recipe = write_recipe(tmp_path, push_to_hub=True, hub_model_id="other/not-ours", hub_token=TOKEN)
    script = command("pretrain")
    for token, expected in (
        (TOKEN, "other/not-ours is not yours to write to, or not visible: you are me"),
        (TOKENS["expired"], "the Hub does not accept the access token"),
    ):
        result = hub_scene.clients.run(script, recipe, "--hub_token", token)
        assert result.code == 1
        assert expected in result.err.splitlines()[-1]
        assert token not in result.out + result.err
        assert not list(tmp_path.glob("run/checkpoint-*"))
    assert "other/not-ours" not in hub_scene.hub.repositories


CLASSIFY = """
import sys
import c2fmae_hf, timm, torch
from PIL import Image
from transformers import pipeline
pipe = pipeline("image-classification", sys.argv[1])
classes = pipe(Image.new("RGB", (50, 60), (200, 100, 50)))
encoder = timm.create_model(f"hf-hub:{sys.argv[1]}", pretrained=True).eval()
pixels = torch.randn(1, 3, 64, 64)
with torch.no_grad():
    torch.testing.assert_close(encoder(pixels), pipe.model(pixels).logits)
print(list(pipe.model.config.image_height_width), len(classes))
"""


@pytest.mark.parametrize("protocol", ["fine_tuning", "linear_probe"])
def test_fine_tuning_publishes_once_and_nothing_of_the_machine(hub_scene, tmp_path, encoders, protocol):
    rows = make_rows(8, size=72).select_columns("image").add_column("label", [0, 1] * 4)
    datasets.DatasetDict({"train": rows, "validation": rows.select(range(4))}).save_to_disk(tmp_path / "rows")
    # Not the images of pre-training.
    options = ["--image_size", 64, "--output_dir", tmp_path / "run", "--use_cpu", "true"]
    options += ["--max_steps", 2, "--save_steps", 1, "--per_device_train_batch_size", 4, "--disable_tqdm", "true"]
    options += ["--linear_probe", "--probe_epochs", 2] if protocol == "linear_probe" else []
    hub = ["--push_to_hub", "true", "--hub_model_id", f"tuned-{protocol}", "--hub_token", TOKEN]  # no owner
    rest = ["--model", encoders[0].folder, "--dataset_name", tmp_path / "rows"]
    run(hub_scene, command("classify"), *rest, *options, *hub, token=None)
    repository = hub_scene.hub.repositories[f"me/tuned-{protocol}"]
    assert len(repository.commits) == 2  # the first is the Hub's own
    assert "training_args.bin" not in repository.files
    assert not [name for name in repository.files if name.startswith("checkpoint")]
    assert {"README.md", "LICENSE", "runs/training/results.json"} <= set(repository.files)
    assert f'"me/tuned-{protocol}"' in repository.files["README.md"].decode()
    out = run(hub_scene, CLASSIFY, f"me/tuned-{protocol}")
    assert out.splitlines()[-1] == "[64, 64] 2"
    assert any((tmp_path / "run").rglob("training_args.bin")) is (protocol == "fine_tuning")


SAVE_AND_PUSH = """
import sys
from c2fmae_hf import C2FMAEModel
C2FMAEModel.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2], push_to_hub=True, private=True)
"""


def test_save_pretrained_with_push_to_hub_publishes(hub_scene, tmp_path, encoders):
    run(hub_scene, SAVE_AND_PUSH, encoders[0].folder, tmp_path / "by-saving")
    repository = hub_scene.hub.repositories["me/by-saving"]
    assert repository.private
    assert len(repository.commits) == 2
    assert {"README.md", "LICENSE", "model.safetensors", "preprocessor_config.json"} <= set(repository.files)
    assert encoder_fingerprint(C2FMAEModel.from_pretrained(tmp_path / "by-saving")) == encoders[0].fingerprint


def test_converted_weights_are_not_published_as_ours(hub_scene, tmp_path):
    model = C2FMAEModel.from_pretrained(hub_scene.folder / "encoder")
    model.config.converted_from = "others/vit"
    model.save_pretrained(tmp_path / "converted")
    result = hub_scene.clients.run(PUSH, tmp_path / "converted", "me/converted", token=TOKEN)
    assert result.code == 1
    assert "license: expected the licence of others/vit" in result.err.splitlines()[-1]
    assert "me/converted" not in hub_scene.hub.repositories
    (tmp_path / "TERMS").write_text("no commerce")
    options = ("--license", "cc-by-nc-4.0", "--license_file", tmp_path / "TERMS")
    run(hub_scene, PUSH, tmp_path / "converted", "me/converted", *options)
    files = hub_scene.hub.repositories["me/converted"].files
    assert files["LICENSE"] == b"no commerce"
    assert "base_model: others/vit" in files["README.md"].decode()
    # A run that starts from them reports before training what would fail after it.
    recipe = write_recipe(tmp_path, push_to_hub=True, hub_model_id="me/converted-too")
    recipe_options = ("--config_overrides", json.dumps({"num_hidden_layers": 1, "converted_from": "others/vit"}))
    result = hub_scene.clients.run(command("pretrain"), recipe, *recipe_options, token=TOKEN)
    assert "license: expected the licence of others/vit" in result.err.splitlines()[-1]
    assert "me/converted-too" not in hub_scene.hub.repositories


LICENSES = """
import sys
from transformers import ViTConfig, ViTModel
from c2fmae_hf import C2FMAEModel
from c2fmae_hf.publishing.hub import HubError, prepare_repository, push_to_hub
from c2fmae_hf.publishing.model_card import CardFacts
own = C2FMAEModel.from_pretrained(sys.argv[1])
theirs = C2FMAEModel.from_pretrained(sys.argv[1])
theirs.name_or_path = "others/encoder"  # where it was loaded from
foreign = ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
cases = ((own, CardFacts(license="mit")), (theirs, None), (foreign, None), (foreign, CardFacts(license="other")))
for model, facts in cases:
    try:
        push_to_hub(model, "me/licensed", facts=facts)
    except HubError as error:
        print(error)
print(push_to_hub(theirs, "me/licensed", facts=CardFacts(license="mit"), license_text="Permission").commit_url)
# A model made from published weights, whose card names their licence.
theirs.name_or_path = "me/licensed"
try:
    prepare_repository(theirs, "me/early", facts=CardFacts(license="apache-2.0"))
except HubError as error:
    print(error)
for license in ("apache-2.0", "mit"):
    try:
        text = {"mit": "Free"}.get(license)
        print(push_to_hub(theirs, "me/derived", facts=CardFacts(license=license), license_text=text).commit_url)
    except HubError as error:
        print(error)
"""


def test_weights_of_others_need_a_licence_with_its_text(hub_scene):
    lines = run(hub_scene, LICENSES, hub_scene.folder / "encoder").splitlines()
    assert "license_text: expected the text of mit, got None. Nothing was published" in lines[0]
    assert "license: expected the licence of others/encoder, which this model was made from" in lines[1]
    assert "license: expected the licence of another library's model" in lines[2]
    assert "license_text: expected the text of other, got None" in lines[3]
    assert hub_scene.hub.repositories["me/licensed"].files["LICENSE"] == b"Permission"
    for line in lines[5:7]:
        assert re.search("expected mit, the licence of me/licensed, which .* was made from, got apache-2.0", line)
    assert "me/early" not in hub_scene.hub.repositories
    assert "license: mit" in hub_scene.hub.repositories["me/derived"].files["README.md"].decode()
    assert len(lines) == 8


CARRIED = """
import sys
from pathlib import Path
from c2fmae_hf import C2FMAEForImageClassification, C2FMAEModel
from c2fmae_hf.publishing.hub import HubError, push_to_hub
from c2fmae_hf.publishing.model_card import CardFacts
own, folder = C2FMAEModel.from_pretrained(sys.argv[1]), sys.argv[2]
push_to_hub(own, "me/nc", facts=CardFacts(license="cc-by-nc-4.0"), license_text="No commerce.")
push_to_hub(own, "me/free")
made = C2FMAEForImageClassification.from_pretrained("me/nc", num_labels=3)
made.save_pretrained(folder)
again = C2FMAEForImageClassification.from_pretrained(folder)
for model, facts in ((made, CardFacts(license="apache-2.0")), (again, CardFacts(license="apache-2.0"))):
    try:
        push_to_hub(model, "me/laundered", facts=facts)
    except HubError as error:
        print(error)
made.push_to_hub("me/direct", max_shard_size="1GB")
push_to_hub(again, "me/derived")
C2FMAEModel.from_pretrained("me/free").save_pretrained(folder + "-free")
print(Path(folder + "-free", "LICENSE").exists())
"""


def test_weights_from_the_hub_keep_their_licence(hub_scene, tmp_path):
    lines = run(hub_scene, CARRIED, hub_scene.folder / "encoder", tmp_path / "made").splitlines()
    assert "license: expected cc-by-nc-4.0, the licence of the weights" in lines[0]
    assert "license: expected other, the licence of the weights" in lines[1]
    assert lines[2] == "False"
    repositories = hub_scene.hub.repositories
    assert "me/laundered" not in repositories
    for name, license in (("me/direct", "cc-by-nc-4.0"), ("me/derived", "other")):
        assert repositories[name].files["LICENSE"] == b"No commerce."
        assert f"license: {license}\n" in repositories[name].files["README.md"].decode()
    # A probe on the frozen encoder has the encoder's licence, too.
    rows = make_rows(8, size=72).select_columns("image").add_column("label", [0, 1] * 4)
    datasets.DatasetDict({"train": rows, "validation": rows.select(range(4))}).save_to_disk(tmp_path / "rows")
    options = ["--linear_probe", "--probe_epochs", 1, "--output_dir", tmp_path / "probe", "--use_cpu", "true"]
    run(hub_scene, command("classify"), "me/nc", tmp_path / "rows", *options)
    assert (tmp_path / "probe/LICENSE").read_text() == "No commerce."


def test_a_token_in_the_arguments_is_never_written(hub_scene, tmp_path):
    recipe = write_recipe(tmp_path, push_to_hub=True, hub_model_id="me/by-argument", hub_private_repo=True)
    run(hub_scene, command("pretrain"), recipe, "--hub_token", TOKEN, token=None)
    repository = hub_scene.hub.repositories["me/by-argument"]
    assert repository.private
    assert len(repository.commits) == 2
    assert "--hub_token" in json.loads(repository.files["runs/training/run.json"])["command"]
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files)
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


# The local server


def test_the_local_server_follows_the_rules_of_the_hub():
    me = Account("me")
    hub = HubState({"token": me})
    repository = hub.create("name", "models", me)
    first = repository.at("main").oid
    with pytest.raises(Refusal, match="LFS object is missing") as refused:
        hub.commit(repository, "main", "m", first, {"README.md": b"card", "model.safetensors": "0" * 64})
    assert refused.value.status == 400
    assert list(repository.commits) == [first]
    with pytest.raises(Refusal, match="checksum"):
        hub.take_object("0" * 64, b"content")
    oid = File(b"content").sha256
    hub.take_object(oid, b"content")
    second, _ = hub.commit(repository, "main", "m", first, {"model.safetensors": oid})
    with pytest.raises(Refusal, match="A commit has happened since"):
        hub.commit(repository, "main", "m", first, {"notes.txt": b"stale"})
    _, number = hub.commit(repository, "main", "p", None, {"notes.txt": b"proposed"}, as_pull_request=True)
    assert "notes.txt" in repository.at(f"refs/pr/{number}").files
    assert repository.at("main") is second
    assert "model.safetensors" not in repository.at(first).files
    hub.create("secret", "models", me, private=True)
    for account, status in ((None, 401), (Account("you"), 404)):
        with pytest.raises(Refusal) as refused:
            hub.find("me/secret", "models", account)
        assert refused.value.status == status


NAMES = """
import sys
import timm
from transformers import AutoImageProcessor, AutoModel

folder = sys.argv[1]


def tell(load, *args, **kwargs):
    try:
        load(*args, **kwargs)
    except Exception as error:
        print(str(error).replace(folder, "runs/1"))


for is_imported in (False, True):
    if is_imported:
        import c2fmae_hf
    tell(AutoModel.from_pretrained, folder)
    tell(AutoImageProcessor.from_pretrained, folder)
    tell(AutoModel.from_pretrained, "c2fmae-vit-base")
    tell(timm.create_model, "c2fmae_vit_base_patch16_224", pretrained=True)
"""


def test_the_faq_quotes_the_messages_for_names_that_do_not_load(processes, config, tmp_path, repository):
    C2FMAEModel(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    text = (repository / "docs/faq.md").read_text(encoding="utf-8")
    section = text.partition("### A name or a folder does not load")[2].partition("\n### ")[0]
    quoted = {line.removeprefix("> ") for line in section.splitlines() if line.startswith("> ")}
    said = processes.run(OFFLINE + NAMES, tmp_path).out.replace(processes.url, "https://huggingface.co")
    # One of the messages needs the Hub.
    assert {line for line in quoted if line in said} == quoted - {
        min(quoted, key=lambda line: "not a valid" not in line)
    }
    assert "Unknown model (c2fmae_vit_base_patch16_224)" in said
    assert "Unknown model (c2fmae_vit_base_patch16_224)" in section


@pytest.mark.parametrize("of", [C2FMAEConfig, C2FMAEModel, C2FMAEForImageClassification, C2FMAEImageProcessor])
def test_the_error_for_a_name_without_weights_lists_those_with_weights(of, tmp_path, monkeypatch, repository):
    with pytest.raises(
        OSError, match=r"c2fmae-vit-base: expected a folder .* c2fmae-vit-tiny-stl10, .* tiny, small, base"
    ):
        of.from_pretrained("c2fmae-vit-base")
    assert (repository / "model_cards/c2fmae-vit-tiny-stl10/model.safetensors").is_file()
    if issubclass(of, C2FMAEModel):
        with pytest.raises(OSError, match="expected a folder or a repository"):
            of.from_pretrained("c2fmae-vit-base", config=C2FMAEConfig.from_size("base"))
    if of is not C2FMAEConfig:  # transformers takes an empty folder for the default configuration
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty").mkdir()
        with pytest.raises(OSError, match="empty") as caught:  # for an existing folder, the message is the library's
            of.from_pretrained("empty")
        assert "found no folder" not in str(caught.value)
