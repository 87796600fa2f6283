"""Fine-tuning trainers: averaged weights and layer-wise learning rates."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainingArguments

from c2fmae_hf.transfer.classification import ImageClassificationTrainer, build_classifier
from c2fmae_hf.transfer.fine_tuning import EMA_FILE, layer_decay_groups
from c2fmae_hf.transfer.fine_tuning_args import FineTuningArguments
from c2fmae_hf.transfer.segmentation import SemanticSegmentationTrainer, build_segmenter
from transfer_utils import save_encoders


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": index % 2}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoders(tmp_path_factory.mktemp("encoders"))["c2fmae"]


def make_trainer(encoder, folder, ema_decay=0.5, **arguments):
    args = TrainingArguments(
        str(folder),
        use_cpu=True,
        report_to="none",
        remove_unused_columns=False,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        save_steps=2,
        disable_tqdm=True,
        **{"max_steps": 4, **arguments},
    )
    torch.manual_seed(0)
    model = build_classifier(encoder, {0: "a", 1: "b"})
    return ImageClassificationTrainer(
        model, args, train_dataset=Images(), eval_dataset=Images(), ema_decay=ema_decay, layer_decay=0.75
    )


def test_the_average_follows_the_weights_of_the_steps(encoder, tmp_path):
    """Compute the average by hand from the weights after each step."""
    trainer = make_trainer(encoder, tmp_path)
    name, seen = "classifier.weight", []

    def step(*args, **kwargs):
        result = type(trainer).training_step(trainer, *args, **kwargs)
        seen.append(trainer.model.state_dict()[name].clone())
        return result

    trainer.training_step = step
    trainer.train()
    saved = [load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors")["head.weight"] for step in (2, 4)]
    averages = [load_file(tmp_path / f"checkpoint-{step}" / EMA_FILE)[name] for step in (2, 4)]
    after = [*seen[1:], saved[-1]]  # a step begins with the weights that the step before left
    assert torch.equal(after[1], saved[0])
    # timm's decay with warm-up: 1 - steps^(-2/3) for the steps before, at most the decay; the first step is copied.
    average = after[0]
    for index, weight in enumerate(after[1:], start=1):
        decay = min(1 - (1 + index) ** (-2 / 3), 0.5)
        average = decay * average + (1 - decay) * weight
        if index in (1, 3):
            assert torch.allclose(average, averages[index // 2], atol=1e-6)
    assert torch.equal(trainer.model.state_dict()[name], averages[1])  # the model ends with the average
    assert not torch.allclose(averages[1], saved[1])


def test_evaluation_uses_the_average_and_training_goes_on_without_it(encoder, tmp_path):
    plain = make_trainer(encoder, tmp_path / "plain", ema_decay=None)
    plain.train()
    expected = load_file(tmp_path / "plain" / "checkpoint-4" / "model.safetensors")
    trainer = make_trainer(encoder, tmp_path / "ema", eval_strategy="steps", eval_steps=1)
    trainer.train()
    own = load_file(tmp_path / "ema" / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(value, own[name]) for name, value in expected.items())
    logged = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(logged[-1], abs=1e-6)
    plain_loss = plain.evaluate()["eval_loss"]
    assert logged[-1] != pytest.approx(plain_loss, abs=1e-6)


def test_a_resumed_run_continues_the_average(encoder, tmp_path):
    whole = make_trainer(encoder, tmp_path / "whole")
    whole.train()
    shutil.rmtree(tmp_path / "whole" / "checkpoint-4")
    resumed = make_trainer(encoder, tmp_path / "whole")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    expected = whole.model.state_dict()
    assert all(torch.allclose(value, expected[name], atol=1e-6) for name, value in resumed.model.state_dict().items())
    elsewhere = make_trainer(encoder, tmp_path / "elsewhere")
    elsewhere.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(elsewhere.model.classifier.weight, resumed.model.classifier.weight)
    (tmp_path / "whole" / "checkpoint-2" / EMA_FILE).unlink()
    with pytest.raises(ValueError, match=r"expected ema\.safetensors with \d+ bytes, got no such file"):
        make_trainer(encoder, tmp_path / "whole").train(
            resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2")
        )


def test_mistakes(encoder, tmp_path):
    with pytest.raises(ValueError, match=r"ema_decay: expected a value in \(0, 1\), got 1.0"):
        make_trainer(encoder, tmp_path, ema_decay=1.0)
    with pytest.raises(ValueError, match="ema_decay: cannot be combined with load_best_model_at_end"):
        make_trainer(encoder, tmp_path, load_best_model_at_end=True, eval_strategy="steps", eval_steps=2)


def make_arguments(folder, **options):
    return FineTuningArguments(str(folder), use_cpu=True, disable_tqdm=True, **options)


def test_the_rate_grows_with_the_root_of_the_batch(tmp_path):
    assert make_arguments(tmp_path).learning_rate == pytest.approx(2e-3 * (8 / 256) ** 0.5)
    larger = make_arguments(tmp_path, per_device_train_batch_size=16, gradient_accumulation_steps=8)
    assert larger.learning_rate == pytest.approx(2e-3 * (128 / 256) ** 0.5)
    assert make_arguments(tmp_path, base_learning_rate=1e-3, learning_rate=0.5).learning_rate == 0.5


@pytest.mark.parametrize(
    ("options", "ema_decay", "is_kept"),
    [
        ({}, None, True),
        ({}, 0.9, False),
        ({"save_strategy": "no"}, None, False),
        ({"eval_strategy": "no"}, None, False),
        ({"load_best_model_at_end": False}, None, False),
    ],
)
def test_which_runs_keep_the_best_epoch(encoder, tmp_path, options, ema_decay, is_kept):
    arguments = make_arguments(tmp_path, **options)
    build = build_classifier(encoder, {0: "a", 1: "b"})
    ImageClassificationTrainer(
        build, arguments, train_dataset=Images(), eval_dataset=Images(), ema_decay=ema_decay, layer_decay=0.75
    )
    assert arguments.load_best_model_at_end is is_kept


def test_defaults_evaluate_log_and_keep_the_best_epoch(encoder, tmp_path):
    arguments = make_arguments(tmp_path, num_train_epochs=4, metric_for_best_model="rank")
    ranks = iter([1.0, 3.0, 2.0, 0.0, 5.0])
    trainer = ImageClassificationTrainer(
        build_classifier(encoder, {0: "a", 1: "b"}),
        arguments,
        train_dataset=Images(),
        eval_dataset=Images(),
        compute_metrics=lambda output: {"rank": next(ranks)},
        layer_decay=0.75,
    )
    trainer.train()
    history = trainer.state.log_history
    assert [entry["epoch"] for entry in history if "eval_loss" in entry] == [1, 2, 3, 4]
    assert [entry["step"] for entry in history if "loss" in entry] == list(range(1, 9))
    rates = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    assert rates[0] < max(rates) == pytest.approx(arguments.learning_rate)  # the head's, after a warm-up
    assert rates[-1] < rates[3]
    kept, last = (load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors") for step in (4, 8))
    assert torch.equal(trainer.model.classifier.weight, kept["head.weight"])
    assert not torch.equal(kept["head.weight"], last["head.weight"])
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]


def test_numbered_layers_of_heads_do_not_count():
    """Only the encoder's blocks determine learning rates, whatever a head calls its layers."""
    model = nn.ModuleDict(
        {
            "encoder": nn.ModuleDict({"embed": nn.Linear(2, 2), "blocks": nn.ModuleList([nn.Linear(2, 2)] * 1)}),
            "head": nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2) for _ in range(5)])}),
        }
    )
    groups = layer_decay_groups(model, 1.0, 0.05, 0.5, model["encoder"])
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates[id(model["encoder"]["embed"].weight)] == 0.25
    assert rates[id(model["encoder"]["blocks"][0].weight)] == 0.5
    assert {rates[id(p)] for p in model["head"].parameters()} == {1.0}


