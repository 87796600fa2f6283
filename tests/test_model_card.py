"""Records of runs, and the cards that are made of them. The records are those of real runs, on small data."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import pytest
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image
from transformers import TrainingArguments, ViTConfig

from c2fmae_hf import SIZES, C2FMAEConfig, C2FMAEForPreTraining, C2FMAEModel
from c2fmae_hf.publishing.fingerprints import encoder_fingerprint
from c2fmae_hf.publishing.hub import HubError, write_repository
from c2fmae_hf.publishing.model_card import CardFacts, build_card
from c2fmae_hf.publishing.records import (
    METRICS,
    Run,
    RunRecord,
    changed_arguments,
    data_name,
    figures_of,
    load_run,
    run_of_weights,
)
from c2fmae_hf.publishing.redaction import hide_folders, hide_tokens
from c2fmae_hf.publishing.repository import load_saved
from testing_utils import load_command, make_rows, randomized


CARDS = Path(__file__).resolve().parents[1] / "model_cards"
NAME = "me/c2fmae-vit-tiny"
TOKEN = "hf_" + "a1B2" * 9
# What tables and headings are made of, and what a browser would run.
CLASSES = ["a | b", "<script>alert(1)</script>", "one\ntwo", "# `x` [y](z) *w*"]
FILES = ("config.json", "model.safetensors", "decoder.safetensors", "preprocessor_config.json", "modeling_c2fmae.py")


@dataclass(frozen=True)
class Runs:
    pretraining: Path
    streaming: Path
    classifier: Path


def run_example(name: str, args: list[str]) -> None:
    """As `c2fmae <name> args` would be, from a folder of a user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"/home/somebody/{name}.py", *args])
        load_command(name).main(args)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    rows = make_rows(12, size=72)
    datasets.DatasetDict({"train": rows, "validation": rows.select(range(4))}).save_to_disk(folder / "discs")
    labels = datasets.ClassLabel(names=CLASSES)
    labelled = rows.select_columns("image").add_column("label", [i % len(CLASSES) for i in range(12)], feature=labels)
    datasets.DatasetDict({"train": labelled, "validation": labelled.select(range(4))}).save_to_disk(folder / "labels")
    common = ["--use_cpu", "true", "--disable_tqdm", "true", "--image_size", "64", "--logging_steps", "1"]
    common += ["--per_device_train_batch_size", "4"]
    pretraining = ["--dataset_name", str(folder / "discs"), "--size", "tiny", "--num_drawn", "0", "--eval_steps", "1"]
    pretraining += ["--curriculum", "linear"]
    pretraining += ["--config_overrides", '{"num_hidden_layers": 1}', "--eval_strategy", "steps", "--save_steps", "1"]
    first = [*common, *pretraining, "--output_dir", str(folder / "pretraining")]
    run_example("pretrain", [*first, "--max_steps", "1"])
    run_example("pretrain", [*first, "--max_steps", "3", "--resume_from_checkpoint", "last"])
    streaming = ["--streaming", "true", "--num_semantic_classes", "5", "--eval_strategy", "no", "--max_steps", "1"]
    streaming += ["--config_overrides", "{}", "--image_size", "224"]  # a whole size
    streaming += ["--curriculum", "constant", "--curriculum_weights", "1", "0", "0.5"]
    run_example("pretrain", [*common, *pretraining, *streaming, "--output_dir", str(folder / "streaming")])
    run_example(
        "classify",
        [
            *(*common, "--model", str(folder / "pretraining/c2fmae-vit-tiny"), "--max_steps", "2"),
            *("--dataset_name", str(folder / "labels"), "--output_dir", str(folder / "classifier")),
        ],
    )
    return Runs(folder / "pretraining", folder / "streaming", folder / "classifier")


@dataclass(frozen=True)
class Case:
    """What `build_card` takes."""

    config: C2FMAEConfig
    model_class: str
    runs: list[Run]
    files: tuple[str, ...] = FILES

    def build(self, **changes) -> ModelCard:
        case = replace(self, **{name: changes.pop(name) for name in ("runs", "files") if name in changes})
        return build_card(NAME, case.config, case.model_class, files=case.files, runs=case.runs, **changes)


@pytest.fixture
def pretraining(runs) -> Case:
    run = load_run(runs.pretraining, "training")
    config = C2FMAEConfig.from_pretrained(runs.pretraining / "c2fmae-vit-tiny-pretraining")
    return Case(config, "C2FMAEForPreTraining", [run])


