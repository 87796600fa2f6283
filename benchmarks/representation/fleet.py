"""
Train many of the study's runs at once on a GPU. A step of such a small model consists of a thousand tiny kernels that
take longer to start than to run. So runs of the same architecture (seeds, and variants that differ only in masks) are
trained as one model whose weights have an additional dimension (`torch.vmap`), and the whole step (batch, forward,
backward, clipping, AdamW) is recorded once as a CUDA graph.

    python benchmarks/representation/fleet.py --data shared/data --variants mae cascade curriculum --seeds 0 1 2

Models, initial weights, optimizer, schedule, masks and targets are those of `pretrain.py`. Photographs are cropped on
the GPU with another random generator, and the last, incomplete batch of an epoch is left out. Every variant gets the
compute of `--epochs` of MAE, by the step times that `study.py` uses; variants that can be trained as one model have
the same number of steps, by the mean of their times. `--equal steps` gives all runs the same number of steps instead.
Results are added to `<output>/fleet-stl10-<encoder>-<epochs>.json` (at equal steps `-steps.json`), one entry per
command; runs with a result are skipped. Without a GPU, for tests only, models are trained in turns. Scenes have
photographs of several sizes; only `study.py` trains on them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from data import StudyData, load_study_data
from gpu_data import Photographs
from pretrain import BATCH_SIZE, build_model, encoder_of, make_arguments, with_maps
from protocols import Judged, evaluate, summary
from study import read_ratios
from torch import nn
from tqdm.auto import tqdm
from transformers import AttentionInterface, Trainer
from variants import ENCODERS, MAIN, VARIANTS, Variant, check_source


sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import machine

from c2fmae_hf import C2FMAEModel
from c2fmae_hf.masking import mask_by_strategy
from c2fmae_hf.modeling_c2fmae import eager_attention_forward
from c2fmae_hf.publishing.redaction import hide_tokens
from c2fmae_hf.training.trainer import C2FMAETrainer
from c2fmae_hf.utils.files import write_json


WARM_UP = 3
# Attention that `torch.vmap` can batch. Registered under its own name, since for "eager" the library makes masks that
# a graph cannot record.
WRITTEN_OUT = "written_out"
AttentionInterface.register(WRITTEN_OUT, eager_attention_forward)


def signature(name: str) -> str:
    """All that models must share to be trained as one: everything but their masks."""
    variant = VARIANTS[name]
    others = {one.name: getattr(variant, one.name) for one in fields(variant) if one.name not in ("words", "training")}
    return json.dumps([others, variant.training.get("base_learning_rate")], sort_keys=True)


# Variants may differ in model, maps, learning rate and curriculum.
KNOWN_FIELDS = {
    *("words", "config", "training", "kind", "maps", "feedback", "self_attention"),
    *("blocks_twice", "feeds_memory", "class_token_predicts"),
}
KNOWN_TRAINING = {
    *("base_learning_rate", "region_masking"),
    *("curriculum", "curriculum_weights", "curriculum_order"),
}


def can_train(variant: Variant) -> bool:
    """Whether all that a variant differs in is known here."""
    others = [one.name for one in fields(variant) if one.name not in KNOWN_FIELDS]
    is_known = all(getattr(variant, name) == getattr(Variant(""), name) for name in others)
    return is_known and variant.training.keys() <= KNOWN_TRAINING


TRAINED = [name for name in VARIANTS if can_train(VARIANTS[name])]
DEFAULT = [name for name in MAIN if name in TRAINED]


class Ensemble:
    """
    Models of one architecture that are trained together, as one model whose weights have an additional dimension.

    Args:
        keys: Variant and seed of each model.
        photographs ([`Photographs`]): Photographs of each model; models of one seed share theirs.
        steps (`int`): Total number of steps.
        encoder (`str`): One of `ENCODERS`.
        folder: Output folder of the trainers that are built but not run.
    """

    def __init__(
        self,
        keys: Sequence[tuple[str, int]],
        photographs: Sequence[Photographs],
        steps: int,
        encoder: str,
        folder: Path,
    ) -> None:
        self.keys, self.steps, self.encoder = list(keys), steps, encoder
        self.photographs = list({id(one): one for one in photographs}.values())
        self.device = self.photographs[0].images.device
        self.which = torch.tensor([self.photographs.index(one) for one in photographs], device=self.device)
        self.done = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        # Ensembles are trained side by side: kernels as small as theirs leave most of a GPU idle.
        self.stream = torch.cuda.Stream() if self.device.type == "cuda" else None
        variant = VARIANTS[self.keys[0][0]]
        self.kind = variant.kind
        options = {} if self.device.type == "cuda" else {"use_cpu": True}
        arguments = [make_arguments(VARIANTS[name], seed, steps, folder, 0, **options) for name, seed in keys]
        self.curricula = [args.get_curriculum() for args in arguments]
        args = arguments[0]

        models = [build_model(VARIANTS[name], seed, encoder) for name, seed in keys]
        # Take parameter groups and schedule from the Trainer.
        trainer = (Trainer if self.kind == "supervised" else C2FMAETrainer)(model=models[0], args=args)
        trainer.create_optimizer_and_scheduler(steps)
        schedule = trainer.lr_scheduler
        rates = [schedule.lr_lambdas[0](step) * schedule.base_lrs[0] for step in range(steps)]
        self.rates = torch.tensor(rates, device=self.device)
        self.rate = torch.zeros((), device=self.device)
        self.max_norm = args.max_grad_norm
        # The module that runs with each model's weights.
        self.model = trainer.model.to(self.device).train()
        for module in self.model.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = WRITTEN_OUT
        decayed = set(trainer.get_decay_parameter_names(self.model))
        trained = [(name, value) for name, value in self.model.named_parameters() if value.requires_grad]
        self.parameters: dict[str, torch.Tensor] = {}
        self.weights: list[torch.Tensor] = []
        groups = []
        for is_decayed in (True, False):
            named = [(name, value) for name, value in trained if (name in decayed) == is_decayed]
            groups.append({"params": [self._flatten(models, named)], "weight_decay": args.weight_decay * is_decayed})
        self.fixed_weights = {
            **dict(self.model.named_buffers()),
            **{name: value for name, value in self.model.named_parameters() if not value.requires_grad},
        }
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=self.rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            fused=True,
            capturable=self.device.type == "cuda",
        )
        self.losses = torch.zeros(steps, len(keys), device=self.device)
        self.counter = torch.zeros((), dtype=torch.long, device=self.device)
        self.in_batch = torch.arange(BATCH_SIZE, device=self.device)
        self.generator = torch.Generator(self.device)

        config, number = self.model.config, len(self.photographs[0])
        num_patches = (config.image_size // config.patch_size) ** 2
        self.shared = ["pixel_values"]  # inputs that models of one seed share
        self.fixed: dict[str, Any] = {}
        self.masks: torch.Tensor | None = None
        if self.kind == "supervised":
            self.shared.append("labels")
        else:
            dtype = torch.float32 if self.kind == "vit_mae" else torch.bool
            self.masks = torch.empty(number, len(keys), num_patches, dtype=dtype, device=self.device)
        if self.kind == "c2fmae":
            needed = {*config.granularities, *config.input_granularities} - {"image"}
            self.shared.extend(f"{one}_labels" for one in sorted(needed))
            self.fixed["num_masked"] = config.num_masked_patches(num_patches)

    def _flatten(self, models: Sequence[nn.Module], named: Sequence[tuple[str, torch.Tensor]]) -> torch.Tensor:
        """Join these weights of all models in one tensor with a gradient; `parameters` become views of it."""
        states = [dict(model.named_parameters()) for model in models]
        number = sum(value.numel() for _, value in named)
        flat = torch.empty(len(models), number, device=self.device)
        flat.grad = torch.zeros_like(flat)
        start = 0
        for name, value in named:
            part = slice(start, start + value.numel())
            shape = (len(models), *value.shape)
            flat[:, part].view(shape).copy_(torch.stack([state[name].detach().to(self.device) for state in states]))
            parameter = flat[:, part].view(shape).detach().requires_grad_()
            parameter.grad = flat.grad[:, part].view(shape)
            self.parameters[name] = parameter
            start = part.stop
        self.weights.append(flat)
        return flat

    @property
    def steps_per_epoch(self) -> int:
        return len(self.photographs[0]) // BATCH_SIZE

    def draw_masks(self, epoch: int) -> None:
        """Draw the masks of an epoch in place. The progress of a sample is that of its step."""
        if self.masks is None:
            return
        number = len(self.masks)
        progress = (self.done + torch.arange(number, device=self.device) // BATCH_SIZE) / self.steps
        for index, (_, seed) in enumerate(self.keys):
            self.generator.manual_seed(1_000_033 * (seed + 1) + epoch)
            if self.kind == "vit_mae":
                noise = torch.rand(number, self.masks.shape[2], generator=self.generator, device=self.device)
                self.masks[:, index] = noise
                continue
            photographs, curriculum = self.photographs[int(self.which[index])], self.curricula[index]
            uniform = torch.rand(number, 1 + 2 * self.masks.shape[2], generator=self.generator, device=self.device)
            assert photographs.instance is not None
            self.masks[:, index] = mask_by_strategy(
                photographs.buffers["semantic_labels"],
                photographs.instance,
                curriculum.draw(progress, uniform[:, 0]),
                uniform[:, 1:],
                num_masked=self.fixed["num_masked"],
                cells_per_side=self.model.config.label_cells_per_side,
                region_masking=curriculum.region_masking,
            )[0]

    def batch(self) -> dict[str, torch.Tensor]:
        """The step's inputs, `(models, BATCH_SIZE, ...)`."""
        index = self.counter % self.steps_per_epoch * BATCH_SIZE + self.in_batch
        batch = {}
        for name in self.shared:
            by_seed = torch.stack([one.buffers[name].index_select(0, index) for one in self.photographs])
            batch[name] = by_seed.index_select(0, self.which)
        if self.masks is not None:
            name = "noise" if self.kind == "vit_mae" else "bool_masked_pos"
            batch[name] = self.masks.index_select(0, index).transpose(0, 1)
        return batch

    def loss_of(self, parameters: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Loss of one model."""
        return torch.func.functional_call(
            self.model, {**parameters, **self.fixed_weights}, kwargs={**batch, **self.fixed}
        ).loss

    def one(
        self, index: int, batch: dict[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The weights and inputs of a single model."""
        parameters = {name: value[index] for name, value in self.parameters.items()}
        return parameters, {name: value[index] for name, value in batch.items()}

    def step(self) -> None:
        """Do one training step. It never waits for the GPU and uses no values on the CPU, so it can be recorded."""
        step, batch = self.counter.view(1), self.batch()
        self.rate.copy_(self.rates.index_select(0, step)[0])
        for weights in self.weights:
            weights.grad.zero_()
        if self.device.type == "cuda":
            losses = torch.vmap(self.loss_of, randomness="different")(self.parameters, batch)
        else:  # on the CPU, models check the values of their inputs, which vmap does not allow
            losses = torch.stack([self.loss_of(*self.one(index, batch)) for index in range(len(self.keys))])
        losses.sum().backward()
        norms = sum(weights.grad.square().sum(dim=1) for weights in self.weights).sqrt()
        factor = (self.max_norm / (norms + 1e-6)).clamp(max=1)[:, None]
        for weights in self.weights:
            weights.grad.mul_(factor)
        self.optimizer.step()
        self.losses.index_copy_(0, step, losses.detach().float()[None])
        self.counter.add_(1)

    def record(self) -> None:
        """Record a step as a graph, then restore weights and optimizer."""
        start = [weights.clone() for weights in self.weights]
        assert self.stream is not None
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP):
                self.step()
        torch.cuda.current_stream().wait_stream(self.stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.step()
        with torch.no_grad():
            for weights, first in zip(self.weights, start):
                weights.copy_(first)
            for state in self.optimizer.state.values():
                for value in state.values():
                    value.zero_()
            self.counter.zero_()

    def advance(self) -> None:
        if self.graph is None:
            self.step()
        else:
            with torch.cuda.stream(self.stream):
                self.graph.replay()
        self.done += 1

    def encoders(self) -> Iterator[tuple[str, int, C2FMAEModel, dict[str, Any]]]:
        """Yield variant, seed, encoder and facts about the training of each model."""
        for index, (name, seed) in enumerate(self.keys):
            model = build_model(VARIANTS[name], seed, self.encoder)
            state = {key: value[index].detach().cpu() for key, value in self.parameters.items()}
            model.load_state_dict({**model.state_dict(), **state})
            losses = self.losses[:, index]
            known = {
                "steps": self.steps,
                "images": self.steps * BATCH_SIZE,
                "epochs": round(self.steps * BATCH_SIZE / len(self.photographs[0]), 2),
                "parameters": sum(value.numel() for value in model.parameters()),
                "last_losses": {"loss": losses[-min(100, self.steps) :].mean().item()},
            }
            yield name, seed, encoder_of(model).eval(), known


def train(ensembles: Sequence[Ensemble], seconds: float | None = None) -> int:
    """
    Train all ensembles to their last step.

    Args:
        seconds (`float`, *optional*): Stop after the epoch in which this time has passed.

    Returns:
        The number of steps of all models together.
    """
    synchronize()
    started, epoch, made = time.perf_counter(), 0, 0
    shared = list({id(one): one for ensemble in ensembles for one in ensemble.photographs}.values())
    with tqdm(total=sum(one.steps * len(one.keys) for one in ensembles), unit=" steps", mininterval=5) as bar:
        while any(one.done < one.steps for one in ensembles):
            if seconds is not None and time.perf_counter() - started > seconds:
                break
            for photographs in shared:
                photographs.draw(epoch)
            for ensemble in ensembles:
                ensemble.draw_masks(epoch)
            synchronize()  # the steps below are in other streams
            for ensemble in ensembles:
                number = min(ensemble.steps_per_epoch, ensemble.steps - ensemble.done)
                for _ in range(number):
                    ensemble.advance()
                made += number * len(ensemble.keys)
                bar.update(number * len(ensemble.keys))
            synchronize()
            epoch += 1
    return made


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


_study_data: StudyData | None = None


def load_in_worker(folder: Path) -> None:
    global _study_data
    torch.set_num_threads(1)
    _study_data = load_study_data(folder, with_pretraining=False)


def evaluate_in_worker(folder: Path, seed: int, fine_tune: bool, device: str) -> Judged:
    assert _study_data is not None
    return evaluate(C2FMAEModel.from_pretrained(folder).to(device).eval(), _study_data, seed, fine_tune)


@contextmanager
def evaluators(data: Path, number: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes that load the photographs immediately and wait for encoders."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(number, context, load_in_worker, (data,)) as pool:
        for _ in range(number):
            pool.submit(time.sleep, 0.5)
        yield pool


def parse(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=DEFAULT, help=f"default: {', '.join(DEFAULT)}"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=float, default=100)
    parser.add_argument("--encoder", choices=list(ENCODERS), default="small")
    parser.add_argument("--equal", choices=("compute", "steps"), default="compute")
    parser.add_argument("--fine_tune", action="store_true", help="also fine-tune each encoder for segmentation")
    parser.add_argument("--num_evaluators", type=int, default=max((os.cpu_count() or 2) - 2, 1), help="processes")
    parser.add_argument(
        "--seconds", type=float, help="stop training after this time, without results, to measure the speed"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/fleet"), help="encoders")
    parser.add_argument("--output", type=Path, default=Path("runs/representation/results"))
    options = parser.parse_args(args)
    options.source = "stl10"
    check_source(parser, options)
    for name in options.variants:
        if name not in TRAINED:
            parser.error(f"--variants {name}: only study.py trains it")
    return options


def cost_of_step(args: argparse.Namespace, name: str) -> float:
    """Cost of a step of a variant relative to MAE's: the mean of those that can be trained with it as one model."""
    ratios = read_ratios(args, [name])
    alike = [other for other in TRAINED if signature(other) == signature(name) and other in ratios]
    return mean(ratios[other] for other in alike)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    suffix = "" if args.equal == "compute" else "-steps"
    path = args.output / f"fleet-{args.source}-{args.encoder}-{args.epochs:g}{suffix}.json"
    groups = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    there = {(run["variant"], run["seed"]) for group in groups for run in group["runs"]}
    if mixed := {run["equal"] for group in groups for run in group["runs"]} - {args.equal}:
        raise SystemExit(
            f"{path}: expected runs at equal {args.equal}, found some at equal {mixed.pop()}; choose another --output"
        )
    wanted = [(name, seed) for seed in args.seeds for name in args.variants if (name, seed) not in there]
    if not wanted:
        print(f"{path}: all of these runs are there already", flush=True)
        return
    costs = {name: cost_of_step(args, name) for name, _ in wanted}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.perf_counter()
    with evaluators(args.data, args.num_evaluators) as pool:
        data = load_study_data(args.data)
        cells = ENCODERS[args.encoder]["image_size"] // ENCODERS[args.encoder]["label_stride"]
        rows = {maps: with_maps(data.pretraining, maps) for maps in {VARIANTS[name].maps for name, _ in wanted}}
        photographs = {
            (maps, seed): Photographs(rows[maps], seed, cells, device) for maps in rows for seed in args.seeds
        }
        ensembles = []
        for _, group in groupby(sorted(wanted, key=by_signature), key=by_signature):
            members = list(group)
            theirs = [photographs[VARIANTS[name].maps, seed] for name, seed in members]
            steps = round(args.epochs * (len(theirs[0]) // BATCH_SIZE) / costs[members[0][0]])
            ensembles.append(Ensemble(members, theirs, steps, args.encoder, args.work))
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # for the recorded steps only; crops stay exact
            for ensemble in ensembles:
                ensemble.draw_masks(0)
                ensemble.record()
            torch.set_float32_matmul_precision("highest")
        ready = time.perf_counter()
        made = train(ensembles, args.seconds)
        trained = time.perf_counter()
        print(
            f"{len(wanted)} runs in {len(ensembles)} ensembles: ready after {ready - started:.1f} s, {made} steps in "
            f"{trained - ready:.1f} s, {made * BATCH_SIZE / (trained - ready):.0f} images a second",
            flush=True,
        )
        if args.seconds is not None:
            return
        futures = []
        for ensemble in ensembles:
            for name, seed, encoder, known in ensemble.encoders():
                known.update(mae_epochs=args.epochs, step_times_mae=costs[name])
                folder = args.work / path.stem / f"{name}-{seed}"
                encoder.save_pretrained(folder)
                future = pool.submit(evaluate_in_worker, folder, seed, args.fine_tune, device.type)
                futures.append((name, seed, known, future))
        runs = []
        for name, seed, known, future in tqdm(futures, desc="Judging", unit=" encoders"):
            judged = future.result()
            about = {"variant": name, "words": VARIANTS[name].words, "seed": seed, "equal": args.equal}
            runs.append({**about, "source": args.source, "encoder": args.encoder, **known, **judged})
            print(f"{name}, seed {seed}: {summary(judged['results'])}", flush=True)
        group = {
            "command": hide_tokens(sys.argv),
            "photographs": {part: len(getattr(data, part).images) for part in ("train", "test", "other_test")},
            "runs_at_once": len(wanted),
            "seconds": round(trained - ready, 1),
            "machine": machine(device.type),
            "runs": runs,
        }
        write_json(path, [*groups, group])
        print(f"evaluated in {time.perf_counter() - trained:.1f} s", flush=True)


def by_signature(key: tuple[str, int]) -> str:
    return signature(key[0])


if __name__ == "__main__":
    main()