class Accumulating:
    """One step over the same 8 images, in one batch or in several."""

    def __init__(self, folder, batch_size: int) -> None:
        self.args = TrainingArguments(
            str(folder),
            use_cpu=True,
            report_to="none",
            remove_unused_columns=False,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=8 // batch_size,
            max_steps=1,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
        )

    def losses(self, trainer_class, model, dataset) -> tuple[float, float]:
        torch.manual_seed(0)
        trainer = trainer_class(model, self.args, train_dataset=dataset)
        trainer.train()
        (entry,) = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
        return entry["loss"], entry["grad_norm"]


class Maps(Images):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": torch.randint(0, 2, (32, 32))}


class Eight(Images):
    def __len__(self):
        return 8


@pytest.mark.parametrize("kind", ["c2fmae", "vit"])
@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_accumulated_batches_train_like_one_batch(tmp_path_factory, tmp_path, kind, task):
    """Also for models whose forward takes any keyword arguments, for which `Trainer` would not divide losses."""
    name = save_encoders(tmp_path_factory.mktemp("encoders"))[kind]
    results = []
    for batch_size in (8, 2):
        torch.manual_seed(0)
        if task == "classification":
            model, trainer, dataset = build_classifier(name, {0: "a", 1: "b"}), ImageClassificationTrainer, Eight()
        else:
            model = build_segmenter(name, {0: "a", 1: "b"}, head_channels=16)
            for module in model.modules():  # so that the batch size makes no difference
                if isinstance(module, nn.BatchNorm2d):
                    module.forward = nn.Identity()
            trainer, dataset = SemanticSegmentationTrainer, Maps()
        results.append(Accumulating(tmp_path, batch_size).losses(trainer, model, dataset))
    assert results[0][0] == pytest.approx(results[1][0], rel=0.02)
    assert results[0][1] == pytest.approx(results[1][1], rel=0.1)


def test_a_share_of_logging_steps_becomes_a_number(encoder, tmp_path):
    """The share is converted before training, so that a resumed run has the same number."""
    arguments = make_arguments(tmp_path, num_train_epochs=100, max_steps=300)
    trainer = ImageClassificationTrainer(
        build_classifier(encoder, {0: "a", 1: "b"}), arguments, train_dataset=Images(), eval_dataset=Images()
    )
    trainer.args.max_steps = 2
    trainer.train()
    assert trainer.args.logging_steps == 1
    short = make_arguments(tmp_path / "epochs", num_train_epochs=2, per_device_train_batch_size=4, logging_steps=0.3)
    trainer = ImageClassificationTrainer(
        build_classifier(encoder, {0: "a", 1: "b"}), short, train_dataset=Images(), eval_dataset=Images()
    )
    trainer.train()
    assert trainer.args.logging_steps == 3  # of 8 steps
