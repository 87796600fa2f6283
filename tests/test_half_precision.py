"""Weights in half precision: fine-tuned in float32, refused where training or evaluation would round them."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel, TrainingArguments

from c2fmae_hf import C2FMAEForImageClassification, C2FMAEForPreTraining, C2FMAETrainer, C2FMAETrainingArguments
from c2fmae_hf.commands import classify
from c2fmae_hf.transfer.classification import ImageClassificationTrainer, build_classifier
from c2fmae_hf.transfer.detection import build_mask2former, build_mask_rcnn
from c2fmae_hf.transfer.encoders import load_encoder
from c2fmae_hf.transfer.probes import LinearProbe, weighted_knn
from c2fmae_hf.transfer.segmentation import build_segmenter
from transfer_utils import save_encoders


NAMES = {0: "a", 1: "b"}
BUILDERS = {
    "encoder": load_encoder,
    "classifier": lambda name, **options: build_classifier(name, NAMES, **options),
    "upernet": lambda name, **options: build_segmenter(name, NAMES, **options),
    "mask_rcnn": lambda name, **options: build_mask_rcnn(name, NAMES, **options),
    "mask2former": lambda name, **options: build_mask2former(name, NAMES, **options),
}


@pytest.fixture(scope="module")
def in_bfloat16(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    saved = {"c2fmae": C2FMAEForPreTraining, "vit": AutoModel}
    for name, path in save_encoders(folder).items():
        if name in saved:
            saved[name].from_pretrained(path).to(torch.bfloat16).save_pretrained(path)
            assert AutoConfig.from_pretrained(path).dtype == torch.bfloat16
    return folder


@pytest.mark.parametrize("from_scratch", [False, True])
@pytest.mark.parametrize("encoder", ["c2fmae", "vit"])
@pytest.mark.parametrize("kind", BUILDERS)
def test_models_to_train_are_in_float32(in_bfloat16, kind, encoder, from_scratch):
    model = BUILDERS[kind](str(in_bfloat16 / encoder), from_scratch=from_scratch)
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_the_light_segmenter_is_in_float32(in_bfloat16):
    model = build_segmenter(str(in_bfloat16 / "c2fmae"), NAMES, head="light")
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def images(labels):
    return [{"pixel_values": torch.randn(3, 32, 32), **({"labels": i % 2} if labels else {})} for i in range(4)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("task", ["pretraining", "classification"])
def test_trainers_refuse_to_lose_their_steps(in_bfloat16, tmp_path, task, dtype):
    options = {"max_steps": 1, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    if task == "pretraining":
        model = C2FMAEForPreTraining.from_pretrained(in_bfloat16 / "c2fmae", dtype=dtype)
        trainer = C2FMAETrainer(model, C2FMAETrainingArguments(str(tmp_path), **options), train_dataset=images(False))
    else:
        model = build_classifier(str(in_bfloat16 / "c2fmae"), NAMES).to(dtype)
        args = TrainingArguments(str(tmp_path), remove_unused_columns=False, **options)
        trainer = ImageClassificationTrainer(model, args, train_dataset=images(True))
    named = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=f"expected weights in float32 to train, got {named}, in which most steps"):
        trainer.train()


def test_evaluation_must_not_round_the_weights(in_bfloat16, tmp_path, capsys):
    model = build_classifier(str(in_bfloat16 / "c2fmae"), NAMES)
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", bf16_full_eval=True)
    with pytest.raises(ValueError, match="evaluation would round the weights of the model that is saved"):
        ImageClassificationTrainer(model, args, train_dataset=images(True))
    with pytest.raises(SystemExit):
        classify.parse(["x", "y", "--output_dir", str(tmp_path), "--use_cpu", "--bf16_full_eval"])
    assert "bf16=True also covers evaluation" in " ".join(capsys.readouterr().err.split())


def test_the_loss_of_a_classifier_is_in_float32(in_bfloat16):
    model = C2FMAEForImageClassification.from_pretrained(in_bfloat16 / "c2fmae", num_labels=3)
    assert model.dtype == torch.bfloat16
    outputs = model(torch.randn(2, 3, 32, 32, dtype=torch.bfloat16), labels=torch.tensor([0, 2]))
    expected = torch.nn.functional.cross_entropy(outputs.logits.float(), torch.tensor([0, 2]))
    torch.testing.assert_close(outputs.loss, expected)


def test_probes_take_features_in_half_precision():
    features, labels = torch.randn(12, 8), torch.arange(12) % 3
    half = features.bfloat16()
    expected = weighted_knn(half.float(), labels, half.float(), 3, k=2)
    torch.testing.assert_close(weighted_knn(half, labels, half, 3, k=2), expected)
    probe = LinearProbe(8, 3).fit(half, labels, epochs=1)
    torch.testing.assert_close(probe.eval()(half), probe(half.float()))
