"""
What README.md and the documents tell people to run is run, on small stand-ins; what they state is compared.

Python blocks run, except those that need a network. Of the commands, those run that need nothing but photographs and
what earlier commands of the documents leave: labelling, validation, pre-training and classification (of a small model,
for two steps), features, the gallery, conversion, export, and the preview of a publication. For the others the parser
of the command reads the options: those with data or models that are not here (ImageNet, names on the Hub), with
several processes, or with `...`. For the app, benchmarks and the study, which other tests run, the names of options
are looked up.
"""

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
import pyarrow.parquet as pq
import pytest
import timm
import torch
from packaging.version import Version
from PIL import Image
from PIL.ExifTags import Base
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
    MaskRCNNImageProcessor,
)
from c2fmae_hf.commands import arguments, estimate
from c2fmae_hf.commands.main import COMMANDS
from c2fmae_hf.data.rows import semantic_id2label
from c2fmae_hf.data.splits import load_splits
from c2fmae_hf.transfer.detection import build_mask_rcnn
from c2fmae_hf.transfer.fine_tuning import named_classes
from testing_utils import load_command, make_rows


ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (
    "README.md",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md"))),
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "benchmarks").rglob("README.md"))),
    "model_cards/README.md",
    "CONTRIBUTING.md",
)
# A comment before a block, which readers do not see; it says what is needed, and what for.
NEEDS = re.compile(r"<!-- needs a (network|cluster|GPU|Space|dataset): \S.* -->")


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
NUM_PHOTOS = 8
# Largest difference of features (standard deviation about 0.9) of a file, which the two libraries resize differently.
FILE_DIFFERENCE = 0.05
# Commands that a document has run.
RUN: set[str] = set()
TRAINING = ("pretrain", "classify", "segment", "detect")
TRAINS = ["--use_cpu", "true"]


