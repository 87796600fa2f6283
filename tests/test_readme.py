"""What README.md and the documents tell people to run is run, on small stand-ins; what they state is compared."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
import textwrap
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import datasets
import pytest
import timm
import torch
from packaging.version import Version
from torch import nn
from transformers import ViTModel

from c2fmae_hf import (
    SIZES,
    C2FMAEConfig,
    C2FMAEForImageClassification,
    C2FMAEForPreTraining,
    C2FMAEForSemanticSegmentation,
    C2FMAEImageProcessor,
    C2FMAEModel,
)
from c2fmae_hf.arguments import parse_arguments
from c2fmae_hf.dataset import load_splits, semantic_id2label
from c2fmae_hf.detection import build_mask_rcnn
from c2fmae_hf.fine_tuning import named_classes
from test_examples import load_example
from testing_utils import make_rows


ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (
    "README.md",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md"))),
    "model_cards/README.md",
)
# A comment before a block, which readers do not see; it says what is needed, and what for.
NEEDS = re.compile(r"<!-- needs a (network|cluster|GPU|Space): \S.* -->")


@dataclass(frozen=True)
class Block:
    document: str
    line: int
    language: str
    code: str
    needs: str | None

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks_of(document: str) -> list[Block]:
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.finditer(r"^(?:(<!-- [^\n]* -->)\n)?( *)```(\w+)\n(.*?)^\2```$", text, re.MULTILINE | re.DOTALL)
    blocks = []
    for match in found:
        needs = NEEDS.fullmatch(match[1] or "")
        line = text.count("\n", 0, match.start()) + 1
        blocks.append(Block(document, line, match[3], textwrap.dedent(match[4]), needs[1] if needs else None))
    return blocks


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
RUNNABLE = [block for block in PYTHON if block.needs is None]
COMMANDS = [
    pytest.param(words, id=f"{block}: {' '.join(words)[:60]}")
    for block in BLOCKS
    if block.language == "bash" and block.needs not in ("cluster", "Space")
    for words in (shlex.split(line, comments=True) for line in block.code.replace("\\\n", " ").splitlines())
    if words
]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> Path:
    """A folder after `make demo` and some more, but for the training."""
    folder = tmp_path_factory.mktemp("user")
    config = C2FMAEConfig.from_size("tiny", num_semantic_classes=8)
    model = C2FMAEForPreTraining(config)
    encoder, runs = model.image_encoder(), folder / "runs"
    labels = {0: "cat", 1: "dog"}
    named = C2FMAEConfig.from_size("tiny", segmentation_head_channels=16, **named_classes(labels))
    small = {"pyramid_channels": 16, "box_hidden_size": 32, "rpn_pre_nms_top_n": 50, "rpn_post_nms_top_n": 20}
    encoder.save_pretrained(runs / "mine/c2fmae-vit-tiny")
    saved: dict[str, nn.Module] = {
        "demo/c2fmae-vit-tiny": encoder,
        "demo/c2fmae-vit-tiny-pretraining": model,
        "mine/c2fmae-vit-tiny": encoder,
        "1": C2FMAEForImageClassification(named),
        "2": C2FMAEForSemanticSegmentation(named),
        "3": build_mask_rcnn(str(runs / "mine/c2fmae-vit-tiny"), labels, image_size=224, **small),
    }
    for name, one in saved.items():
        one.save_pretrained(runs / name)
        C2FMAEImageProcessor.from_config(config).save_pretrained(runs / name)
    whole = {"do_resize": False, "do_center_crop": False, "do_normalize": False}  # Mask R-CNN does it itself
    C2FMAEImageProcessor(**whole, patch_size=1, label_stride=1).save_pretrained(runs / "3")
    rows = make_rows(4, size=96)
    rows[0]["image"].save(folder / "photo.jpg")
    (folder / "photos").mkdir()
    for row in rows:
        row["image"].save(folder / "photos" / f"{row['image_id']}.png")
    datasets.DatasetDict({"train": rows}).save_to_disk(runs / "mine/dataset")
    return folder


def names_that_documents_assume() -> dict[str, Any]:
    """What a document speaks of without making it, or another document makes."""
    rows = make_rows(8, size=96, num_classes=2)
    names = datasets.ClassLabel(names=["cat", "dog"])
    rows = rows.add_column("label", [0, 1] * 4).cast_column("label", names)
    return {"rows": rows, "pixel_values": torch.randn(1, 3, 224, 224)}


@pytest.fixture
def run_document(stand_ins, monkeypatch):
    monkeypatch.chdir(stand_ins)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(document: str) -> dict[str, Any]:
        """All its blocks, from first to last, as a reader would; the names that are there in the end."""
        names = {**names_that_documents_assume(), "__name__": "a_readers_script"}
        if document == "README.md":  # which says where the imports of its last block are
            (imports,) = [block for block in blocks_of("docs/pretraining.md") if block.language == "python"]
            names["config"] = C2FMAEConfig.from_size("tiny", num_semantic_classes=8)
            exec(imports.code.partition("\n\n")[0], names)
        for block in RUNNABLE:
            if block.document != document or needs_newer_timm(block):
                continue
            code = block.code
            if "max_steps=100, per_device_train_batch_size=16" in code:  # minutes, as it stands
                code = code.replace("max_steps=100, per_device_train_batch_size=16", "max_steps=2, use_cpu=True")
            exec(compile(code, str(block), "exec"), names)
            if block in CHECKS:
                CHECKS[block](names)
        return names

    return run


def needs_newer_timm(block: Block) -> bool:
    return "local-dir:" in block.code and Version(timm.__version__) < Version("1.0.26")


# Python


def test_all_blocks_are_found_and_few_need_a_network():
    fences = sum(
        len(re.findall(r"^ *```", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE))
        for document in DOCUMENTS
    )
    assert fences == 2 * len(BLOCKS)
    assert {block.language for block in BLOCKS} <= {"bash", "python", "text", "yaml", "json"}
    assert [block.document for block in PYTHON if block.needs == "network"] == ["docs/hub.md"] * 3
    comments = [line for name in DOCUMENTS for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    assert all(NEEDS.fullmatch(line) for line in comments if line.startswith("<!-- needs"))
    assert {block.document for block in RUNNABLE} >= {"README.md", "docs/quickstart.md", "docs/extending.md"}


def check_features(names):
    assert names["features"].shape == (1, 197, 192)  # as its comment says
    assert isinstance(names["model"], C2FMAEModel)


def check_timm(names):
    pixels = torch.randn(1, 3, 224, 224)
    expected = C2FMAEModel.from_pretrained("runs/demo/c2fmae-vit-tiny").eval()
    with torch.no_grad():
        difference = names["model"].eval().forward_features(pixels) - expected(pixels).last_hidden_state
    assert difference.abs().max() <= 1e-5


def check_same_photograph(names):
    """README's two ways give the same features of the same file, preprocessing included."""
    check_timm(names)
    assert names["features"].shape == (1, 197, 192)
    image = names["Image"].open("photo.jpg")
    expected = C2FMAEModel.from_pretrained("runs/demo/c2fmae-vit-tiny").eval()
    with torch.no_grad():
        ours = expected(**names["processor"](image, return_tensors="pt")).last_hidden_state
    assert (names["features"] - ours).abs().mean() <= 0.02  # timm resizes with Pillow, this package tensors