@pytest.fixture
def classifier(runs) -> Case:
    config = C2FMAEConfig.from_pretrained(runs.classifier)
    return Case(config, "C2FMAEForImageClassification", [load_run(runs.classifier, "training")])


def tables(text: str) -> list[list[list[str]]]:
    """The cells of every table, as a reader of Markdown takes them."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [[[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in b.splitlines()] for b in blocks]


def results_of(card: ModelCard) -> list[list[str]]:
    return tables(card.text.partition("\n## Results\n")[2])[0][2:]


# The zoo's cards


@pytest.fixture(scope="module")
def build_script():
    import importlib.util

    spec = importlib.util.spec_from_file_location("build_cards", CARDS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_zoo_s_cards_are_what_the_command_gives(build_script, tmp_path):
    (tmp_path / "README.md").write_text((CARDS / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    for path in build_script.main([str(tmp_path)]):
        committed = (CARDS / path.name).read_text(encoding="utf-8")
        assert committed == path.read_text(encoding="utf-8"), f"{path.name}: run python model_cards/build.py"
    names = {*(f"c2fmae-vit-{size}.md" for size in SIZES), "README.md"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert {path.name for path in CARDS.glob("*.md")} == names
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == (CARDS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("size", SIZES)
def test_the_zoo_s_cards_claim_nothing(size):
    text = (CARDS / f"c2fmae-vit-{size}.md").read_text(encoding="utf-8")
    card = ModelCard(text, ignore_metadata_errors=False)
    assert str(card) == text
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-feature-extraction")
    assert data.license == "apache-2.0"
    assert (data.eval_results, data.metrics, data.datasets, data.base_model) == (None, None, None, None)
    assert "**No weights published yet.**" in text
    assert "Nothing has been measured yet." in text
    # Parameters are counted from a model with memory, too, where it is small.
    if size == "tiny":
        model = C2FMAEForPreTraining(C2FMAEConfig.from_size(size))
        for part, module in (("encoder", model.c2fmae), ("decoder", model.decoder)):
            number = sum(value.numel() for value in module.parameters())
            assert f"| parameters, {part} | {number / 1e6:.1f} M |" in text
    # Its code is of this size.
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert f'from_size("{size}")' in code
    readme = (CARDS / "README.md").read_text(encoding="utf-8")
    assert f"(c2fmae-vit-{size}.md)" in readme


def test_records_beside_the_zoo_s_cards_become_results_without_weights(build_script, runs, tmp_path):
    (tmp_path / "runs/tiny").mkdir(parents=True)
    (tmp_path / "runs/tiny/demo").symlink_to(runs.streaming)
    # What was measured with its encoder.
    record = load_run(runs.classifier, "x").files["runs/x/results.json"]
    record["run"]["starting_encoder"] = load_run(runs.streaming, "x").record["encoder"]
    (tmp_path / "runs/tiny/labels.json").write_text(json.dumps(record))
    card = build_script.build("tiny", tmp_path)
    assert "**No weights published yet.**" in card.text
    assert "its records are in `runs/tiny/demo`" in card.text
    names = [row[0] for row in results_of(card)]
    assert "image classification, fine-tuning, mean pooling, from this encoder" in names
    assert card.data.eval_results is None  # a hub would take them for those of weights
    assert "Nothing has been measured" in build_script.build("small", tmp_path).text
    (tmp_path / "README.md").write_text(f"before\n\n{build_script.TABLE}| old |\n\nafter\n")
    build_script.main([str(tmp_path)])
    table = tables((tmp_path / "README.md").read_text())[0]
    assert (tmp_path / "README.md").read_text().endswith("|\n\nafter\n")
    assert [row[0] for row in table[2:]] == list(SIZES)
    assert [row[3] for row in table[2:4]] == ["2", "none yet"]


def test_records_of_another_architecture_are_none_of_a_size(build_script, runs, tmp_path):
    (tmp_path / "runs/tiny").mkdir(parents=True)
    path = tmp_path / "runs/tiny/demo"
    path.symlink_to(runs.classifier)
    with pytest.raises(ValueError, match=r"runs/tiny/demo: expected a run that started from an encoder of \[\]"):
        build_script.build("tiny", tmp_path)
    path.unlink()
    path.symlink_to(runs.pretraining)  # of one block
    with pytest.raises(ValueError, match=r"runs/tiny/demo: .* 'num_hidden_layers': 12.* got .*'num_hidden_layers': 1"):
        build_script.build("tiny", tmp_path)
    (tmp_path / "runs").rename(tmp_path / "others")
    (tmp_path / "runs/huge").mkdir(parents=True)
    (tmp_path / "runs/huge/demo").symlink_to(runs.streaming)
    with pytest.raises(ValueError, match=r"runs/huge/demo: expected a run of the architecture"):
        build_script.build("huge", tmp_path)


# Cards of real runs


def test_figures_are_those_of_the_logs(pretraining, runs):
    card = pretraining.build()
    history = json.loads((runs.pretraining / "trainer_state.json").read_text())["log_history"]
    evaluations = [entry for entry in history if "eval_loss" in entry]
    decoder = json.loads((runs.pretraining / "decoder_results.json").read_text())
    expected = [
        [
            f"pre-training, step {entry['step']}",
            "discs, validation",
            f"held-out {name}loss",
            f"{entry[f'eval_{key}loss']:.3f}",
        ]
        for entry in (evaluations[0], evaluations[-1])
        for name, key in (("", ""), ("semantic ", "semantic_"), ("instance ", "instance_"), ("image ", "image_"))
    ]
    expected += [
        ["the decoder's own maps", "discs, validation", METRICS[name][0], f"{100 * decoder[name]:.1f}"]
        for name in ("semantic_mean_iou", "semantic_accuracy", "instance_pq")
    ]
    assert [row[:4] for row in results_of(card)] == expected
    # A hub is told of the published weights alone: not of those at the first evaluation.
    losses = [result for result in card.data.eval_results if result.metric_type == "loss"]
    names = [f"eval_{key}loss" for key in ("", "semantic_", "instance_", "image_")]
    assert [result.metric_value for result in losses] == [evaluations[-1][name] for name in names]


def test_training_is_told_from_the_record(pretraining, runs):
    text = pretraining.build().text
    record = json.loads((runs.pretraining / "run.json").read_text())
    facts = dict(table for block in tables(text) for table in block if len(table) == 2)
    assert facts["data"] == "discs"
    assert facts["images"] == "train 12, validation 4"
    assert facts["training"] == "3 steps, 1.0 epochs, batch 4"
    assert facts["time"].startswith(f"{record['seconds']:.0f} s, started on {record['started'][:10]}")
    assert facts["resumed"] == "yes; the time covers the last part only"
    assert f"torch {torch.__version__.partition('+')[0]}" in facts["versions"]
    assert "Masking curriculum: linear, semantic then instance then random." in text
    assert "\nmax_steps: 3\n" in text
    assert "pretrain.py --use_cpu true" in text
    assert "--config_overrides '{\"num_hidden_layers\": 1}'" in text  # quoted, so that it can be run again
    assert "1 block per stage" in text


def test_a_shorter_curriculum_is_told(pretraining):
    changed = copy.deepcopy(pretraining.runs[0])
    (record,) = [content for name, content in changed.files.items() if name.endswith("run.json")]
    record["curriculum"].update(length=0.5, region_masking="whole")
    text = pretraining.build(runs=[changed]).text
    assert "then random; each region is masked or visible as a whole; over the first 50% of the run." in text


def test_the_source_of_the_label_maps_is_told_once(pretraining):
    assert "learned from label maps" not in pretraining.build().text  # not a dataset of `c2fmae label`
    changed = copy.deepcopy(pretraining.runs[0])
    (record,) = [content for name, content in changed.files.items() if name.endswith("run.json")]
    record["label_maps"] = "They are predictions of `me/segmenter` and inherit its licence."
    data = pretraining.build(runs=[changed, changed]).text.partition("\n## Data, licences and limits\n")[2]
    told = f"Pre-training learned from label maps. {record['label_maps']}"
    assert data.startswith(f"\n{told}\n\nNothing else is stated")
    assert data.count(told) == 1


def test_streams_are_not_counted(runs):
    run = load_run(runs.streaming, "training")
    config = C2FMAEConfig.from_pretrained(runs.streaming / "c2fmae-vit-tiny")
    text = build_card(NAME, config, "C2FMAEModel", files=FILES, runs=[run]).text
    assert "| images | train uncounted, validation uncounted |" in text
    assert "Masking curriculum: constant, semantic 1, instance 0, random 0.5." in text
    assert "| pre-training, step 1 | discs, validation | held-out loss |" in text  # once, in the end
    assert "resumed" not in text


def test_cards_of_classifiers(classifier, runs):
    card = classifier.build()
    score = json.loads((runs.classifier / "results.json").read_text())["results"]["mean"]["top1_accuracy"]
    task = "image classification, fine-tuning, mean pooling"
    assert results_of(card)[0][:4] == [task, "labels, validation", "top-1 accuracy, %", f"{100 * score:.1f}"]
    assert card.data.pipeline_tag == "image-classification"
    assert "AutoModelForImageClassification.from_pretrained" in card.text
    # Names of classes stay within their cell, and are not taken for Markdown or HTML.
    assert "<script>" not in card.text
    assert not re.search(r"^two", card.text, re.MULTILINE)
    assert {len({len(row) for row in table}) for table in tables(card.text)} == {1}
    classes = next(row[1] for table in tables(card.text) for row in table if row[0] == "classes")
    assert classes.startswith("4: a \\| b, &lt;script&gt;alert(1)&lt;/script&gt;, one two, # \\`x\\`")


def test_an_evaluation_is_no_training(pretraining, runs):
    """A fine-tuning that started from the encoder tells of it; it did not make it, nor is its score the encoder's."""
    whole, _ = load_saved(runs.pretraining / "c2fmae-vit-tiny-pretraining")
    evaluation = run_of_weights(load_run(runs.classifier, "evaluation-1"), whole)
    assert evaluation.role == "transferred"
    card = pretraining.build(runs=[*pretraining.runs, evaluation])
    training = card.text.partition("\n## Training\n")[2].partition("\n## Results\n")[0]
    assert "classify.py" not in training
    assert results_of(card)[-1][4] == "`runs/evaluation-1/results.json:results.mean.top1_accuracy`"
    assert results_of(card)[-1][0].endswith(", from this encoder")
    assert {result.task_type for result in card.data.eval_results} == {"image-feature-extraction"}


