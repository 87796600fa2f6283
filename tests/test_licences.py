"""Models made from weights keep the licence of these weights."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments, ViTConfig, ViTModel

from c2fmae_hf import C2FMAEForImageClassification, C2FMAEForPreTraining, C2FMAEModel
from c2fmae_hf.interop.starting_point import load_starting_point
from c2fmae_hf.publishing.hub import HubError, write_repository
from c2fmae_hf.publishing.licences import inherited_license, own_license
from c2fmae_hf.publishing.model_card import CardFacts
from c2fmae_hf.publishing.records import RunRecord, load_run
from c2fmae_hf.transfer.detection import build_mask_rcnn
from c2fmae_hf.transfer.segmentation import build_segmenter
from c2fmae_hf.utils.files import write_json
from testing_utils import load_command, with_fields


@pytest.fixture
def source(config, tmp_path):
    """A small model with its own licence, named in its card, like the weights in the repository."""
    model = C2FMAEForPreTraining(with_fields(config, num_hidden_layers=4))
    folder = tmp_path / "source"
    model.save_pretrained(folder)
    (folder / "LICENSE").write_text("For research alone. Pass this text on.")
    head = {"license": "other", "license_name": "research-alone", "license_link": "LICENSE"}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(head)}---\n# A model\n")
    return folder


def published(model, folder, **options) -> tuple[dict, str]:
    """Publish a model to a folder; return the metadata of its card, and the licence text."""
    write_repository(model, folder, "me/derived", **options)
    head = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    return head, (folder / "LICENSE").read_text()


def test_models_made_from_the_shipped_weights_keep_their_licence(repository, tmp_path):
    shipped = repository / "model_cards/c2fmae-vit-tiny-stl10"
    model = AutoModelForImageClassification.from_pretrained(shipped, num_labels=2)
    head, text = published(model, tmp_path / "published")
    assert (head["license"], head["license_name"]) == ("other", "non-commercial-research")
    assert text == (shipped / "LICENSE").read_text()
    for freer in ("apache-2.0", "mit"):
        with pytest.raises(HubError, match=rf"expected other, the licence .* got {freer}\. Leave it out\. Nothing"):
            write_repository(
                model, tmp_path / freer, "me/x", facts=CardFacts(license=freer), license_text="do as you like"
            )
        assert not (tmp_path / freer).exists()


def test_a_stock_trainer_carries_the_text(source, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(source, num_labels=2)
    rows = [{"pixel_values": torch.randn(3, 32, 32), "labels": index % 2} for index in range(4)]
    args = TrainingArguments(str(tmp_path / "run"), max_steps=1, use_cpu=True, report_to="none", save_steps=1)
    trainer = Trainer(model, args, train_dataset=rows)
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path / "run", tmp_path / "run/checkpoint-1"):
        assert (folder / "LICENSE").read_text() == "For research alone. Pass this text on."
    again = C2FMAEForImageClassification.from_pretrained(tmp_path / "run")
    head, text = published(again, tmp_path / "published")
    assert (head["license"], head["license_name"], text) == ("other", "as-its-source", model.license_text)


@pytest.mark.parametrize("kind", ["encoder", "further pre-training", "detector", "segmenter"])
def test_every_derived_model_keeps_the_licence(source, config, tmp_path, kind):
    if kind == "encoder":
        model = C2FMAEForPreTraining.from_pretrained(source).image_encoder()
    elif kind == "further pre-training":
        model = load_starting_point(str(source))
    elif kind == "detector":
        small = {"pyramid_channels": 16, "num_box_convolutions": 1, "num_mask_convolutions": 1, "box_hidden_size": 32}
        model = build_mask_rcnn(str(source), {0: "a"}, image_size=32, max_image_size=64, **small)
    else:
        model = build_segmenter(str(source), {0: "a", 1: "b"}, head="upernet", head_channels=16)
    inherited = inherited_license(model)
    assert inherited is not None
    assert inherited.text == "For research alone. Pass this text on."


@pytest.mark.parametrize("format", ["c2fmae", "timm", "vit"])
def test_a_conversion_carries_the_text(source, tmp_path, format):
    load_command("convert").main([str(source), str(tmp_path / "out"), "--format", format, "--encoder_only"])
    assert (tmp_path / "out/LICENSE").read_text() == "For research alone. Pass this text on."


def test_a_conversion_of_a_vit_keeps_its_licence_text(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8), add_pooling_layer=False).save_pretrained(
        tmp_path / "vit"
    )
    (tmp_path / "vit/LICENSE").write_text("Theirs.")
    load_command("convert").main([str(tmp_path / "vit"), str(tmp_path / "out")])
    assert (tmp_path / "out/LICENSE").read_text() == "Theirs."
    assert load_starting_point(str(tmp_path / "vit")).license_text == "Theirs."


def test_a_later_card_cannot_turn_a_restrictive_text_into_apache(source, tmp_path):
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    head, text = published(C2FMAEModel.from_pretrained(source), tmp_path / "published")
    assert (head["license"], text) == ("other", "For research alone. Pass this text on.")


def test_a_new_model_is_under_apache(config, tmp_path):
    model = C2FMAEModel(config)
    assert inherited_license(model) is None
    head, text = published(model, tmp_path / "first")
    assert (head["license"], text.split()) == ("apache-2.0", own_license().split())
    again = C2FMAEModel.from_pretrained(tmp_path / "first")  # with Apache-2.0 beside the weights
    assert inherited_license(again) is None
    again.save_pretrained(tmp_path / "second")
    assert not (tmp_path / "second/LICENSE").exists()


def test_records_beside_published_weights_are_published_too(repository, tmp_path, capsys):
    shipped = repository / "model_cards/c2fmae-vit-tiny-stl10"
    load_command("push").main([str(shipped), "me/again", "--preview", str(tmp_path / "again")])
    for path in sorted(shipped.glob("runs/*/*.json")):
        assert json.loads((tmp_path / "again" / path.relative_to(shipped)).read_text()) == json.loads(path.read_text())
    card = (tmp_path / "again/README.md").read_text()
    assert "linear probe" in card
    assert (tmp_path / "again/LICENSE").read_text() == (shipped / "LICENSE").read_text()
    # Records of weights that have changed since are left out, with a message.
    model = C2FMAEForPreTraining.from_pretrained(shipped)
    with torch.no_grad():
        model.decoder.mask_token.add_(1)
        next(model.c2fmae.parameters()).add_(1)
    shutil.copytree(shipped, tmp_path / "changed")
    model.save_pretrained(tmp_path / "changed")
    load_command("push").main([str(tmp_path / "changed"), "me/changed", "--preview", str(tmp_path / "preview")])
    assert f"{tmp_path / 'changed/runs/training'} is left out: it is the record of other" in capsys.readouterr().out
    assert not (tmp_path / "preview/runs").exists()


def test_the_record_of_a_run_names_the_licence_without_its_text(source, tmp_path):
    model = C2FMAEForPreTraining.from_pretrained(source)
    record = RunRecord("pretraining", (), {"train": 1}, {"train": "train"}, starting_model=model)
    with torch.no_grad():
        model.decoder.mask_token.add_(1)
    model.save_pretrained(tmp_path / "run")
    write_json(tmp_path / "run/run.json", record.finish(model))
    assert record.content["license"] == "research-alone"
    (tmp_path / "run/LICENSE").unlink()
    model, runs = C2FMAEForPreTraining.from_pretrained(tmp_path / "run"), [load_run(tmp_path / "run", "training")]
    own = CardFacts(license="mit")
    for facts in (None, own):
        with pytest.raises(HubError, match=r"expected the text of research-alone, .* Copy the LICENSE file"):
            write_repository(model, tmp_path / "published", "me/derived", runs=runs, facts=facts, license_text="Do.")
    model.license_text = "For research alone. Pass this text on."
    _, text = published(model, tmp_path / "published", runs=runs)
    assert text == model.license_text


FREE = "Permission is hereby granted, free of charge, to any person."


def card(folder, **head) -> None:
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(head)}---\n# A model\n")


def test_a_card_alone_names_the_licence(source, tmp_path):
    (source / "LICENSE").unlink()
    card(source, license="cc-by-nc-4.0")
    model = C2FMAEForPreTraining.from_pretrained(source)
    head, text = published(model, tmp_path / "published")
    assert head["license"] == "cc-by-nc-4.0"
    assert text == "The model card of the weights that these were made from names their licence: cc-by-nc-4.0.\n"
    with pytest.raises(HubError, match=r"expected cc-by-nc-4\.0, .*got apache-2\.0"):
        write_repository(model, tmp_path / "free", "me/x", facts=CardFacts(license="apache-2.0"))
    model.save_pretrained(tmp_path / "derived")  # without a card
    assert (tmp_path / "derived/LICENSE").read_text() == text
    _, text = published(model, tmp_path / "b", facts=CardFacts(license="CC-BY-NC-4.0"), license_text="Its text.")
    assert text == "Its text."


@pytest.mark.parametrize("name", ["LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING"])
def test_the_text_may_have_another_name(source, tmp_path, name):
    (source / "LICENSE").rename(source / name)
    _, text = published(C2FMAEForPreTraining.from_pretrained(source), tmp_path / "published")
    assert text == "For research alone. Pass this text on."


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8"])
def test_a_text_in_another_encoding_is_read(source, tmp_path, encoding):
    (source / "LICENSE").write_bytes("© for research alone".encode(encoding))
    _, text = published(C2FMAEForPreTraining.from_pretrained(source), tmp_path / "published")
    assert text == "© for research alone"


def test_free_licences_are_recognised(source, tmp_path):
    """Apache-2.0 with a filled-in appendix, an empty file, and a text that only the caller names."""
    card(source, license="apache-2.0")
    (source / "LICENSE").write_text(own_license().replace("[yyyy] [name of copyright owner]", "2024 Somebody"))
    head, _ = published(C2FMAEForPreTraining.from_pretrained(source), tmp_path / "a")
    assert head["license"] == "apache-2.0"
    (source / "LICENSE").write_text("")
    head, _ = published(C2FMAEForPreTraining.from_pretrained(source), tmp_path / "b")
    assert head["license"] == "apache-2.0"
    (source / "README.md").unlink()
    (source / "LICENSE").write_text(FREE)
    model = C2FMAEForPreTraining.from_pretrained(source)
    head, text = published(model, tmp_path / "c", facts=CardFacts(license="mit"), license_text=FREE)
    assert (head["license"], text) == ("mit", FREE)
    with pytest.raises(HubError, match=r"expected other, .* got mit\. Leave it out, or pass the text"):
        write_repository(model, tmp_path / "d", "me/x", facts=CardFacts(license="mit"), license_text="Another.")


@pytest.mark.parametrize("value", [5, ["mit"], {"a": 1}])
def test_invalid_licence_fields_of_a_card_are_ignored(source, tmp_path, value):
    card(source, license=value, license_name=value)
    head, _ = published(C2FMAEForPreTraining.from_pretrained(source), tmp_path / "published")
    assert (head["license"], head["license_name"]) == ("other", "as-its-source")


def test_a_text_needs_the_name_of_its_licence(config, tmp_path, capsys):
    model = C2FMAEModel(config)
    for facts in (None, CardFacts(license="apache-2.0")):
        with pytest.raises(HubError, match="license: expected the name of the licence whose text is given"):
            write_repository(model, tmp_path / "x", "me/x", facts=facts, license_text="Only for research.")
    assert not (tmp_path / "x").exists()
    with pytest.raises(SystemExit):
        load_command("push").parse(["model", "me/x", "--license_name", "my-own"])
    assert "--license_name goes with --license other" in capsys.readouterr().err


def test_names_and_texts_of_another_licence_are_refused(source, tmp_path):
    model = C2FMAEForPreTraining.from_pretrained(source)
    with pytest.raises(HubError, match=r"expected research-alone, .* got free-for-all"):
        write_repository(model, tmp_path / "a", "me/x", facts=CardFacts(license="other", license_name="free-for-all"))
    with pytest.raises(HubError, match="license_text: expected the licence of the weights"):
        write_repository(model, tmp_path / "a", "me/x", facts=CardFacts(license="other"), license_text="Free.")


def test_saving_replaces_the_licence_of_the_folder(source, tmp_path, caplog):
    target = tmp_path / "target"
    target.mkdir()
    (target / "LICENSE").write_text(FREE)
    C2FMAEForPreTraining.from_pretrained(source).save_pretrained(target)
    assert (target / "LICENSE").read_text() == "For research alone. Pass this text on."
    assert f"{target / 'LICENSE'} is replaced by the licence of the weights" in caplog.text


def test_an_export_has_the_licence_beside_it(source, tmp_path):
    load_command("export").main([str(source), str(tmp_path / "out"), "--format", "pt2"])
    assert (tmp_path / "out/LICENSE").read_text() == "For research alone. Pass this text on."


def test_other_folders_in_runs_are_ignored(repository, tmp_path, capsys):
    shutil.copytree(repository / "model_cards/c2fmae-vit-tiny-stl10", tmp_path / "model")
    (tmp_path / "model/runs/Nov28_host").mkdir()  # TensorBoard's
    (tmp_path / "model/runs/Nov28_host/events.out.tfevents").touch()
    other = json.loads((tmp_path / "model/runs/training/run.json").read_text())
    write_json(tmp_path / "model/runs/other/run.json", {**other, "weights": "x", "encoder": "y"})
    write_json(tmp_path / "results.json", json.loads((tmp_path / "model/runs/knn/results.json").read_text()))
    (tmp_path / "model/runs/knn").rename(tmp_path / "model/runs/evaluation-1")
    words = [str(tmp_path / "model"), "me/x", "--preview", str(tmp_path / "preview")]
    load_command("push").main([*words, "--results", str(tmp_path / "results.json")])
    assert f"{tmp_path / 'model/runs/other'} is left out" in capsys.readouterr().out
    kept = {path.name for path in (tmp_path / "preview/runs").iterdir()}
    assert kept == {"training", "linear_probe", "knn_caltech101", "evaluation-1", "evaluation-2"}


@pytest.mark.parametrize("role", ["encoder", "start"])
def test_the_record_of_an_earlier_run_names_the_licence_too(source, tmp_path, role):
    """The model of the run was loaded as another class, or trained further."""
    start = C2FMAEForPreTraining.from_pretrained(source)
    record = RunRecord("pretraining", (), {"train": 1}, {"train": "train"}, starting_model=start)
    write_json(tmp_path / "first/run.json", record.finish(start))
    start.image_encoder().save_pretrained(tmp_path / "encoder")
    (tmp_path / "encoder/LICENSE").unlink()
    model = C2FMAEModel.from_pretrained(tmp_path / "encoder")
    runs = [load_run(tmp_path / "first", "pretraining")]
    if role == "start":
        own = RunRecord("image_classification", (), {"train": 1}, {"train": "train"}, starting_model=model)
        own.content.pop("license", None)
        with torch.no_grad():
            next(model.parameters()).add_(1)
        write_json(tmp_path / "second/run.json", own.finish(model))
        runs.append(load_run(tmp_path / "second", "training"))
    with pytest.raises(HubError, match=r"expected the text of research-alone, "):
        write_repository(model, tmp_path / "published", "me/derived", runs=runs)