def check_training(names):
    assert names["trainer"].state.global_step == 2


def check_encoder_saved(names):
    check_training(names)
    encoder = C2FMAEModel.from_pretrained("runs/mine/encoder")
    trained = names["trainer"].model.c2fmae.state_dict()
    assert all(torch.equal(value.cpu(), trained[name].cpu()) for name, value in encoder.state_dict().items())


def check_conversion(names):
    assert isinstance(names["vit"], ViTModel)
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = names["encoder"](pixels).last_hidden_state
        torch.testing.assert_close(names["vit"](pixels).last_hidden_state, expected, atol=1e-4, rtol=1e-4)


def check_export(names):
    assert names["difference"] <= 1e-4
    assert names["features"].shape == (3, 197, 192)


def check_batch(names):
    assert names["outputs"].semantic_logits.shape == (2, 147, 16, 8)
    assert names["batch"]["instance_labels"].shape == (2, 3, 56, 56)


def check_shapes_of_models(names):
    assert names["square"].pooler_output.shape == (1, 192)
    assert names["wide"].last_hidden_state.shape == (1, 201, 192)
    assert [tuple(one.shape) for one in names["maps"]] == [(1, 192, 10, 20)] * 2


def check_attention(names):
    assert names["weights"].shape == (12, 1, 3, 197, 197)