def commands_of(block: Block) -> list[list[str]]:
    if block.needs in ("cluster", "Space"):
        return []
    lines = (shlex.split(line, comments=True) for line in block.code.replace("\\\n", " ").splitlines())
    return [words for words in lines if words]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> Path:
    """For Python, whose comments say how large the outputs of the demonstration's model are."""
    return make_stand_ins(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def small_stand_ins(tmp_path_factory) -> Path:
    """For commands."""
    small = {"image_size": 64, "num_hidden_layers": 2, "decoder_hidden_size": 32, "decoder_intermediate_size": 64}
    return make_stand_ins(tmp_path_factory.mktemp("small"), decoder_num_attention_heads=2, **small)


def make_stand_ins(folder: Path, **fields: Any) -> Path:
    """A folder after `make demo` and some more, but for the training."""
    config = C2FMAEConfig.from_size("tiny", num_semantic_classes=8, **fields)
    model = C2FMAEForPreTraining(config)
    encoder, runs = model.image_encoder(), folder / "runs"
    labels = {0: "cat", 1: "dog"}
    named = C2FMAEConfig.from_size("tiny", segmentation_head_channels=16, **named_classes(labels), **fields)
    small = {"pyramid_channels": 16, "box_hidden_size": 32, "rpn_pre_nms_top_n": 50, "rpn_post_nms_top_n": 20}
    encoder.save_pretrained(runs / "mine/c2fmae-vit-tiny")
    saved: dict[str, nn.Module] = {
        "demo/c2fmae-vit-tiny": encoder,
        "demo/c2fmae-vit-tiny-pretraining": model,
        "mine/c2fmae-vit-tiny": encoder,
        "mine/c2fmae-vit-tiny-pretraining": model,
        "1/c2fmae-vit-tiny-pretraining": model,
        "1": C2FMAEForImageClassification(named),
        "2": C2FMAEForSemanticSegmentation(named),
        "3": build_mask_rcnn(str(runs / "mine/c2fmae-vit-tiny"), labels, image_size=config.image_size, **small),
    }
    for name, one in saved.items():
        one.save_pretrained(runs / name)
        C2FMAEImageProcessor.from_config(config).save_pretrained(runs / name)
    (folder / "model_cards").symlink_to(ROOT / "model_cards")
    MaskRCNNImageProcessor().save_pretrained(runs / "3")
    rows = make_rows(40, size=96)
    turned = Image.Exif()
    turned[Base.Orientation] = 6  # as telephones write it
    rows[0]["image"].crop((0, 0, 96, 72)).save(folder / "photo.jpg", exif=turned)
    for index, row in enumerate(rows.select(range(NUM_PHOTOS))):
        name = f"{row['image_id']}.png"
        split, of_class = ("train", "validation")[index // 6], ("cat", "dog")[index % 2]
        for path in ("photos", f"by_class/{of_class}", f"by_split/{split}/{of_class}"):
            (folder / path).mkdir(parents=True, exist_ok=True)
            row["image"].save(folder / path / name)
    few = rows.select(range(NUM_PHOTOS))
    datasets.DatasetDict({"train": few}).save_to_disk(runs / "mine/dataset")
    datasets.DatasetDict({"train": few, "validation": rows}).save_to_disk(runs / "demo/dataset")
    labelled = with_labels(few).select_columns(["image", "label"])
    datasets.DatasetDict({"train": labelled, "validation": labelled}).save_to_disk(folder / "labelled")
    return folder


def with_labels(rows: datasets.Dataset) -> datasets.Dataset:
    names = datasets.ClassLabel(names=["cat", "dog"])
    return rows.add_column("label", [index % 2 for index in range(len(rows))]).cast_column("label", names)


def names_that_documents_assume() -> dict[str, Any]:
    """What a document speaks of without making it, or another document makes."""
    return {"rows": with_labels(make_rows(8, size=96, num_classes=2)), "pixel_values": torch.randn(1, 3, 224, 224)}


@pytest.fixture
def run_document(stand_ins, monkeypatch):
    monkeypatch.chdir(stand_ins)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(document: str) -> dict[str, Any]:
        """All its blocks, from first to last, as a reader would; the names that are there in the end."""
        names = {**names_that_documents_assume(), "__name__": "a_readers_script"}
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
    assert names["features"].shape == (1, 65, 192)  # as its comment says
    assert isinstance(names["model"], C2FMAEModel)


def check_same_photograph(names):
    """Both ways give the same features of the same file, which has an EXIF rotation, preprocessing included."""
    pixels = torch.randn(1, 3, 96, 96)
    expected = C2FMAEModel.from_pretrained("model_cards/c2fmae-vit-tiny-stl10").eval()
    with torch.no_grad():
        difference = names["model"].eval().forward_features(pixels) - expected(pixels).last_hidden_state
        ours = expected(**names["processor"](names["Image"].open("photo.jpg"), return_tensors="pt")).last_hidden_state
    assert difference.abs().max() <= 1e-5
    assert names["features"].shape == (1, 65, 192)
    assert (names["features"] - ours).abs().max() <= FILE_DIFFERENCE  # timm resizes with Pillow, this package tensors


def check_by_split(names):
    assert (len(names["train"]), len(names["validation"])) == (6, 2)
    assert names["train"].features["label"].names == ["cat", "dog"]


def check_encoder_saved(names):
    assert names["trainer"].state.global_step == 2
    encoder = C2FMAEModel.from_pretrained("runs/python/encoder")
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
    assert (names["summary"].rows, names["summary"].rejects) == (NUM_PHOTOS, 0)
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
    "**inputs).last_hidden_state": check_features,
    "outputs.last_hidden_state": check_features,
    "create_model(folder, pretrained=True, num_classes=0)": check_same_photograph,
    '"by_split"': check_by_split,
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
    found = [one for one in RUNNABLE if text in one.code and one not in CHECKS]
    assert len(found) == (2 if check is check_encoder_saved else 1), text
    CHECKS |= dict.fromkeys(found, check)


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


def shortened(name: str, args: list[str]) -> list[str]:
    """The same command with what makes it a matter of seconds: a small model, two steps, one process."""
    if name == "visualize":
        return [*args, "--device", "cpu", *([] if "--indices" in args else ["--num_images", "1"])]
    if name == "classify":
        return [*args, "--image_size", "64", "--max_steps", "2", "--use_cpu", "true", "--validation_share", "0.25"]
    if name == "pretrain":
        size = ["--image_size", "64", "--dataloader_num_workers", "0"]
        if "--model_name_or_path" not in args:
            size += ["--config_overrides", '{"num_hidden_layers": 2}']
        return [*args, *size, "--max_steps", "2", "--logging_steps", "1", "--num_drawn", "2", "--use_cpu", "true"]
    return args


def run_if_there(name: str, module, args: list[str], options: list[Any]) -> bool:
    """
    Run what needs nothing but files that the documents' earlier commands leave, and look at what it has written;
    `False`, and nothing is done, if it needs more.
    """
    values = {key: value for group in options for key, value in vars(group).items()}
    inputs = [values.get(key) for key in ("source", "model", "model_name_or_path", "compare_model", "dataset_name")]
    inputs += values.get("images") or []
    if not all(Path(one).is_dir() for one in inputs if one is not None) or values.get("push_to_hub"):
        return False
    if values.get("estimate"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(estimate, "SECONDS", 0)
            module.main([*shortened(name, args), *(["--num_classes", "4"] if name == "label" else [])])
        return True
    output = Path(values["output_dir"])
    if name == "label":
        shutil.rmtree(output, ignore_errors=True)  # a stand-in for what is written now
        number = "4" if values["num_classes"] == 32 else str(values["num_classes"])  # the few photographs have no more
        module.main([*args, "--num_classes", number])
        assert len(load_splits(str(output))["train"]) == NUM_PHOTOS
    elif name == "visualize":
        assert output / "index.html" in module.main(shortened(name, args))
        assert len(list(output.glob("*.png"))) > 6
    elif name == "pretrain":
        shutil.rmtree(output, ignore_errors=True) if Path(values["dataset_name"]).name == "photos" else None
        folders = [output / "c2fmae-vit-tiny", output / "c2fmae-vit-tiny-pretraining"]
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)  # stand-ins for what is written now
        assert module.main(shortened(name, args)).state.global_step == 2
        assert all((folder / "model.safetensors").is_file() for folder in folders)
        assert (output / "reconstruction.png").is_file()
        assert (output / "curves.png").is_file()
    elif name == "classify":
        protocol = "knn" if values["knn"] else "linear_probe" if values["linear_probe"] else "fine_tuning"
        assert module.main(shortened(name, args))["protocol"] == protocol
        assert (output / "results.json").is_file()
    else:
        return False
    return True


def run_or_parse(name: str, args: list[str]) -> None:
    """Run what is a matter of seconds; of the rest, let the command's own parser read the options."""
    module = load_command(name)
    has_rest = "..." in args
    args = [word for word in args if word != "..."]
    if name == "push":
        options = module.parse(args)
        if options.preview is not None:
            module.main(args)
            assert (options.preview / "README.md").is_file()
            assert (options.preview / "model.safetensors").is_file()
    elif name == "convert":
        options = module.parse(args)
        if Path(options.source).is_dir():
            assert module.main([*args, "--overwrite"]) <= 1e-3
            assert (options.output / "config.json").is_file()
    elif name == "export":
        assert max(module.main(args).values()) <= 1e-4
    elif name == "validate":
        assert module.main(args).rows > 0
    elif name == "embed":
        if Path(args[0]).is_dir() and Path(args[1]).is_dir():
            assert module.main([*args, "--device", "cpu"]) == []
            assert pq.read_table(args[args.index("--output") + 1]).num_rows == NUM_PHOTOS
            RUN.add(name)
    elif name in ("demo", "app"):  # minutes, and until it is stopped
        known = set(re.findall(r'"(--\w+)"', Path(module.__file__).read_text(encoding="utf-8")))
        assert {word for word in args if word.startswith("--")} <= known
    else:
        words = [*args, *(TRAINS if name in TRAINING else [])]
        if has_rest:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(arguments, "find_missing", lambda *_: None)
                patch.setattr(module, "find_mistake", lambda *_: None, raising=False)
                module.parse(words)
        elif run_if_there(name, module, args, module.parse(words)):
            RUN.add(name)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "bash"], ids=str)