def test_a_record_s_role_is_told_by_all_weights(pretraining, classifier, runs):
    made = load_run(runs.pretraining, "training")
    whole, _ = load_saved(runs.pretraining / "c2fmae-vit-tiny-pretraining")
    assert run_of_weights(made, whole).role == "made"
    # The encoder alone: what was measured is of the decoder, too, and is left out.
    encoder, _ = load_saved(runs.pretraining / "c2fmae-vit-tiny")
    made_encoder = run_of_weights(made, encoder)
    assert made_encoder.role == "made_encoder"
    assert figures_of(made)
    assert figures_of(made_encoder) == []
    # Another decoder, another head, another encoder: another model.
    with torch.no_grad():
        whole.decoder.mask_token.add_(1)
    assert run_of_weights(made, whole) is None
    fine_tuned, model = load_run(runs.classifier, "training"), load_saved(runs.classifier)[0]
    assert run_of_weights(fine_tuned, model).role == "made"
    assert run_of_weights(made, model) is None  # its encoder was trained further
    assert run_of_weights(fine_tuned, encoder).role == "transferred"
    with torch.no_grad():
        model.classifier.bias.add_(1)
    assert run_of_weights(fine_tuned, model) is None


def test_a_run_that_only_judged(classifier, runs):
    model = load_saved(runs.classifier)[0]
    record = RunRecord("image_classification", [], {}, {}, starting_model=model).finish()
    run = Run({"runs/evaluation-1/results.json": {"run": record, "results": {"mean": {"top1_accuracy": 0.5}}}})
    assert run_of_weights(run, model).role == "judged"