def check_arrays(names):
    assert names["semantic_id2label"](names["rows"].features) == {0: "ground", 1: "disc"}
    assert names["sample"]["pixel_values"].shape == (3, 96, 96)
    assert names["sample"]["semantic"].unique().tolist() == [-100, 0, 1]


def check_size(names):
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        theirs, ours = (one.eval() for one in (names["encoder"], names["model"].c2fmae))
        difference = theirs.forward_features(pixels) - ours(pixels).last_hidden_state
    assert difference.abs().max() <= 1e-5


def check_labeller(names):
    assert (names["summary"].rows, names["summary"].rejects) == (4, 0)
    rows = load_splits("runs/bright")["train"]
    assert semantic_id2label(rows.features) == names["BrightnessLabeller"].id2label
    assert all(set(row) == {0, 1} for row in rows["semantic_classes"])


def check_masking(names):
    batch, again = names["batch"], names["BrightnessMasking"](names["config"])([names["dataset"][i] for i in (0, 1)])
    assert batch["bool_masked_pos"].sum(dim=1).tolist() == [147, 147]
    assert torch.equal(batch["bool_masked_pos"], again["bool_masked_pos"])
    assert torch.isfinite(names["loss"])


def check_pyramid(names):
    assert [tuple(one.shape) for one in names["maps"]] == [(1, 192, side, side) for side in (56, 28, 14, 7)]


CHECKS = {}
for text, check in {
    "**processor(Image.open(": check_features,
    "outputs.last_hidden_state": check_features,
    "num_classes=0).eval()": check_same_photograph,
    'c2fmae-vit-tiny", pretrained=True, num_classes=0)\n': check_timm,
    "processing_class=processor": check_training,
    "trainer.save_encoder": check_encoder_saved,
    "convert_from_c2fmae": check_conversion,
    "export_pt2": check_export,
    "outputs.semantic_logits": check_batch,
    "out_indices=[6, 12]": check_shapes_of_models,
    "attention_maps(": check_attention,
    'load_splits("runs/arrays")': check_arrays,
    "runs/nano": check_size,
    "class BrightnessLabeller": check_labeller,
    "class BrightnessMasking": check_masking,
    "out_indices=[3, 6, 9, 12]": check_pyramid,
}.items():
    (block,) = [one for one in RUNNABLE if text in one.code and one not in CHECKS]
    CHECKS[block] = check


@pytest.mark.parametrize("document", sorted({block.document for block in RUNNABLE}))
def test_python_runs_from_first_to_last(document, run_document):
    run_document(document)


@pytest.mark.parametrize("block", [block for block in PYTHON if block.needs is not None], ids=str)
def test_blocks_that_need_something_name_what_exists(block):
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert hasattr(importlib.import_module(node.module), alias.name), alias.name


# Commands


def run_or_parse(script: Path, args: list[str]) -> None:
    """Run what is a matter of seconds; of the rest, let its own parser read the options."""
    source = script.read_text(encoding="utf-8")
    name = script.stem
    has_rest = "..." in args
    args = [word for word in args if word != "..."]
    if name == "push_to_hub":
        module = load_example(name)
        options = module.parse(args)
        if options.preview is not None:
            module.main(args)
            assert (options.preview / "README.md").is_file()
            assert (options.preview / "model.safetensors").is_file()
            shutil.rmtree(options.preview)  # another document has the same command
    elif name == "convert_checkpoint":
        module = load_example(name)
        options = module.parse(args)
        if Path(options.source).is_dir():
            assert module.main([*args, "--overwrite"]) <= 1e-3
            assert (options.output / "config.json").is_file()
    elif name == "export_model":
        assert max(load_example(name).main(args).values()) <= 1e-4
    elif name == "validate_dataset" and (Path(args[0]) / "dataset_dict.json").is_file():
        load_example(name).main(args)
    elif re.search(r"^GROUPS = ", source, re.MULTILINE):
        module = load_example(name)
        required = {
            "run_pretraining": ("dataset_name",),
            "label_images": ("source", "output_dir"),
            "visualize": ("model", "output_dir"),
        }
        trains = name not in ("label_images", "visualize")
        parse_arguments(
            module.GROUPS,
            [*args, *(["--use_cpu", "true"] if trains else [])],
            required=() if has_rest else required.get(name, ("model", "dataset_name")),
            check=None if has_rest else getattr(module, "find_mistake", None),
        )
    else:
        options = {word.partition("=")[0] for word in args if word.startswith("--")}
        assert options <= set(re.findall(r"--\w+", source))


