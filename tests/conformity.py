"""
What the tests of transformers and timm say of our models: docs/conformity.md.

    python tests/conformity.py > docs/conformity.md

A run of both folders of common tests is recorded; each skipped test needs an explanation of ours in `EXPLANATIONS`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

import call_patterns


TESTS = Path(__file__).resolve().parent
FOLDERS = ("transformers_common", "timm_common")


@dataclass
class Suite:
    """Tests of one kind: `where` begins their node ids, after `tests/`."""

    where: str
    upstream: str
    subject: str


MODELS, TIMM = "transformers_common/test_models.py", "timm_common/test_timm_models.py"
SUITES = [
    Suite(
        f"{MODELS}::C2FMAETest",
        "transformers: `ModelTesterMixin`, `ConfigTester`",
        "`C2FMAEModel`, `C2FMAEForPreTraining`, `C2FMAEForImageClassification`, `C2FMAEForSemanticSegmentation`, "
        "`C2FMAEBackbone`, `C2FMAEConfig`",
    ),
    Suite(f"{MODELS}::C2FMAEBackboneTest", "transformers: `BackboneTesterMixin`", "`C2FMAEBackbone`"),
    Suite(f"{MODELS}::EncoderBackboneTest", "transformers: `BackboneTesterMixin`", "`EncoderBackbone`"),
    Suite(
        "transformers_common/test_image_processor.py::C2FMAEImageProcessorTest",
        "transformers: `ImageProcessingTestMixin`, `PostProcessSemanticSegmentationTestMixin`",
        "`C2FMAEImageProcessor`",
    ),
    Suite(
        "transformers_common/test_pipelines.py::C2FMAEPipelineTest",
        "transformers: `PipelineTesterMixin`",
        "image-feature-extraction, image-classification, image-segmentation, object-detection",
    ),
    Suite(TIMM, "timm: `tests/test_models.py`", "`c2fmae*`: the five sizes"),
]
REFERENCE = Suite(f"{MODELS}::ViTReference", "transformers: `ModelTesterMixin`, `ConfigTester`", "ViT, for comparison")

# Part of each reason that upstream's tests give for skipping, and why it holds here.
NOT_THERE = "needs hardware or a package that this machine does not have"
NO_TASK = "a task that none of our classes has"
TEXT = "for text models"
EXPLANATIONS = {
    "PyTesseract": NO_TASK,
    "requires av": NO_TASK,
    "test requires": NOT_THERE,
    "take a cache": "for generative models, which cache keys and values",
    "_keep_in_fp32": "no layer of these classes must stay in float32 (`MaskRCNNForObjectDetection` has such layers, "
    "and its own tests cover them)",
    "RoPE": "for rotary positions; ours are a fixed table",
    "position embeddings": "for learnt position tables that are resized with the tokens; ours is fixed and resized "
    "to the image",
    "grouped_mm": "for mixtures of experts",
    "sparse experts": "for mixtures of experts",
    "output_router_logits": "for mixtures of experts",
    "test_resize_embeddings": TEXT,
    "token embeddings": TEXT,
    "language modeling head": TEXT,
    "No conversion found": "for classes whose checkpoints transformers renames by its own table; "
    "tests/test_timm_c2fmae.py and tests/test_conversion.py test the names that we share with timm",
    "composite": "for composite models, such as image and text",
    "subconfigs": "for composite models, such as image and text",
    "does not support SDPA": "for composite models, such as image and text; despite upstream's wording SDPA is "
    "tested and passes in `eager_matches_sdpa_inference`",
    "differentiable loss": "for embeddings with a `weight`; our patch embedding contains a convolution, and "
    "transformers' ViT is skipped for the same reason",
    "sliding window": "attention is global",
    "TP plan": "no tensor parallelism: encoders of these sizes fit on one device and train with DDP or FSDP",
    "missing weights are an error": "a file without any weight of the class is an error here, which "
    "tests/test_modeling_c2fmae.py asserts",
    "2 backends": "we have one image processor, on torchvision, as transformers asks of new models",
    "PIL backend": "we have one image processor, on torchvision, as transformers asks of new models",
    "No validation found": "for image processors with the older signature",
    "dict size or list image_mean": "defaults are tuples, as in transformers' ViTImageProcessor, which is skipped "
    "for the same reason",
    "pipeline_model_mapping": NO_TASK,
    "not implemented": "upstream's test is a placeholder",
    "minutes on a CPU": "prunes a copy of ViT-Large at each of its 24 blocks; timm's own CI leaves it out and never "
    "lists ViT-Huge. The three smaller sizes run, and this one passed in 580 s on one shared CPU core, 2026-11-26",
}

# What these tests run otherwise than upstream does.
CHANGES = [
    "transformers keeps tables of what each class is for (classification, segmentation, backbone); our classes are "
    "added while a test runs. Slow tests run, too.",
    "`test_can_init_all_missing_weights`, which upstream limits to models of 2023 and later, runs with our error "
    "for missing weights turned off.",
    "Labels and masks come from our own `_prepare_for_class`, because upstream's only handles its own models.",
    "`test_attention_outputs` and `test_hidden_states_output` run separately for the pre-training class, whose "
    "encoder only sees visible patches: 5 tokens instead of 17.",
    "`test_correct_missing_keys` and `test_base_model_prefix_loads_base_weights` load an encoder's weights into "
    "each class except the pre-training one, which refuses them (tests/test_modeling_c2fmae.py).",
    "`test_can_load_ignoring_mismatched_shapes` sets every field with `_std` in its name to a number; `image_std`, "
    "a list about pixels, is left out.",
    "The source distribution of transformers has `PipelineTesterMixin`, but not its tests of each task or its tiny "
    "models. tests/transformers_common replaces both: they compare a pipeline's answer with the model's output, for "
    "images as files and in memory, in four modes, alone and in batches. Links are not tested. In `*_fp16` the "
    "model is loaded in half precision.",
    "timm's tests choose models by name (`vit_*`) and module; each of ours is listed beside timm's model of the "
    "same architecture. No weights of these sizes are published, so `test_model_load_pretrained` gets a file of "
    "random ones.",
]


def clean_reason(reason: str) -> str:
    """Upstream's reason, without what differs from test to test."""
    reason = reason.removeprefix("Skipped: ")
    reason = re.sub(r"^\w+::\w+ is skipped: `[\w-]+` is not in (`.*`) for .*", r"the task is not in \1", reason)
    reason = re.sub(r"<class '[\w.]*?\.(\w+)'>", r"\1", reason)
    return re.sub(r"\bC2FMAE[A-Z][a-z]\w*( class)?", "the class", reason).rstrip(".")