def test_commands(block, small_stand_ins, tmp_path, monkeypatch):
    """Those of one block, from first to last, as a reader would."""
    shutil.copytree(small_stand_ins, tmp_path / "user")
    monkeypatch.chdir(tmp_path / "user")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for words in commands_of(block):
        check_command(words)


def check_command(words: list[str]) -> None:
    if words[0] == "make":
        targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert words[1] in targets
        return
    if words == ["source", ".venv/bin/activate"]:  # which make made
        return
    if words[0] in ("mkdir", "ln"):  # of data that is not here
        return
    if words[:2] == ["pip", "install"]:
        setup = (ROOT / "setup.py").read_text(encoding="utf-8")
        for extra in re.fullmatch(r"(?:\.|c2fmae-hf)\[(.+)\]", words[2])[1].split(","):
            assert f'"{extra}": [' in setup or f'EXTRAS_REQUIRE["{extra}"]' in setup
        return
    if words[0] == "c2fmae":
        run_or_parse(words[1], words[2:])
        return
    if "c2fmae_hf" in words:  # several processes: see tests/test_distributed.py
        assert words[0] in ("torchrun", "accelerate")
        position = words.index("c2fmae_hf")
        assert words[position - 1] == "-m"
        run_or_parse(words[position + 1], [*words[position + 2 :], "..."])
        return
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file()
        return
    assert words[0] == "python"
    script = ROOT / next(word for word in words if word.endswith(".py"))
    assert script.is_file()
    # Examples, benchmarks and cards are run by their own tests.
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    source = script.read_text(encoding="utf-8")
    shared = script.parent / "common.py"  # of the benchmarks
    source += shared.read_text(encoding="utf-8") if shared.is_file() else ""
    assert options <= set(re.findall(r"--\w+", source))


