"""What README.md and some other documents tell people to run is run, on small stand-ins."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
from dataclasses import dataclass, fields
from pathlib import Path

import datasets
import pytest
import torch
from transformers import ViTModel

from c2fmae_hf import SIZES, C2FMAEConfig, C2FMAEForPreTraining, C2FMAEImageProcessor, C2FMAEModel
from c2fmae_hf.arguments import parse_arguments
from test_examples import load_example
from testing_utils import make_rows, require_timm_local_dir


ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "docs/hub.md", "docs/long_runs.md", "docs/gallery.md", "model_cards/README.md")
# A comment before a block, which readers do not see.
NEEDS_NETWORK = "<!-- needs a network -->"
NEEDS_CLUSTER = "<!-- needs a cluster -->"


@dataclass(frozen=True)
class Block:
    document: str
    line: int
    language: str
    code: str
    needs_network: bool
    needs_cluster: bool

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks_of(document: str) -> list[Block]:
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.finditer(r"^(?:(<!-- [^\n]* -->)\n)?```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        Block(
            document,
            text.count("\n", 0, match.start()) + 1,
            match[2],
            match[3],
            *(match[1] == need for need in (NEEDS_NETWORK, NEEDS_CLUSTER)),
        )
        for match in found
    ]


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
RUNNABLE = [block for block in PYTHON if not block.needs_network]
COMMANDS = [
    pytest.param(words, id=f"{block}: {' '.join(words)[:60]}")
    for block in BLOCKS
    if block.language == "bash" and not block.needs_cluster
    for words in (shlex.split(line, comments=True) for line in block.code.splitlines())
    if words
]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> Path:
    """A folder after `make demo`, but for the training."""
    folder = tmp_path_factory.mktemp("user")
    config = C2FMAEConfig.from_size("tiny", num_semantic_classes=8)
    model = C2FMAEForPreTraining(config)
    processor = C2FMAEImageProcessor.from_config(config)
    for name, saved in (("c2fmae-vit-tiny", model.image_encoder()), ("c2fmae-vit-tiny-pretraining", model)):
        saved.save_pretrained(folder / "runs/demo" / name)
        processor.save_pretrained(folder / "runs/demo" / name)
    rows = make_rows(4, size=96)
    rows[0]["image"].save(folder / "photo.jpg")
    datasets.DatasetDict({"train": rows}).save_to_disk(folder / "runs/mine/dataset")
    return folder


@pytest.fixture
def run_block(stand_ins, monkeypatch):
    monkeypatch.chdir(stand_ins)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(block: Block, **names) -> dict:
        code = block.code
        if "max_steps=100, per_device_train_batch_size=16" in code:  # minutes, as it stands
            code = code.replace("max_steps=100, per_device_train_batch_size=16", "max_steps=2, use_cpu=True")
        names["__name__"] = "a_readers_script"
        exec(compile(code, str(block), "exec"), names)
        return names

    return run


def block_with(text: str) -> Block:
    (found,) = [block for block in RUNNABLE if text in block.code]
    return found


# Python


def test_all_blocks_are_found_and_few_need_a_network():
    fences = sum((ROOT / document).read_text(encoding="utf-8").count("\n```") for document in DOCUMENTS)
    assert fences == 2 * len(BLOCKS)
    assert {block.language for block in BLOCKS} == {"bash", "python"}
    assert [block.document for block in PYTHON if block.needs_network] == ["docs/hub.md"] * 3
    assert len(RUNNABLE) == 5  # each has a test below


def test_encoder_with_transformers(run_block):
    names = run_block(block_with("AutoImageProcessor.from_pretrained"))
    assert names["features"].shape == (1, 197, 192)  # as its comment says
    assert isinstance(names["model"], C2FMAEModel)


@require_timm_local_dir
def test_encoder_with_timm(run_block):
    model = run_block(block_with("local-dir:"))["model"]
    pixels = torch.randn(1, 3, 224, 224)
    expected = C2FMAEModel.from_pretrained("runs/demo/c2fmae-vit-tiny").eval()
    with torch.no_grad():
        difference = model.eval().forward_features(pixels) - expected(pixels).last_hidden_state
    assert difference.abs().max() <= 1e-5


def test_pretraining_in_python(run_block, stand_ins):
    names = run_block(block_with("C2FMAETrainer("), rows=make_rows(8, size=96))
    assert names["trainer"].state.global_step == 2
    encoder = C2FMAEModel.from_pretrained(stand_ins / "runs/mine/encoder")
    trained = names["trainer"].model.c2fmae.state_dict()
    assert all(torch.equal(value.cpu(), trained[name].cpu()) for name, value in encoder.state_dict().items())


def test_conversion_in_python(run_block):
    names = run_block(block_with("convert_from_c2fmae"))
    assert isinstance(names["vit"], ViTModel)
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = names["encoder"](pixels).last_hidden_state
        torch.testing.assert_close(names["vit"](pixels).last_hidden_state, expected, atol=1e-4, rtol=1e-4)


def test_export_in_python(run_block):
    names = run_block(block_with("export_pt2"))
    assert names["difference"] <= 1e-4
    assert names["features"].shape == (3, 197, 192)


@pytest.mark.parametrize("block", [block for block in PYTHON if block.needs_network], ids=str)
def test_blocks_that_need_a_network_name_what_exists(block):
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert hasattr(importlib.import_module(node.module), alias.name), alias.name


# Commands


def run_or_parse(script: str, args: list[str]) -> None:
    """Run what is a matter of seconds; of the rest, let its own parser read the options."""
    module = load_example(script)
    has_rest = "..." in args
    args = [word for word in args if word != "..."]
    if script == "push_to_hub":
        options = module.parse(args)
        if options.preview is not None:
            module.main(args)
            assert (options.preview / "README.md").is_file()
            assert (options.preview / "model.safetensors").is_file()
            shutil.rmtree(options.preview)  # another document has the same command
    elif script == "convert_checkpoint":
        options = module.parse(args)
        if Path(options.source).is_dir():
            assert module.main(args) <= 1e-3
            assert (options.output / "config.json").is_file()
    elif script == "export_model":
        assert max(module.main(args).values()) <= 1e-4
    elif script == "validate_dataset":
        module.main(args)
    else:
        required = {
            "run_pretraining": ("dataset_name",),
            "label_images": ("source", "output_dir"),
            "visualize": ("model", "output_dir"),
        }
        trains = script not in ("label_images", "visualize")
        parse_arguments(
            module.GROUPS,
            [*args, *(["--use_cpu", "true"] if trains else [])],
            required=() if has_rest else required.get(script, ("model", "dataset_name")),
            check=None if has_rest else getattr(module, "find_mistake", None),
        )


@pytest.mark.parametrize("words", COMMANDS)
def test_commands(words, stand_ins, monkeypatch):
    if words[0] == "make":
        targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert words[1] in targets
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
    run_or_parse(Path(script).stem, args)


# Statements


def test_sizes_in_the_readme_are_those_of_the_table():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.*?) \| ([\d.]+) M \| (.*?) \|$", readme, re.MULTILINE)
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


@pytest.mark.parametrize("document", [*DOCUMENTS, "CONTRIBUTING.md", "docs/transfer.md", "docs/labelling.md"])
def test_links_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_options_that_documents_name_exist():
    """In prose, too: `--like_this`."""
    known = set()
    for path in (ROOT / "benchmarks").glob("*.py"):
        known |= set(re.findall(r'"(--\w+)"', path.read_text(encoding="utf-8")))
    for path in (ROOT / "examples").glob("*.py"):
        known |= set(re.findall(r'"(--\w+)"', path.read_text(encoding="utf-8")))
        for group in getattr(load_example(path.stem), "GROUPS", ()):
            known |= {f"--{entry.name}" for entry in fields(group)}
    known |= {"--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_endpoint", "--rdzv_id"}  # torchrun's
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        text = re.sub(rf"{NEEDS_CLUSTER}\n```.*?```", "", text, flags=re.DOTALL)  # options of a scheduler
        assert set(re.findall(r"(?<!-)--[a-z]\w+", text)) <= known, document