@pytest.mark.parametrize("words", COMMANDS)
def test_commands(words, stand_ins, monkeypatch):
    if words[0] == "make":
        targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert words[1] in targets
        return
    if words == ["source", ".venv/bin/activate"]:  # which make made
        return
    if words[:2] == ["pip", "install"]:
        setup = (ROOT / "setup.py").read_text(encoding="utf-8")
        for extra in re.fullmatch(r"\.\[(.+)\]", words[2])[1].split(","):
            assert f'"{extra}": [' in setup
        return
    assert words[0] in ("python", "torchrun")
    script = next(word for word in words if word.endswith(".py"))
    assert (ROOT / script).is_file()
    if script == "model_cards/build.py":  # tests/test_model_card.py runs it
        return
    monkeypatch.chdir(stand_ins)
    args = [str(ROOT / word) if word.startswith("examples/") else word for word in words[words.index(script) + 1 :]]
    run_or_parse(ROOT / script, args)


# Statements


def test_sizes_in_the_documents_are_those_of_the_table():
    text = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.*?) \| ([\d.]+) M \| (.*?) \|$", text, re.MULTILINE)
    assert [row[0] for row in rows] == list(SIZES)
    for size, name, encoder, parameters, decoder in rows:
        config = C2FMAEConfig.from_size(size)
        assert name == f"c2fmae_{config.timm_keys()['architecture']}"
        shape = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.patch_size)
        assert encoder == ", ".join(map(str, shape))
        assert decoder == f"{config.decoder_hidden_size}, {config.decoder_num_hidden_layers}"
        with torch.device("meta"):
            model = C2FMAEModel(config)
        assert parameters == f"{sum(value.numel() for value in model.parameters()) / 1e6:.1f}"


@pytest.mark.parametrize("document", [*DOCUMENTS, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_options_that_documents_name_exist():
    """In prose, too: `--like_this`."""
    known = set()
    for path in (ROOT / "benchmarks").rglob("*.py"):
        known |= set(re.findall(r'"(--\w+)"', path.read_text(encoding="utf-8")))
    for path in (ROOT / "examples").rglob("*.py"):
        known |= set(re.findall(r'"(--\w+)"', path.read_text(encoding="utf-8")))
        if path.parent.name == "app":
            continue
        for group in getattr(load_example(path.stem), "GROUPS", ()):
            known |= {f"--{entry.name}" for entry in fields(group)}
    known |= {"--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_endpoint", "--rdzv_id"}  # torchrun's
    known |= {"--head", "--address", "--repo", "--exclude"}  # Ray's, and of `hf upload --repo-type`
    for document in set(DOCUMENTS) - {"docs/hub_faults.md"}:  # which is made of messages
        text = (ROOT / document).read_text(encoding="utf-8")
        # Options of a scheduler.
        text = re.sub(r"<!-- needs a cluster: .*? -->\n```.*?```", "", text, flags=re.DOTALL)
        assert set(re.findall(r"(?<!-)--[a-z]\w+", text)) <= known, document


def test_the_readme_is_short_and_its_pictures_are_small():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") < 150
    pictures = [ROOT / name for name in re.findall(r"!\[.+?\]\((.+?)\)", text)]
    assert len(pictures) == 2
    assert all(path.stat().st_size <= 200 * 1024 for path in pictures)
    assert sum(path.stat().st_size for path in (ROOT / "docs/figures").iterdir()) <= 600 * 1024