def test_the_card_is_of_what_is_written(pretraining, runs, tmp_path):
    model, processor = load_saved(runs.pretraining / "c2fmae-vit-tiny-pretraining")
    processor.image_mean = [0.5, 0.25, 0.125]
    write_repository(model, tmp_path / "own", NAME, processor=processor)
    assert "normalised with mean 0.5, 0.25, 0.125 and" in (tmp_path / "own/README.md").read_text()
    assert "No record says whether these weights were pre-trained" in (tmp_path / "own/README.md").read_text()
    processor.crop_size = {"height": 32, "width": 32}
    with pytest.raises(ValueError, match=r"processor.crop_size: expected the model's \(64, 64\).* got \(32, 32\)"):
        write_repository(model, tmp_path / "other", NAME, processor=processor)
    # A processor is made if none is given; the pre-training row is that of a model that can be pre-trained.
    write_repository(load_saved(runs.pretraining / "c2fmae-vit-tiny")[0], tmp_path / "encoder", NAME)
    assert (tmp_path / "encoder/preprocessor_config.json").is_file()
    assert "| pre-training |" not in (tmp_path / "encoder/README.md").read_text()


def test_what_fails_leaves_nothing(pretraining, runs, tmp_path):
    model, _ = load_saved(runs.pretraining / "c2fmae-vit-tiny")
    with pytest.raises(HubError, match=r"README.md holds what looks like an access token"):
        write_repository(model, tmp_path / "out", NAME, facts=CardFacts(data=f"Ask with {TOKEN}."))
    for name in ("me/a b", "", 'me/x"); import os'):
        with pytest.raises(HubError, match="repo_id: expected 'name' or 'owner/name'"):
            write_repository(model, tmp_path / "out", name)
    assert not list(tmp_path.iterdir())
    write_repository(model, tmp_path / "out", NAME)
    with pytest.raises(FileExistsError, match="expected a new or an empty folder"):
        write_repository(model, tmp_path / "out", NAME)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_card_shows_the_picture_that_the_run_left(runs, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(runs.pretraining, run)

    def preview(name: str, *options: str) -> tuple[bytes | None, bool]:
        """The published picture, and whether the card refers to it."""
        folder = tmp_path / name
        load_command("push").main([str(run / "c2fmae-vit-tiny"), NAME, "--preview", str(folder), *options])
        picture, card = folder / "predictions.png", (folder / "README.md").read_text(encoding="utf-8")
        return picture.read_bytes() if picture.is_file() else None, "(predictions.png)" in card and "A fox." in card

    caption = ("--caption", "A fox.")
    with pytest.raises(FileNotFoundError, match="expected a PNG, got a run that left none"):
        preview("none", "--picture", *caption)
    Image.new("RGB", (8, 8)).save(run / "reconstruction.png")
    drawn = (run / "reconstruction.png").read_bytes()
    assert preview("unasked", *caption) == (None, False)  # photographs may be private
    assert "pass --picture" in capsys.readouterr().out
    assert preview("asked", "--picture", *caption) == (drawn, True)
    Image.new("RGB", (9, 9)).save(tmp_path / "other.png")
    assert preview("chosen", "--picture", str(tmp_path / "other.png"), *caption)[0] != drawn
    os.utime(run / "reconstruction.png", (1, 1))  # left by an earlier run
    with pytest.raises(FileNotFoundError, match="left none"):
        preview("earlier", "--picture", *caption)


def test_the_card_can_rename_the_records_datasets(pretraining):
    card = pretraining.build(facts=CardFacts(data_names={"discs": "Discs of June"}))
    assert "| data | Discs of June |" in card.text
    assert "| Discs of June, validation |" in card.text
    assert "| discs" not in card.text
    assert {result.dataset_name for result in card.data.eval_results} == {"Discs of June"}


def test_no_folders_of_the_machine_and_no_secrets(pretraining, classifier, runs):
    for case in (pretraining, classifier):
        published = json.dumps([run.files for run in case.runs]) + str(case.build())
        assert str(runs.pretraining.parent) not in published
        assert "somebody" not in published
        assert ".../discs" in published or ".../labels" in published


def test_metadata_round_trip(pretraining, tmp_path):
    facts = CardFacts("cc-by-4.0", ("ILSVRC/imagenet-1k", "me/maps"), "me/base-model.v1", tags=("discs",))
    card = pretraining.build(facts=facts)
    card.save(tmp_path / "README.md")
    loaded = ModelCard.load(tmp_path / "README.md", ignore_metadata_errors=False)
    assert str(loaded) == str(card)
    assert isinstance(loaded.data, ModelCardData)
    assert loaded.data.license == "cc-by-4.0"
    assert loaded.data.datasets == ["ILSVRC/imagenet-1k", "me/maps"]
    assert loaded.data.base_model == "me/base-model.v1"
    assert loaded.data.tags == ["c2fmae", "masked-autoencoder", "vision", "timm", "discs"]
    assert loaded.data.model_name == "c2fmae-vit-tiny"
    evidence = {file: content for run in pretraining.runs for file, content in run.files.items()}
    assert len(loaded.data.eval_results) == 7
    for result in loaded.data.eval_results:
        assert isinstance(result, EvalResult)
        file, _, place = result.metric_args["record"].partition(":")
        value = evidence[file]
        for part in place.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
        assert value == result.metric_value
        assert result.source_url == f"https://huggingface.co/{NAME}/tree/main/runs"
    again = ModelCardData(**loaded.data.to_dict(), ignore_metadata_errors=False)
    assert again.to_dict() == loaded.data.to_dict()


def test_a_licence_that_hubs_do_not_know(pretraining):
    data = pretraining.build(facts=CardFacts(license="other")).data
    assert (data.license, data.license_link) == ("other", "LICENSE")


def test_the_name_of_a_licence_that_hubs_do_not_know(pretraining):
    facts = CardFacts(license="other", license_name="non-commercial-research")
    card = pretraining.build(facts=facts)
    assert (card.data.license, card.data.license_name) == ("other", "non-commercial-research")
    assert pretraining.build(facts=CardFacts(license_name="unused")).data.license_name is None


def test_code_of_weights_that_are_on_no_hub(pretraining):
    card = pretraining.build(folder="weights/demo")
    text = card.text
    assert 'AutoModel.from_pretrained("weights/demo")' in text
    assert 'timm.create_model("local-dir:weights/demo", pretrained=True)' in text
    assert "hf-hub:" not in text
    assert all(result.source_url is None for result in card.data.eval_results)


def test_usage_says_what_the_repository_has(pretraining):
    card = pretraining.build(files=("config.json", "model.safetensors", "decoder.safetensors"), runs=[])
    assert "trust_remote_code" not in card.text
    assert "AutoImageProcessor" not in card.text
    assert "C2FMAEImageProcessor.from_config(model.config)" in card.text
    assert "There is no record of a training run of these weights." in card.text
    assert "Nothing has been measured yet." in card.text
    assert card.data.eval_results is None
    files = dict(row[:2] for row in tables(card.text.partition("## Files")[2])[0][2:])
    assert files == {
        "`config.json`": "configuration",
        "`model.safetensors`": "encoder",
        "`decoder.safetensors`": "pre-training decoder",
    }


def test_peers_are_not_called_c2fmae(runs):
    config = ViTConfig(num_hidden_layers=1, id2label={0: "cat"}, label2id={"cat": 0})
    card = build_card("me/vit", config, "ViTForImageClassification", files=("config.json", "model.safetensors"))
    assert card.text.count("C2FMAE") == 1
    assert "A ViTForImageClassification. Its encoder is not C2FMAE's." in card.text
    assert "import c2fmae_hf" not in card.text
    assert (card.data.pipeline_tag, card.data.tags) == ("image-classification", ["vision"])


def test_values_that_are_not_finite(pretraining):
    """Said in the table; a hub's metadata have no word for them."""
    run = pretraining.runs[0]
    state = json.loads(json.dumps(run.files["runs/training/trainer_state.json"]))
    last = max(index for index, entry in enumerate(state["log_history"]) if "eval_loss" in entry)
    state["log_history"][last].update(eval_loss=float("nan"), eval_image_loss=float("inf"))
    changed = replace(run, files={**run.files, "runs/training/trainer_state.json": state})
    card = pretraining.build(runs=[changed])
    assert [row[3] for row in results_of(card)].count("not finite") == 2
    values = [result.metric_value for result in card.data.eval_results]
    assert len(values) == 5
    assert all(abs(value) < 100 for value in values)


def test_data_and_base_model_of_the_records_are_metadata(pretraining, classifier):
    run = classifier.runs[0]
    record = run.files["runs/training/results.json"]
    record["run"].update(data="me/labels", base_model="me/c2fmae-vit-tiny")
    made_start = replace(pretraining.runs[0], role="made_start")
    card = classifier.build(runs=[made_start, replace(run, role="made")])
    assert (card.data.datasets, card.data.base_model) == (["me/labels"], "me/c2fmae-vit-tiny")
    assert "No record says" not in card.text
    assert card.text.count("one run; its records are in") == 2
    stated = CardFacts(base_model="me/other", datasets=("me/more",))
    card = classifier.build(runs=[run], facts=stated)
    assert (card.data.datasets, card.data.base_model) == (["me/more"], "me/other")


def test_what_was_converted_is_called_so():
    config = C2FMAEConfig.from_size("tiny", converted_from="google/vit-tiny")
    arguments = ("me/x", config, "C2FMAEModel")
    card = build_card(*arguments, files=FILES, facts=CardFacts(license="cc-by-nc-4.0"))
    assert "The weights were converted from `google/vit-tiny`, which others made." in card.text
    assert (card.data.license, card.data.base_model) == ("cc-by-nc-4.0", "google/vit-tiny")
    config.converted_from = "mae_pretrain_vit_tiny.pth"
    assert build_card(*arguments, files=FILES, facts=CardFacts(license="other")).data.base_model is None


def test_label_maps_are_a_limit_of_what_learned_from_them():
    words = "The encoder learned objects from label maps"
    learned = C2FMAEConfig.from_size("tiny")
    pixels = C2FMAEConfig.from_size("tiny", granularities=["image"])
    converted = C2FMAEConfig.from_size("tiny", converted_from="google/vit-tiny")
    for config, is_said in ((learned, True), (pixels, False), (converted, False), (ViTConfig(), False)):
        name = "C2FMAEModel" if isinstance(config, C2FMAEConfig) else "ViTModel"
        text = build_card("me/x", config, name, files=FILES, facts=CardFacts(license="mit")).text
        assert (words in text) is is_said
        assert "Not tested for bias." in text
    assert words not in build_card("me/x", learned, "C2FMAEModel", files=FILES, facts=CardFacts(limits="None.")).text


def test_the_run_before_is_told_by_its_encoder(runs, tmp_path):
    model, processor = load_saved(runs.classifier)
    both = [load_run(runs.pretraining, "pretraining"), load_run(runs.classifier, "training")]
    write_repository(model, tmp_path / "both", NAME, processor=processor, runs=both)
    card = ModelCard.load(tmp_path / "both/README.md")
    assert "Pre-training, one run; its records are in `runs/pretraining`." in card.text
    assert {row[4].split("/")[1] for row in results_of(card)} == {"training"}
    with pytest.raises(ValueError, match=r"expected a record of the weights to be published"):
        write_repository(model, tmp_path / "alone", NAME, processor=processor, runs=both[:1])


def test_a_record_of_other_weights_is_refused(pretraining, runs, tmp_path):
    model = randomized(C2FMAEForPreTraining(pretraining.config))
    with pytest.raises(ValueError, match=r"expected a record of the weights to be published"):
        write_repository(model, tmp_path / "other", NAME, runs=pretraining.runs)
    model, processor = load_saved(runs.pretraining / "c2fmae-vit-tiny-pretraining")
    write_repository(model, tmp_path / "own", NAME, processor=processor, runs=pretraining.runs)
    records = {path.name: path.read_text() for path in (tmp_path / "own/runs").rglob("*.json")}
    assert {"run.json", "trainer_state.json"} <= set(records)
    assert not any(str(runs.pretraining.parent) in text for text in records.values())  # of the run's machine
    assert "log_history" in (tmp_path / "own/README.md").read_text()


# Records


def test_no_folder_of_this_machine_is_recorded():
    given = SomeArguments("/home/me/photos", names=["/a/b", "rel/v", "https://host/x"])
    record = RunRecord("pretraining", [given], {}, {}).finish()
    assert record["arguments"] == {"dataset_name": ".../photos", "names": [".../b", "rel/v", "https://host/x"]}
    assert record["data"] == "photos"
    hidden = hide_folders({"settings": {"dataset_name": "/home/me/x", "share": 0.5}, "best": [None, "~me/u", "me/u"]})
    assert hidden == {"settings": {"dataset_name": ".../x", "share": 0.5}, "best": [None, ".../u", "me/u"]}


@dataclass
class SomeArguments:
    dataset_name: str | None = None
    hub_token: str | None = field(default=None, repr=False)
    names: list[str] = field(default_factory=list)
    url: str = ""
    number: float = 1.0
    other: object = None
    folder: Path = Path("here")


def test_arguments_that_differ_from_their_defaults():
    given = SomeArguments("a/b", TOKEN, ["x"], f"https://me:secret@host/x?t={TOKEN}", 1.0, object(), Path("there"))
    assert changed_arguments(given) == {
        "dataset_name": "a/b",
        "names": ["x"],
        "url": "https://***@host/x?***",
        "folder": "there",
    }
    assert changed_arguments(SomeArguments()) == {}


def test_arguments_of_trainers():
    """What transformers makes of its own defaults is nobody's argument."""
    args = TrainingArguments("out", use_cpu=True, hub_token=TOKEN, max_steps=5)
    changed = changed_arguments(args)
    assert {key: changed[key] for key in ("output_dir", "use_cpu", "max_steps")} == {
        "output_dir": "out",
        "use_cpu": True,
        "max_steps": 5,
    }
    assert not [name for name in changed if "token" in name or "config" in name]
    assert TOKEN not in json.dumps(changed)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["/home/a/run.py", "--hub_token", TOKEN, "--x", "1"], "run.py --hub_token '***' --x 1"),
        (["run.py", f"--hub_token={TOKEN}"], "run.py '--hub_token=***'"),
        (["run.py", "--hub_token", "short"], "run.py --hub_token '***'"),
        (["run.py", "--x", TOKEN], "run.py --x '***'"),
        (["run.py", "https://me:secret@host/y"], "run.py 'https://***@host/y'"),
        (["run.py", "https://me:p@ss@host/y?X-Sig=abc"], "run.py 'https://***@host/y?***'"),
        (["run.py", "--api_key", "short", "--password=p"], "run.py --api_key '***' '--password=***'"),
        (["run.py", f"my_{TOKEN}"], "run.py 'my_***'"),
        (["run.py", "--x", "a b; rm -rf"], "run.py --x 'a b; rm -rf'"),
        (["run.py", "--hub_token"], "run.py --hub_token"),
        (["run.py", "/home/me/x y", "--b=/home/me/z", "rel/v"], "run.py '.../x y' --b=.../z rel/v"),
    ],
)
def test_commands_are_quoted_and_hide_tokens(command, expected):
    assert hide_tokens(command) == expected


