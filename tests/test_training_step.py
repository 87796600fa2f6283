"""A training step: nothing in it waits for the device, and it compiles once, without graph breaks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers import TrainerCallback

from c2fmae_hf import C2FMAEForPreTraining, C2FMAETrainer, C2FMAETrainingArguments
from c2fmae_hf.data.data_collator import DataCollatorForC2FMAE
from c2fmae_hf.data.dataset import C2FMAEDataset
from c2fmae_hf.data.sampling import SampleKey
from c2fmae_hf.data.transforms import evaluation_transform
from c2fmae_hf.training import trainer as trainer_module
from testing_utils import with_fields


# Checks of the model's inputs, which run on a CPU only: see `test_the_model_reads_nothing_from_a_gpu`.
ON_CPU_ONLY = ("check_labels", "count_masked")


@pytest.fixture
def operators(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    return import_module("operators")


def make_trainer(config, rows, folder, *callbacks, **arguments):
    torch.manual_seed(7)
    defaults = {"max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 3, "save_strategy": "no"}
    args = C2FMAETrainingArguments(
        str(folder), use_cpu=True, disable_tqdm=True, report_to="none", **{**defaults, **arguments}
    )
    trainer = C2FMAETrainer(C2FMAEForPreTraining(config), args, train_dataset=rows)
    for callback in callbacks:  # after the trainer's own
        trainer.add_callback(callback)
    return trainer


# Waiting for the device


class CountSteps(TrainerCallback):
    """Counts operators from the beginning to the end of each step, without data loading and logs."""

    def __init__(self, operators) -> None:
        self.make = operators.CountOperators
        self.steps: list = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.steps.append(self.make())
        self.steps[-1].__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        self.steps[-1].__exit__(None, None, None)

    def waiting(self) -> list[list[str]]:
        return [[one for one in step.waiting if not any(name in one for name in ON_CPU_ONLY)] for step in self.steps]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_only_steps_that_are_logged_wait_for_the_device(config, rows, tmp_path, operators, accumulation):
    counted = CountSteps(operators)
    arguments = {"gradient_accumulation_steps": accumulation, "num_train_epochs": 1, "max_steps": 3}
    make_trainer(config, rows, tmp_path, counted, **arguments, logging_steps=3).train()
    first, second, third = counted.waiting()
    assert (first, second) == ([], [])
    assert len(third) == 1
    assert third[0].startswith("tolist in report < stop_if_not_finite")


def test_the_counter_sees_what_waits(operators):
    values = torch.arange(4.0)
    ways = [
        *(lambda: values[0].item(), lambda: values.tolist(), lambda: bool(values[0]), lambda: float(values[0])),
        *(values.nonzero, values.cpu, values.numpy, values.unique, lambda: values[values > 1]),
        *(lambda: values.repeat_interleave(torch.tensor([1, 2, 0, 1])), lambda: values.masked_select(values > 1)),
    ]
    for way in ways:
        with operators.CountOperators() as counter:
            way()
        assert len(counter.waiting) == 1, way
    with operators.CountOperators() as counter:
        values[1:].view(3, 1).expand(3, 2).mul(2).sum()
        values.repeat_interleave(torch.tensor([1, 2, 0, 1]), output_size=4)
    assert counter.waiting == []
    assert counter.launched["aten::mul"] == counter.launched["aten::sum"] == 1
    assert not {"aten::view", "aten::slice", "aten::expand"} & set(counter.launched)


@pytest.fixture
def on_gpu(config, batch) -> Iterator:
    """Calls the model on a simulated GPU, whose tensors have no values: what would be read raises an error."""

    def call(inputs=batch, **fields):
        with torch.device("meta"):
            model = C2FMAEForPreTraining(with_fields(config, **fields))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            model = model.to_empty(device="cuda").train()
            moved = {
                name: mode.from_tensor(value).to("cuda") if isinstance(value, torch.Tensor) else value
                for name, value in inputs.items()
            }
            return model(**moved)

    return call


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"decoder_prediction_ratio": 0.25, "supervise_visible_labels": True, "decoder_type": "parallel"},
        {"input_granularities": ["semantic", "instance", "image"]},
        {"granularities": ["image"]},
    ],
)
def test_the_model_reads_nothing_from_a_gpu(on_gpu, batch, fields):
    outputs = on_gpu({**batch, "num_masked": 12}, **fields)
    assert outputs.loss.device.type == "cuda"
    assert outputs.loss.shape == ()


def test_without_the_number_of_masked_patches_it_is_read(on_gpu):
    with pytest.raises(DataDependentOutputException):
        on_gpu()


# Updates that are not finite


class FaultyStep(TrainerCallback):
    """Multiplies the image stage's predictions by infinity in one step."""

    def __init__(self, trainer, step: int) -> None:
        self.is_faulty, self.step, self.weights = False, step, None
        head = trainer.model.decoder.stages["image"].head
        head.register_forward_hook(lambda module, inputs, output: output * float("inf") if self.is_faulty else output)
        trainer.add_callback(self)

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.is_faulty = state.global_step == self.step
        if self.is_faulty:
            self.weights = {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("optim", "noticed"), [("adamw_torch_fused", 3), ("adamw_torch", 1), ("sgd", 1)], ids=["fused", "adamw", "sgd"]
)
def test_no_update_follows_one_that_is_not_finite(config, rows, tmp_path, optim, noticed):
    trainer = make_trainer(config, rows, tmp_path, optim=optim, logging_steps=6)  # an epoch is of three steps
    fault = FaultyStep(trainer, 1)
    with pytest.raises(FloatingPointError, match="step 1: expected finite losses"):
        trainer.train()
    report = json.loads((tmp_path / "non_finite.json").read_text())
    assert (report["step"], report["checkpoint"]) == (1, "non-finite-1")
    assert len(report["processes"][0]["image_ids"]) == 4
    assert trainer.state.global_step == noticed
    assert all(torch.equal(value, fault.weights[name]) for name, value in trainer.model.state_dict().items())
    optimizer = torch.load(tmp_path / "non-finite-1/optimizer.pt", weights_only=True)
    assert {float(state["step"]) for state in optimizer["state"].values() if "step" in state} <= {1.0}
    # The checkpoint goes on from where the weights have stayed.
    folder = tmp_path / "non-finite-1"
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 1
    assert torch.load(folder / "scheduler.pt", weights_only=True)["last_epoch"] == 1
    scheduler = trainer.lr_scheduler
    rates = [rate * scheduler.lr_lambdas[0](1) for rate in scheduler.base_lrs]
    assert [group["lr"] for group in optimizer["param_groups"]] == pytest.approx(rates)
    # The same trainer can be used again.
    trainer.remove_callback(fault)
    fault.is_faulty = False
    assert trainer.train().global_step == 6
    assert not all(torch.equal(value, fault.weights[name]) for name, value in trainer.model.state_dict().items())