def explain(reason: str) -> str:
    for part, explanation in EXPLANATIONS.items():
        if part in reason:
            return explanation
    raise KeyError(f"{reason!r}: no explanation in EXPLANATIONS of tests/conformity.py why this is skipped")


def describe_environment() -> str:
    """What decides which of the tests can run."""
    parts = [f"{name} {version(name)}" for name in ("transformers", "timm")]
    parts.append(f"torch {torch.__version__.split('+')[0]}, Python {platform.python_version()}")
    parts.append("with an accelerator" if torch.accelerator.is_available() else "no accelerator")
    optional = ("av", "deepspeed", "flash_attn", "kernels", "peft", "pytesseract")
    missing = [name for name in optional if importlib.util.find_spec(name) is None]
    return "; ".join([", ".join(parts[:3]), parts[3], f"without {', '.join(missing) or 'nothing'}"])


@dataclass
class Outcome:
    """Outcome of one test."""

    passed: bool = False
    failed: bool = False
    subtests_passed: int = 0
    reasons: set[str] = field(default_factory=set)

    @property
    def skipped(self) -> bool:
        """Also where each of its subtests was, of which pytest makes a test that passed."""
        return bool(self.reasons) and not self.failed and not self.subtests_passed


class Recorder:
    """A plugin of pytest."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.is_partial = False
        self.seconds = 0.0

    def pytest_deselected(self, items: Iterable[Any]) -> None:
        self.is_partial |= any(find_suite(item.nodeid) for item in items)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda item: item.name == "test_document_is_what_is_observed")  # that one comes last

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if find_suite(report.nodeid) is None:
            return
        self.seconds += report.duration
        outcome = self.outcomes.setdefault(report.nodeid, Outcome())
        is_subtest = hasattr(report, "context")
        if report.failed:
            outcome.failed = True
        elif report.skipped:
            outcome.reasons.add(clean_reason(report.longrepr[2]))  # type: ignore[index]
        elif report.when == "call":
            outcome.subtests_passed += is_subtest
            outcome.passed = True

    def of(self, suite: Suite) -> dict[str, Outcome]:
        return {
            re.sub(r"^tests/", "", name).removeprefix(suite.where).removeprefix("::"): outcome
            for name, outcome in self.outcomes.items()
            if find_suite(name) is suite
        }


def find_suite(nodeid: str) -> Suite | None:
    """Which suite a test belongs to; this repository's own tests beside the upstream ones belong to none."""
    nodeid = re.sub(r"^tests/", "", nodeid)
    if nodeid.endswith("::test_every_size_is_tested"):
        return None
    return next((suite for suite in [*SUITES, REFERENCE] if nodeid.startswith(f"{suite.where}::")), None)