def test_what_the_docstring_says_is_run(request):
    """After the tests above, unless some were deselected."""
    ids = {f"test_commands[{block}]" for block in BLOCKS if block.language == "bash"}
    if ids <= {item.name for item in request.session.items}:
        assert {"label", "visualize", "pretrain", "classify", "embed"} == RUN


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


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_links_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_every_page_is_linked_from_the_index():
    text = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages <= set(re.findall(r"\]\(([^)#]+)[^)]*\)", text))


def test_terms_are_in_alphabetic_order():
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^\| (?!term|-)(.+?) \|", text, re.MULTILINE)
    assert len(terms) == text.count("\n| ") - 2
    assert terms == sorted(terms, key=str.lower)


def test_messages_in_the_questions_are_those_of_the_code():
    """Quoted lines of docs/faq.md. tests/test_hub.py compares those of other libraries. "..." stands for a value."""
    source = "\n".join(
        text
        for path in (ROOT / "src").rglob("*.py")
        for text in strings_of(ast.parse(path.read_text(encoding="utf-8")))
    )
    text = (ROOT / "docs/faq.md").read_text(encoding="utf-8")
    before, section, after = re.split(r"(### A name or a folder does not load.*?(?=\n### ))", text, flags=re.DOTALL)
    assert section.count("\n> ") == 5
    quoted = re.findall(r"^> (.+)$", before + after, re.MULTILINE)
    assert len(quoted) > 8
    for line in quoted:
        assert re.search(r"[^\n]*?".join(map(re.escape, line.split("..."))), source), line


def strings_of(tree: ast.AST) -> list[str]:
    """Every string of a module, with "..." for the values in it."""
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    strings = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            strings.append("".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            strings.append(re.sub(r"%[\w.]*[sdrg]", "...", node.value))
    return strings


def test_options_that_documents_name_exist():
    """In prose, too: `--like_this`."""
    known = set()
    for path in (ROOT / "benchmarks").rglob("*.py"):
        known |= set(re.findall(r'"(--\w+)"', path.read_text(encoding="utf-8")))
    for name in COMMANDS:
        module = load_command(name)
        known |= set(re.findall(r'"(--[\w-]+)"', Path(module.__file__).read_text(encoding="utf-8")))
        if hasattr(module, "parse") and name not in ("push", "convert"):
            words = {"label": ["a", "b"], "visualize": ["a", "b", "--output_dir", "c"], "pretrain": ["a"]}
            for group in module.parse([*words.get(name, ["a", "b"]), *(TRAINS if name in TRAINING else [])]):
                known |= {f"--{entry.name}" for entry in fields(group)}
    known |= {"--recipe", "--help-all"}
    known |= {"--help", "--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_endpoint", "--rdzv_id"}  # torchrun's
    known |= {"--head", "--address", "--repo", "--exclude", "--force"}  # of Ray, `hf upload` and pip
    for document in set(DOCUMENTS) - {"docs/hub_faults.md"}:  # which is made of messages
        text = (ROOT / document).read_text(encoding="utf-8")
        # Options of a scheduler.
        text = re.sub(r"<!-- needs a cluster: .*? -->\n```.*?```", "", text, flags=re.DOTALL)
        assert set(re.findall(r"(?<!-)--[a-z]\w+", text)) <= known, document


def test_the_readme_is_short_and_its_pictures_are_small():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") < 110
    pictures = [ROOT / name for name in re.findall(r"!\[.+?\]\((.+?)\)", text)]
    assert len(pictures) == 2
    assert all(path.stat().st_size <= 200 * 1024 for path in pictures)
    assert sum(path.stat().st_size for path in (ROOT / "docs/figures").iterdir()) <= 600 * 1024