def test_a_run_that_logs_nothing_stops_too(config, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "MAX_UNREAD", 3)
    trainer = make_trainer(config, rows.select(range(4)), tmp_path, logging_strategy="no", max_steps=9)
    trainer.get_train_dataloader = lambda: EndlessLoader(type(trainer).get_train_dataloader(trainer))
    FaultyStep(trainer, 1)
    with pytest.raises(FloatingPointError, match="step 1: expected finite losses"):
        trainer.train()
    assert trainer.state.global_step < 4


class EndlessLoader:
    """The same batches without an end, so that there is no end of an epoch."""

    def __init__(self, loader) -> None:
        self.loader = loader

    def __iter__(self):
        while True:
            yield from self.loader


# Compilation


@pytest.fixture
def shallow(config):
    """The configuration with one block, which compiles faster."""
    return with_fields(config, num_hidden_layers=1)


def test_one_compilation_serves_every_mask_and_label(shallow, rows):
    """Forward and backward, batches from all of the curriculum, with few and with no labels."""
    torch._dynamo.reset()
    config, model = shallow, C2FMAEForPreTraining(shallow).train()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    dataset = C2FMAEDataset(rows, evaluation_transform((32, 32)), num_semantic_classes=5)
    collator = DataCollatorForC2FMAE(config, return_diagnostics=True)
    strategies = set()
    for step in range(10):
        batch = collator([{**dataset[i], "sample_key": SampleKey(i, step, step / 9)} for i in range(4)])
        strategies |= set(batch["mask_strategy"].tolist())
        inputs = {name: value for name, value in batch.items() if name not in ("mask_strategy", "image_ids")}
        inputs.pop("num_skipped")
        if step % 3 == 1:
            inputs["semantic_labels"] = torch.full_like(inputs["semantic_labels"], -100)
        if step % 3 == 2:
            inputs["instance_labels"] = torch.zeros_like(inputs["instance_labels"])
        loss = compiled(**inputs, num_masked=12).loss
        assert torch.allclose(loss, model(**inputs).loss, atol=1e-5)
        loss.backward()
    assert counter.frame_count == 1
    assert strategies == {0, 1, 2}


def test_a_compiled_run(shallow, rows, tmp_path):
    """One graph, names as without a compiler, and a checkpoint that a run without one continues alike."""
    torch._dynamo.reset()
    counters.clear()
    arguments = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    trainer = make_trainer(shallow, rows, tmp_path, **arguments, **compiled)
    trainer.train()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    saved = load_file(tmp_path / "checkpoint-2/model.safetensors")
    assert {"patch_embed.proj.weight", "decoder.mask_token"} <= set(saved)
    assert not any("_orig_mod" in name for name in saved)
    trainer.save_encoder(tmp_path / "encoder")
    assert "patch_embed.proj.weight" in load_file(tmp_path / "encoder/model.safetensors")

    plain = make_trainer(shallow, rows, tmp_path, **arguments)
    plain.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    losses = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (trainer, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_rows_that_a_compiled_run_leaves_out_change(config, rows, tmp_path, caplog):
    trainer = make_trainer(config, rows.select(range(6)), tmp_path, torch_compile=True, torch_compile_backend="eager")
    sampler = trainer._get_train_sampler()
    epochs = []
    for epoch in range(8):
        trainer.train_dataset.progress.start_epoch(epoch, 0.0, 0.0)
        epochs.append({key.index for key in sampler})
    assert {len(epoch) for epoch in epochs} == {4}
    assert set.union(*epochs) == set(range(6))
    assert "every epoch leaves 2 other rows out" in caplog.text