def install(config: pytest.Config) -> None:
    """For the `pytest_configure` of the folders of common tests."""
    if not config.pluginmanager.has_plugin("conformity"):
        config.pluginmanager.register(Recorder(), "conformity")


def render(recorder: Recorder) -> str:
    """The document."""
    lines = [
        "# Conformity",
        "",
        "This page shows which common programs work with our models, and which tests of transformers and timm they "
        "pass.",
        "",
        "## What people do",
        "",
        *call_patterns.render(json.loads(call_patterns.RECORD.read_text(encoding="utf-8"))),
        "",
        "## The libraries' own tests",
        "",
        "transformers and timm test their own models with common suites. The same suites run on ours, taken from "
        "the source distributions of the installed versions: `make test-all`, or",
        "",
        "    python -m pytest tests/transformers_common tests/timm_common",
        "",
        f"Observed with {describe_environment()}.",
        "",
        "| upstream's suite | on | tests | passed | failed | skipped |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for suite in [*SUITES, REFERENCE]:
        outcomes = recorder.of(suite).values()
        skipped = sum(outcome.skipped for outcome in outcomes)
        failed = sum(outcome.failed for outcome in outcomes)
        counts = (len(outcomes), len(outcomes) - skipped - failed, failed, skipped)
        lines.append(f"| {suite.upstream} | {suite.subject} | {' | '.join(map(str, counts))} |")
    ours, vit = (
        {name for name, outcome in recorder.of(suite).items() if outcome.skipped} for suite in (SUITES[0], REFERENCE)
    )
    lines += [
        "",
        f"Of the {len(ours)} tests that the first suite skips, transformers' own ViT skips {len(ours & vit)}, too, "
        f"but not {', '.join(f'`{name}`' for name in sorted(ours - vit))}. A test whose every part is skipped "
        f"counts as skipped.",
        "",
        "Made by `python tests/conformity.py > docs/conformity.md`; `tests/test_conformity.py` compares it with "
        "what it observes, and fails where a test is skipped for a reason that is not explained.",
        "",
        "## What is skipped",
    ]
    for suite in SUITES:
        rows: dict[str, list[str]] = {}
        for name, outcome in recorder.of(suite).items():
            for reason in outcome.reasons if outcome.skipped else ():
                rows.setdefault(reason, []).append(name)
        if not rows:
            continue
        lines += ["", f"### {suite.upstream}, on {suite.subject}", ""]
        lines += ["| upstream's reason | tests | why here |", "| --- | --- | --- |"]
        for reason, names in sorted(rows.items(), key=lambda row: (explain(row[0]), row[0])):
            lines.append(f"| {reason} | {short_names(names)} | {explain(reason)} |")
    lines += ["", "## What is changed", ""]
    lines += [f"- {change}" for change in CHANGES]
    lines += [
        "",
        "timm's tests of other architectures (Swin, NaFlexViT, ...) are left out.",
    ]
    return "\n".join(lines) + "\n"


def short_names(names: list[str]) -> str:
    """Without what all have in common, and those of one test with several inputs once."""
    pattern = r"\[.*|(?<!flash_attn)_\d+(_\w+)?$|_fp16$"
    stems = {re.sub(pattern, "", name).removeprefix("test_") for name in names}
    return f"{len(names)}: {', '.join(f'`{stem}`' for stem in sorted(stems))}"


class Keeper:
    """A plugin that keeps what the folders' plugin recorded."""

    recorder: Recorder

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.recorder = session.config.pluginmanager.get_plugin("conformity")


def main() -> int:
    keeper = Keeper()
    with contextlib.redirect_stdout(sys.stderr):
        code = pytest.main([*(str(TESTS / folder) for folder in FOLDERS), "-q"], plugins=[keeper])
    print(render(keeper.recorder), end="")
    print(f"{keeper.recorder.seconds:.0f} s in tests", file=sys.stderr)
    return int(code)


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    from conformity import main as run  # the module that the tests know

    sys.exit(run())