def test_names_of_data(tmp_path, monkeypatch):
    (tmp_path / "mine/rows").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for given, name in {
        "mine/rows": "rows",  # a folder that is there
        "me/rows": "me/rows",  # on a hub
        "imagenet-1k": "imagenet-1k",
        "/data/photos": "photos",
        "mine/photos-*.parquet": "photos",
        "/data/photos/*.parquet": "photos",
        ".../photos": "photos",
        "runs/mine/dataset": "mine",  # of a run on photographs
    }.items():
        assert data_name(given) == name, given
    assert data_name(None) == "not recorded"
    # Whether it is a folder is only known where the run is.
    record = RunRecord("pretraining", [SomeArguments("mine/rows")], {"train": 1}, {}).finish()
    monkeypatch.chdir("/")
    assert record["data"] == "rows"


def test_a_record_knows_its_encoder(config):
    model = randomized(C2FMAEForPreTraining(config))
    record = RunRecord("pretraining", [SomeArguments("x")], {"train": 3}, {"train": "all"}, starting_model=model)
    started = encoder_fingerprint(model)
    assert encoder_fingerprint(model.c2fmae) == started  # whatever class holds it
    encoder = C2FMAEModel(config)
    encoder.load_state_dict(model.c2fmae.state_dict())
    assert encoder_fingerprint(encoder) == started
    with torch.no_grad():
        model.c2fmae.norm.bias[0] += 1
    content = record.finish(model, more=1)
    assert (content["starting_encoder"], content["more"]) == (started, 1)
    assert content["encoder"] == encoder_fingerprint(model) != started
    assert content["weights"] != content["starting_weights"]
    json.dumps(content)


@pytest.mark.parametrize("loaded", [torch.bfloat16, torch.float32])
def test_a_copy_in_bfloat16_keeps_its_record(config, tmp_path, loaded):
    model = randomized(C2FMAEForPreTraining(config))
    content = RunRecord("pretraining", [SomeArguments("x")], {"train": 3}, {"train": "all"}).finish(model)
    (tmp_path / "run.json").write_text(json.dumps(content))
    run = load_run(tmp_path, "training")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "copy")
    copy = C2FMAEForPreTraining.from_pretrained(tmp_path / "copy", dtype=loaded)
    assert run_of_weights(run, copy).role == "made"
    assert run_of_weights(run, copy.image_encoder()).role == "made_encoder"
    with torch.no_grad():
        copy.decoder.norm.bias[0] += 1
    assert run_of_weights(run, copy) is None


def test_folders_without_records(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected run.json or results.json of a run"):
        load_run(tmp_path, "x")
    for content in ("{", "\udce4", "[]"):
        (tmp_path / "run.json").write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(ValueError, match=r"run.json: expected (a )?JSON"):
            load_run(tmp_path, "x")
