"""Training: logs, evaluation, resuming, accumulation, parameter groups, the saved encoder."""

from __future__ import annotations

import gc
import json
import multiprocessing

import datasets
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import ConcatDataset, Subset
from transformers import AutoImageProcessor, AutoModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from c2fmae_hf import (
    C2FMAEConfig,
    C2FMAEForPreTraining,
    C2FMAEImageProcessor,
    C2FMAETrainer,
    C2FMAETrainingArguments,
)
from c2fmae_hf.data.data_collator import DataCollatorForC2FMAE
from c2fmae_hf.data.dataset import C2FMAEDataset
from c2fmae_hf.data.progress import SharedProgress
from c2fmae_hf.data.streaming import C2FMAEIterableDataset
from c2fmae_hf.data.transforms import evaluation_transform, training_transform
from c2fmae_hf.masking import MaskingCurriculum
from c2fmae_hf.training.callbacks import CurriculumCallback


RANDOM = {"curriculum": "constant", "curriculum_weights": [0.0, 0.0, 1.0]}


def make_trainer(
    config, rows, output_dir, *, callbacks=(), streaming=False, num_shards=2, map_columns=None, **arguments
):
    torch.manual_seed(7)
    options = {"num_semantic_classes": 5, "map_columns": ("semantic", "instance")}
    if map_columns is not None:
        options["map_columns"] = map_columns
    size = config.image_height_width
    train = (C2FMAEIterableDataset if streaming else C2FMAEDataset)(
        rows.to_iterable_dataset(num_shards=num_shards) if streaming else rows,
        training_transform(size),
        progress=SharedProgress(),
        **options,
    )
    evaluation = C2FMAEDataset(rows.select(range(5)), evaluation_transform(size), **options)
    defaults = {
        "max_steps": 9,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "base_learning_rate": 0.05,
        "curriculum": "linear",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    args = C2FMAETrainingArguments(output_dir=str(output_dir), **{**defaults, **arguments})
    return C2FMAETrainer(
        model=C2FMAEForPreTraining(config),
        args=args,
        train_dataset=train,
        eval_dataset=evaluation,
        data_collator=DataCollatorForC2FMAE(config, curriculum=args.get_curriculum()),
        processing_class=C2FMAEImageProcessor.from_config(config),
        callbacks=list(callbacks),
    )


def logged(trainer, *keys) -> list[tuple]:
    return [tuple(entry[key] for key in keys) for entry in trainer.state.log_history if keys[0] in entry]


class StopAt(TrainerCallback):
    """Ends a run like a crash: no clean-up, no last checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


# Logs and evaluation


def test_logs_hold_the_losses_and_the_curriculum(config, rows, tmp_path):
    trainer = make_trainer(config, rows, tmp_path, eval_strategy="steps", eval_steps=3)
    trainer.train()
    trainer.save_state()
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    training = [entry for entry in history if "loss" in entry]
    assert [entry["step"] for entry in training] == list(range(1, 10))
    for entry in training:
        parts = [entry[f"{name}_loss"] for name in ("semantic", "instance", "image")]
        assert entry["loss"] == pytest.approx(parts[0] / 3 + parts[1] / 3 + parts[2], rel=1e-4)
        shares = [entry[f"masked_{name}"] for name in ("semantic", "instance", "random", "fallback")]
        assert sum(shares) == pytest.approx(1)
    # Progress advances within a step, from t = 0 to 1/9 in the first.
    assert training[0]["masked_semantic"] >= 0.5
    assert training[0]["masked_random"] == 0.0
    assert training[-1]["masked_semantic"] == 0.0
    assert training[-1]["masked_random"] >= 0.5

    evaluations = [entry for entry in history if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluations] == [3, 6, 9]
    for entry in evaluations:
        parts = [entry[f"eval_{name}_loss"] for name in ("semantic", "instance", "image")]
        assert entry["eval_loss"] == pytest.approx(parts[0] / 3 + parts[1] / 3 + parts[2], rel=1e-4)


def test_evaluation_is_the_mean_over_images_and_always_the_same(config, rows, tmp_path):
    trainer = make_trainer(config, rows, tmp_path)
    first, second = (trainer.evaluate() for _ in range(2))
    losses = [name for name in first if name.endswith("_loss")]
    assert len(losses) == 4
    assert all(first[name] == second[name] for name in losses)
    batch = DataCollatorForC2FMAE(config)([trainer.eval_dataset[i] for i in range(5)])
    with torch.no_grad():
        outputs = trainer.model.eval()(**batch)
    for name in ("loss", "semantic_loss", "instance_loss", "image_loss"):
        assert first[f"eval_{name}"] == pytest.approx(outputs[name].item(), rel=1e-5)


def test_predictions_of_plain_rows_have_the_losses_of_evaluation(config, rows, tmp_path):
    trainer = make_trainer(config, rows, tmp_path)
    trainer.processing_class = C2FMAEImageProcessor.from_config(config)
    expected, found = trainer.evaluate(rows), trainer.predict(rows).metrics
    for name in ("loss", "semantic_loss", "instance_loss", "image_loss"):
        assert found[f"test_{name}"] == expected[f"eval_{name}"]


def test_evaluation_during_training_does_not_change_training_logs(config, rows, tmp_path):
    plain = make_trainer(config, rows, tmp_path / "plain", logging_steps=3)
    plain.train()
    evaluated = make_trainer(
        config, rows, tmp_path / "evaluated", logging_steps=3, eval_strategy="steps", eval_steps=2
    )
    evaluated.train()
    assert logged(plain, "semantic_loss", "image_loss") == logged(evaluated, "semantic_loss", "image_loss")


def test_image_only_training_needs_no_maps(config, rows, tmp_path):
    config = C2FMAEConfig(**{**config.to_dict(), "granularities": ["image"], "loss_weights": None})
    images = rows.remove_columns(["semantic", "instance"])
    weights = {"curriculum": "constant", "curriculum_weights": [0.0, 0.0, 1.0]}
    trainer = make_trainer(config, images, tmp_path, map_columns=(), **weights)
    trainer.train()
    assert logged(trainer, "masked_random") == [(1.0,)] * 9
    assert set(trainer.evaluate()) >= {"eval_loss", "eval_image_loss"}


def test_losses_fall(config, rows, tmp_path):
    trainer = make_trainer(config, rows, tmp_path, max_steps=60, logging_steps=10, base_learning_rate=0.4)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    for name in ("semantic", "instance", "image"):
        assert after[f"eval_{name}_loss"] < before[f"eval_{name}_loss"], name


# Plain rows


def plain_trainer(config, rows, folder, *, callbacks=(), parts=None, **arguments) -> C2FMAETrainer:
    """A trainer on plain rows, with default parts except for `parts`."""
    torch.manual_seed(7)
    defaults = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no"}
    defaults |= {"base_learning_rate": 0.05, "disable_tqdm": True, "use_cpu": True}
    args = C2FMAETrainingArguments(str(folder), **{**defaults, **arguments})
    model = C2FMAEForPreTraining(config)
    return C2FMAETrainer(model, args, train_dataset=rows, callbacks=list(callbacks), **(parts or {}))


def test_five_lines_train(config, rows, tmp_path):
    args = C2FMAETrainingArguments(str(tmp_path), num_train_epochs=1, use_cpu=True, disable_tqdm=True)
    trainer = C2FMAETrainer(C2FMAEForPreTraining(config), args, train_dataset=rows)
    trainer.train()
    assert trainer.state.global_step == 2
    trainer.save_encoder(tmp_path / "encoder")
    assert AutoImageProcessor.from_pretrained(tmp_path / "encoder").patch_size == 8


@pytest.mark.parametrize("workers", [0, 1])
def test_plain_rows_follow_the_curriculum(config, rows, tmp_path, workers):
    arguments = {"curriculum": "linear", "eval_strategy": "epoch", "dataloader_num_workers": workers}
    trainer = plain_trainer(config, rows, tmp_path, parts={"eval_dataset": rows.select(range(5))}, **arguments)
    trainer.train()
    shares = logged(trainer, "masked_semantic", "masked_random")
    assert shares[0][0] >= 0.5
    assert shares[0][1] == shares[-1][0] == 0
    assert shares[-1][1] >= 0.5
    evaluations = logged(trainer, "eval_loss")
    assert len(evaluations) == 3
    assert trainer.eval_dataset.progress is None
    assert trainer.evaluate()["eval_loss"] == evaluations[-1][0]  # its masks are always the same


def test_plain_rows_give_the_same_batches_as_wrapped_ones(config, rows, tmp_path):
    config = C2FMAEConfig(**{**config.to_dict(), "label_stride": 8})
    arguments = {"curriculum": "linear", "seed": 3, "min_crop_scale": 0.7, "evaluation_masking": "semantic"}
    trainer = plain_trainer(config, rows, tmp_path, parts={"eval_dataset": {"mine": rows}}, **arguments)
    options = {"num_semantic_classes": 5, "seed": 3}
    scaling = {"label_stride": 8}
    train = C2FMAEDataset(
        rows, training_transform((32, 32), scale=(0.7, 1.0), **scaling), progress=SharedProgress(), **options
    )
    evaluation = C2FMAEDataset(rows, evaluation_transform((32, 32), **scaling), **options)
    curriculum = trainer.args.get_curriculum()
    collator = DataCollatorForC2FMAE(config, curriculum, seed=3, evaluation_masking="semantic")
    for expected, given in ((train, trainer.train_dataset), (evaluation, trainer.eval_dataset["mine"])):
        expected, given = (
            collator([expected[i] for i in range(12)]),
            trainer.data_collator([given[i] for i in range(12)]),
        )
        assert all(torch.equal(value, given[name]) for name, value in expected.items())


def test_each_part_can_be_passed(config, rows, tmp_path):
    transform = training_transform(config.image_height_width)
    own = C2FMAEDataset(rows, transform, num_semantic_classes=5, progress=SharedProgress())
    stream = C2FMAEIterableDataset(rows.to_iterable_dataset(), evaluation_transform(config.image_height_width))
    parts = {
        "data_collator": DataCollatorForC2FMAE(config, seed=5),
        "eval_dataset": stream,
        "processing_class": C2FMAEImageProcessor.from_config(config, image_mean=[0.1, 0.2, 0.3]),
    }
    trainer = plain_trainer(config, own, tmp_path, parts=parts)
    assert trainer.train_dataset is own
    assert all(getattr(trainer, name) is part for name, part in parts.items())
    trainer = plain_trainer(config, rows, tmp_path, parts=parts)
    assert trainer.train_dataset.read_row.transform.mean == [0.1, 0.2, 0.3]


def test_a_dataset_without_progress_gets_the_trainer_s(config, rows, tmp_path):
    own = C2FMAEDataset(rows, training_transform(config.image_height_width), num_semantic_classes=5)
    trainer = plain_trainer(config, own, tmp_path, parts={"eval_dataset": own}, curriculum="linear")
    trainer.train()
    assert logged(trainer, "masked_semantic")[0][0] >= 0.5
    assert logged(trainer, "masked_random")[-1][0] >= 0.5
    assert own.progress is None
    assert trainer.eval_dataset.progress is None


@pytest.mark.parametrize(
    ("granularities", "arguments", "needed"),
    [
        (["image"], RANDOM, ()),
        (["image"], {}, ()),
        (["instance", "image"], RANDOM, ("instance",)),
        (["instance", "image"], {}, ("instance",)),
        (["semantic", "instance", "image"], {}, ("semantic", "instance")),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_only_maps_that_are_needed_are_read(config, rows, tmp_path, granularities, arguments, needed, streaming):
    config = C2FMAEConfig(**{**config.to_dict(), "granularities": granularities, "loss_weights": None})
    arguments = {**arguments, "max_steps": 1, "shuffle_rows": 4, "on_bad_row": "skip"}

    def given(columns):
        kept = rows.remove_columns([name for name in ("semantic", "instance") if name not in columns])
        return kept.to_iterable_dataset() if streaming else kept

    trainer = plain_trainer(config, given(needed), tmp_path, **arguments)
    trainer.train()
    assert trainer.train_dataset.read_row.map_columns == needed
    assert trainer.train_dataset.on_bad_row == "skip"
    if streaming:
        assert trainer.train_dataset.shuffle_rows == 4
    for name in needed:
        with pytest.raises(ValueError, match=rf"missing \['{name}'\]"):
            plain_trainer(config, given(set(needed) - {name}), tmp_path, **arguments)


def test_maps_that_only_guide_masks_are_read_where_there_are_any(config, rows, tmp_path, caplog):
    config = C2FMAEConfig(**{**config.to_dict(), "granularities": ["image"], "loss_weights": None})
    trainer = plain_trainer(config, rows, tmp_path)
    assert trainer.train_dataset.read_row.map_columns == ("semantic", "instance")
    assert not caplog.text
    trainer = plain_trainer(config, rows.remove_columns(["semantic", "instance"]), tmp_path)
    assert trainer.train_dataset.read_row.map_columns == ()
    assert "no column semantic and instance: the masks it would guide are random" in caplog.text
    trainer.train()
    shares = [sum(entry) for entry in logged(trainer, "masked_random", "masked_fallback")]
    assert shares == pytest.approx([1.0] * len(shares))


@pytest.mark.parametrize("streaming", [False, True])
def test_plain_rows_resume_to_the_same_weights(config, rows, tmp_path, streaming):
    rows = rows.to_iterable_dataset(num_shards=2) if streaming else rows
    arguments = {"curriculum": "linear", "save_strategy": "steps", "save_steps": 4, "max_steps": 9}
    whole = plain_trainer(config, rows, tmp_path / "whole", **arguments)
    whole.train()
    killed = plain_trainer(config, rows, tmp_path / "killed", callbacks=[StopAt(6)], **arguments)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = plain_trainer(config, rows, tmp_path / "killed", **arguments)
    resumed.train(resume_from_checkpoint=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


# Resuming


@pytest.mark.parametrize(
    ("num_workers", "resumed_workers"),
    # tests/test_kill_and_resume.py changes the number of workers, too.
    [(0, 0), pytest.param(2, 2, marks=pytest.mark.slow), pytest.param(2, 0, marks=pytest.mark.slow)],
)
def test_a_killed_run_resumes_to_the_same_weights_bit_for_bit(config, rows, tmp_path, num_workers, resumed_workers):
    """Three steps per epoch; stopped in the third epoch, after a checkpoint in the second."""
    config = C2FMAEConfig(**{**config.to_dict(), "decoder_prediction_ratio": 0.5, "drop_path_rate": 0.1})
    arguments = {"save_strategy": "steps", "save_steps": 5}
    whole = make_trainer(config, rows, tmp_path / "whole", dataloader_num_workers=num_workers, **arguments)
    whole.train()

    folder = tmp_path / "killed"
    killed = make_trainer(config, rows, folder, callbacks=[StopAt(7)], dataloader_num_workers=num_workers, **arguments)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = make_trainer(config, rows, folder, dataloader_num_workers=resumed_workers, **arguments)
    resumed.train(resume_from_checkpoint=True)

    keys = ("loss", "semantic_loss", "instance_loss", "image_loss", "masked_semantic", "masked_instance", "grad_norm")
    assert logged(resumed, *keys) == logged(whole, *keys)
    for (name, value), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values()):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_persistent_workers_train_the_same(config, rows, tmp_path, context):
    plain = make_trainer(config, rows, tmp_path / "plain")
    arguments = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    workers = make_trainer(config, rows, tmp_path / "workers", dataloader_multiprocessing_context=context, **arguments)
    for trainer in (plain, workers):
        trainer.train()
    keys = ("loss", "masked_semantic", "masked_instance", "masked_random")
    assert logged(plain, *keys) == logged(workers, *keys)
    started = [child for child in multiprocessing.active_children() if child.daemon]
    assert started
    del trainer, workers
    gc.collect()
    for child in started:  # a loader ends its workers by SIGTERM
        child.join(timeout=20)
        assert not child.is_alive()


def test_streaming_resumes_to_the_same_weights(config, rows, tmp_path):
    arguments = {"streaming": True, "save_strategy": "steps", "save_steps": 4}
    whole = make_trainer(config, rows, tmp_path / "whole", **arguments)
    whole.train()
    killed = make_trainer(config, rows, tmp_path / "killed", callbacks=[StopAt(6)], **arguments)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = make_trainer(config, rows, tmp_path / "killed", **arguments)
    resumed.train(resume_from_checkpoint=True)
    assert logged(resumed, "loss", "masked_random") == logged(whole, "loss", "masked_random")
    assert [entry["step"] for entry in resumed.state.log_history if "loss" in entry] == list(range(1, 10))


def test_a_stream_resumes_with_other_batches_without_losing_a_row(config, rows, tmp_path, caplog):
    seen: list[tuple[int, str]] = []

    def train(**arguments):
        trainer = make_trainer(
            config, rows, tmp_path, streaming=True, num_shards=3, save_strategy="steps", **arguments
        )
        collate = trainer.data_collator
        trainer.data_collator = lambda samples: seen.append([one["sample_key"] for one in samples]) or collate(samples)
        return trainer

    first = train(save_steps=4, callbacks=[StopAt(6)])
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert "divided anew" not in caplog.text
    keys = [key for batch in seen for key in batch][:16]
    seen.clear()
    train(save_steps=9, per_device_train_batch_size=3, gradient_accumulation_steps=2).train(
        resume_from_checkpoint=True
    )
    assert "checkpoint-4: processes, workers or batch size are others" in caplog.text
    keys += [key for batch in seen for key in batch][:30]
    # The four steps count as four of six images, so that the curriculum continues where it was.
    assert [key.index for key in keys] == [*range(16), *range(24, 54)]
    assert keys[16].progress == pytest.approx(4 / 9)
    assert [sum(key.epoch == epoch for key in keys) for epoch in range(3)] == [12, 12, 12]


# Optimisation


@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 8), (4, 2)])
def test_accumulation_changes_nothing(config, rows, tmp_path, batch_size, accumulation):
    """Uses plain gradient descent, so that differences of gradients show in the weights."""
    arguments = {"max_steps": 3, "optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    arguments |= {"warmup_steps": 0, "max_grad_norm": 0.0}
    rows = rows.select(range(8))
    whole = make_trainer(config, rows, tmp_path / "1", per_device_train_batch_size=8, **arguments)
    parts = make_trainer(
        config,
        rows,
        tmp_path / "2",
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        **arguments,
    )
    for trainer in (whole, parts):
        trainer.train()
    for (one,), (other,) in zip(logged(whole, "loss"), logged(parts, "loss")):
        assert other == pytest.approx(one, rel=1e-4)
    assert logged(whole, "masked_semantic") == logged(parts, "masked_semantic")
    for (name, value), other in zip(whole.model.state_dict().items(), parts.model.state_dict().values()):
        assert torch.allclose(value, other, atol=1e-5), name


def test_which_parameters_decay(config, rows, tmp_path):
    trainer = make_trainer(config, rows, tmp_path)
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    for name, parameter in trainer.model.named_parameters():
        is_matrix = parameter.ndim >= 2 and not name.endswith(("cls_token", "mask_token"))
        assert (name in decayed) == is_matrix, name
    groups = trainer.create_optimizer().param_groups
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert groups[0]["betas"] == (0.9, 0.95)


def test_the_default_rate_scales_mae_s_with_the_root_of_the_batch(tmp_path):
    def rate(**options):
        return C2FMAETrainingArguments(str(tmp_path), use_cpu=True, **options).learning_rate

    assert rate(per_device_train_batch_size=64, gradient_accumulation_steps=64) == pytest.approx(2.4e-3)  # MAE's batch
    assert rate(per_device_train_batch_size=16) == pytest.approx(1.5e-4)
    assert rate(per_device_train_batch_size=4, gradient_accumulation_steps=4) == pytest.approx(1.5e-4)
    assert rate(learning_rate=0.5) == 0.5


def test_learning_rate_follows_the_batch():
    def arguments(**values):
        return C2FMAETrainingArguments(output_dir="unused", use_cpu=True, **values)

    args = arguments(per_device_train_batch_size=64, gradient_accumulation_steps=8, base_learning_rate=1e-4)
    assert args.learning_rate == pytest.approx(2e-4)
    assert arguments(learning_rate=0.5).learning_rate == 0.5
    again = C2FMAETrainingArguments(**{k: v for k, v in args.to_dict().items() if k != "output_dir"}, output_dir="x")
    assert again.learning_rate == args.learning_rate
    assert args.bf16 is False
    assert args.lr_scheduler_type == "cosine"
    assert args.get_warmup_steps(200) == 10


def test_the_papers_curriculum_is_the_one_default(config):
    arguments = C2FMAETrainingArguments(output_dir="unused", use_cpu=True).get_curriculum()
    assert arguments == MaskingCurriculum() == DataCollatorForC2FMAE(config).curriculum
    assert arguments.probabilities(torch.tensor([0.0, 0.5, 1.0])).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_arguments_of_the_trainer(config, rows, tmp_path):
    with pytest.raises(ValueError, match="args: expected C2FMAETrainingArguments, got TrainingArguments"):
        C2FMAETrainer(C2FMAEForPreTraining(config), TrainingArguments(str(tmp_path), use_cpu=True))
    both = datasets.DatasetDict({"train": rows, "test": rows})
    with pytest.raises(
        ValueError, match=r"train_dataset: expected one split, got a dictionary of \['test', 'train'\]"
    ):
        plain_trainer(config, both, tmp_path)
    args = C2FMAETrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, disable_tqdm=True, save_strategy="no")
    trainer = C2FMAETrainer(args=args, model_init=lambda: C2FMAEForPreTraining(config), train_dataset=list(rows))
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.evaluate(rows.select(range(3))).keys() >= {"eval_loss", "eval_semantic_loss"}


def test_a_collator_with_another_curriculum_is_refused(config, rows, tmp_path):
    other = DataCollatorForC2FMAE(config, MaskingCurriculum("constant", weights=(1, 0, 0)))
    with pytest.raises(ValueError, match=r"expected the arguments' curriculum, .*'linear'.*, got .*'constant'"):
        plain_trainer(config, rows, tmp_path, parts={"data_collator": other})
    same = {"curriculum": "constant", "curriculum_weights": [1.0, 0.0, 0.0]}
    plain_trainer(config, rows, tmp_path, parts={"data_collator": other}, **same)


def test_a_subset_follows_the_curriculum(config, rows, tmp_path):
    own = C2FMAEDataset(rows, training_transform(config.image_height_width), num_semantic_classes=5)
    chosen = [1, 3, 5, 7, 9, 11, 0, 2]
    trainer = plain_trainer(config, Subset(Subset(own, range(12)), chosen), tmp_path)
    trainer.train()
    assert len(trainer.train_dataset) == 8
    ids = [row["image_id"] for row in trainer.train_dataset.rows]
    assert ids == [rows[index]["image_id"] for index in chosen]
    assert logged(trainer, "masked_semantic")[0][0] >= 0.5
    assert logged(trainer, "masked_random")[-1][0] >= 0.5
    assert own.progress is None
    with pytest.raises(ValueError, match=r"got a ConcatDataset, .* Pass datasets.concatenate_datasets"):
        plain_trainer(config, ConcatDataset([own, Subset(own, [1])]), tmp_path)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_training_without_an_epoch_start_warns(config, rows, tmp_path, caplog, streaming, told):
    progress = SharedProgress()
    options = {"progress": progress, "num_semantic_classes": 5}
    transform = training_transform(config.image_height_width)
    if streaming:
        data = C2FMAEIterableDataset(rows.to_iterable_dataset(), transform, **options)
    else:
        data = C2FMAEDataset(rows, transform, **options)
    args = TrainingArguments(str(tmp_path), max_steps=3, use_cpu=True, remove_unused_columns=False, disable_tqdm=True)
    callbacks = [CurriculumCallback(progress if told else SharedProgress())]
    model = C2FMAEForPreTraining(config)
    Trainer(model, args, DataCollatorForC2FMAE(config), data, callbacks=callbacks).train()
    assert caplog.text.count("no epoch was started") == (0 if told else 1)


def test_learning_rate_schedule(config, rows, tmp_path):
    trainer = make_trainer(config, rows, tmp_path, max_steps=20, warmup_steps=4, base_learning_rate=1.0)
    trainer.train()
    rates = [rate for (rate,) in logged(trainer, "learning_rate")]
    assert rates[0] == 0.0
    assert max(rates) == rates[4] == pytest.approx(4 / 256)
    assert rates[12] == pytest.approx(4 / 256 / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"curriculum": "cosine"}, "schedule: expected"),
        ({"curriculum_weights": [1.0]}, "curriculum_weights: expected three numbers"),
        ({"curriculum_order": ["random"]}, "order: expected a permutation"),
        ({"remove_unused_columns": True}, "remove_unused_columns: expected False"),
        ({"curriculum_weights": [0.0, 0.0, 1.0]}, "weights: expected schedule='constant'"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size: expected False"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: expected 0, got 0.1"),
    ],
)
def test_bad_arguments_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        C2FMAETrainingArguments(output_dir="unused", **values)


def test_held_out_rows_of_a_dataset_that_is_trained_on_do_not_change(config, rows, tmp_path):
    whole = C2FMAEDataset(rows, training_transform(config.image_height_width), progress=SharedProgress())
    args = C2FMAETrainingArguments(tmp_path, use_cpu=True)
    held_out = Subset(whole, [1, 2, 3])
    for given in (held_out, {"some": held_out}):
        trainer = C2FMAETrainer(
            C2FMAEForPreTraining(config), args, train_dataset=Subset(whole, [0]), eval_dataset=given
        )
        evaluated = trainer.eval_dataset["some"] if isinstance(given, dict) else trainer.eval_dataset
        assert evaluated.progress is None
        before = evaluated[0]
        whole.progress.start_epoch(5, 0.0, 0.0)
        assert torch.equal(evaluated[0]["pixel_values"], before["pixel_values"])
        assert before["image_id"] == whole[1]["image_id"]
    trainer = C2FMAETrainer(  # several datasets may be evaluated as one
        C2FMAEForPreTraining(config), args, train_dataset=rows, eval_dataset=ConcatDataset([held_out, held_out])
    )
    assert len(trainer.eval_dataset) == 6
    # Plain rows may be split so, too.
    trainer = C2FMAETrainer(
        C2FMAEForPreTraining(config), args, train_dataset=Subset(rows, [0, 1]), eval_dataset=Subset(rows, [2])
    )
    assert (len(trainer.train_dataset), trainer.eval_dataset[0]["image_id"]) == (2, rows[2]["image_id"])


def test_a_column_without_maps_is_told(config, rows, tmp_path, caplog):
    empty = rows.map(lambda row: {"instance": None}, features=rows.features)
    args = C2FMAETrainingArguments(tmp_path, use_cpu=True)
    for found in (empty, list(empty)):
        caplog.clear()
        C2FMAETrainer(C2FMAEForPreTraining(config), args, train_dataset=found, eval_dataset=rows)
        assert "No row has a map in the column instance: its loss is 0" in caplog.text
    caplog.clear()
    C2FMAETrainer(C2FMAEForPreTraining(config), args, train_dataset=rows, eval_dataset=empty)
    assert "No row has a map" not in caplog.text


def test_a_stream_follows_one_seed(config, rows, tmp_path, caplog):
    args = C2FMAETrainingArguments(tmp_path, use_cpu=True, max_steps=2, data_seed=7)
    C2FMAETrainer(C2FMAEForPreTraining(config), args, train_dataset=rows.to_iterable_dataset())
    assert "data_seed: ignored for a stream, whose order follows seed=42." in caplog.text


def test_a_grey_model_does_not_get_rgb_rows(config, rows, tmp_path):
    grey = C2FMAEConfig(**{**config.to_dict(), "num_channels": 1, "image_mean": None, "image_std": None})
    with pytest.raises(ValueError, match="num_channels: expected 3, since rows are read as RGB, got 1"):
        C2FMAETrainer(C2FMAEForPreTraining(grey), C2FMAETrainingArguments(tmp_path, use_cpu=True), train_dataset=rows)


def test_another_order_of_rows_is_refused(config, rows, tmp_path):
    with pytest.raises(ValueError, match=r"train_sampling_strategy: expected 'random', .*, got 'sequential'"):
        make_trainer(config, rows, tmp_path, train_sampling_strategy="sequential").train()


def test_a_loss_that_is_not_finite_stops_the_run(config, rows, tmp_path):
    trainer = make_trainer(config, rows, tmp_path)
    trainer.model.decoder.stages["instance"].head.bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"step 0: expected finite losses .*'instance_loss': 'nan'"):
        trainer.train()


class SetBias(TrainerCallback):
    """Damages the model at a step, as a faulty machine would."""

    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            model.decoder.stages["semantic"].head.bias.data.fill_(self.value)


def test_the_report_names_the_images_and_the_weights_are_saved(config, rows, tmp_path):
    arguments = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = make_trainer(config, rows, tmp_path, callbacks=[SetBias(3, float("inf"))], **arguments)
    with pytest.raises(FloatingPointError, match=r"step 3: .*'r\d"):
        trainer.train()
    report = json.loads((tmp_path / "non_finite.json").read_text())
    (process,) = report["processes"]
    assert (report["step"], report["checkpoint"]) == (3, "non-finite-3")
    assert len(process["losses"]) == 2
    assert len(set(process["image_ids"])) == 4
    assert set(process["image_ids"]) <= set(rows["image_id"])
    assert process["losses"][0]["semantic_loss"] in ("inf", "nan")  # JSON has no such numbers
    saved = C2FMAEForPreTraining.from_pretrained(tmp_path / "non-finite-3")
    damaged = "decoder.stages.semantic.head.bias"
    assert all(value.isfinite().all() for name, value in saved.state_dict().items() if name != damaged)
    assert json.loads((tmp_path / "non-finite-3/trainer_state.json").read_text())["global_step"] == 3


class FaultyGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_does_not_reach_the_weights(config, rows, tmp_path, max_grad_norm):
    trainer = make_trainer(config, rows, tmp_path, max_grad_norm=max_grad_norm)
    head = trainer.model.decoder.stages["image"].head
    head.register_forward_hook(lambda module, inputs, output: FaultyGradient.apply(output))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"step 0: .*'gradient_norm': 'nan', 'image_ids': \['r\d"):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert (tmp_path / "non-finite-0/model.safetensors").is_file()


def test_weights_that_are_not_finite_replace_no_checkpoint(config, rows, tmp_path):
    arguments = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    trainer = make_trainer(config, rows, tmp_path, callbacks=[SetBias(5, float("nan"))], **arguments)
    with pytest.raises(FloatingPointError, match=r"weights before this step are in .*non-finite-5"):
        trainer.train()
    assert get_last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-4")
    assert make_trainer(config, rows, tmp_path, **arguments).train(resume_from_checkpoint=True).global_step == 9


def test_a_bad_batch_replaces_no_checkpoint(config, rows, tmp_path):
    arguments = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    trainer = make_trainer(config, rows, tmp_path, **arguments)
    image = trainer.model.decoder.stages["image"].head
    steps = iter([1.0] * 5 + [float("inf")])
    image.register_forward_hook(lambda module, inputs, output: output * next(steps))
    with pytest.raises(FloatingPointError, match=r"weights before this step are in .*non-finite-5"):
        trainer.train()
    assert {path.name for path in tmp_path.glob("*-*")} == {"checkpoint-4", "non-finite-5"}


def test_an_evaluation_that_is_not_finite_is_saved_and_reported(config, rows, tmp_path):
    trainer = make_trainer(config, rows, tmp_path, eval_strategy="steps", eval_steps=3)
    stage = trainer.model.decoder.stages["instance"].head
    stage.register_forward_hook(lambda module, inputs, output: output if module.training else output + float("nan"))
    with pytest.raises(FloatingPointError, match=r"evaluation at step 3: .*'r0', 'r1'"):
        trainer.train()
    report = json.loads((tmp_path / "non_finite.json").read_text())
    assert (report["step"], report["evaluation"], report["checkpoint"]) == (3, True, "non-finite-3")
    assert (tmp_path / "non-finite-3/optimizer.pt").is_file()


def test_a_failed_evaluation_names_its_images(config, rows, tmp_path):
    trainer = make_trainer(config, rows, tmp_path)
    trainer.model.decoder.stages["instance"].head.bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"evaluation at step 0: .*'instance_loss': 'nan'.*'r0', .*'r4'\]"):
        trainer.evaluate()


# Results


def test_the_saved_encoder(config, rows, tmp_path, batch):
    trainer = make_trainer(config, rows, tmp_path / "run", max_steps=2)
    trainer.train()
    folder = tmp_path / "encoder"
    trainer.save_encoder(folder)
    trainer.save_encoder(folder)  # replaces the earlier one
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    model = AutoModel.from_pretrained(folder).eval()
    expected = trainer.model.c2fmae.eval()(batch["pixel_values"]).last_hidden_state
    assert torch.equal(model(batch["pixel_values"]).last_hidden_state, expected)
    assert AutoImageProcessor.from_pretrained(folder).patch_size == 8
    assert not any(name.startswith(("decoder", "c2fmae")) for name in load_file(folder / "model.safetensors"))


def test_the_encoder_does_not_replace_other_files(config, rows, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="expected an empty folder or one with a model"):
        make_trainer(config, rows, tmp_path / "run").save_encoder(tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


def test_the_whole_model_is_saved_with_its_processor(config, rows, tmp_path):
    trainer = make_trainer(config, rows, tmp_path / "run")
    trainer.save_model(str(tmp_path / "model"))
    loaded = C2FMAEForPreTraining.from_pretrained(tmp_path / "model")
    for (name, value), other in zip(trainer.model.state_dict().items(), loaded.state_dict().values()):
        assert torch.equal(value, other), name
    assert C2FMAEImageProcessor.from_pretrained(tmp_path / "model").crop_size["height"] == 32
