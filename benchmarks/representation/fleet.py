"""
The study's runs on a GPU, many at once. A step of so small a model is a thousand tiny kernels that take longer to
start than to run: here a whole step (batch, forward, backward, clipping, AdamW) is recorded once as a CUDA graph, and
every run replays its own on a stream of its own, so that runs share the GPU.

    python benchmarks/representation/fleet.py --data shared/data --variants mae cascade curriculum --seeds 0 1 2

Models, initial weights, optimizer, schedule, masks and targets are those of `pretrain.py`; photographs are cropped on
the GPU from another generator, and an epoch's last, incomplete batch is left out. All runs make the same number of
steps. Results are written as `study.py` writes them; a run whose result is there is skipped. Without a GPU the runs
step one by one, which tests do.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any


# So many streams run side by side; read when CUDA starts.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")

import torch
from data import StudyData, load_study_data
from gpu_data import Photographs
from pretrain import BATCH_SIZE, build_model, encoder_of, make_arguments, with_maps
from protocols import evaluate, summary
from tqdm.auto import tqdm
from transformers import Trainer
from variants import ENCODERS, MAIN, VARIANTS


sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import machine

from c2fmae_hf import C2FMAEModel
from c2fmae_hf.files import write_json
from c2fmae_hf.masking import mask_by_strategy
from c2fmae_hf.run_record import hide_tokens
from c2fmae_hf.trainer import C2FMAETrainer


WARM_UP = 3


class Run:
    """
    One variant and seed.

    Args:
        name, seed: Which.
        steps (`int`): In all.
        photographs ([`Photographs`]): Shared with the other runs of this seed and these maps.
        encoder (`str`): Of `ENCODERS`.
        bf16 (`bool`): Mixed precision.
        folder: Of the encoder.
    """

    def __init__(
        self, name: str, seed: int, steps: int, photographs: Photographs, encoder: str, bf16: bool, folder: Path
    ) -> None:
        self.name, self.seed, self.steps, self.photographs = name, seed, steps, photographs
        self.bf16, self.folder = bf16, folder
        self.done = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        variant = VARIANTS[name]
        device = photographs.images.device
        args = make_arguments(variant, seed, steps, folder, 0, **({} if device.type == "cuda" else {"use_cpu": True}))
        self.kind, self.curriculum = variant.kind, args.get_curriculum()
        # The Trainer's own optimizer and schedule; only that a graph reads its rate from the GPU.
        trainer_class = Trainer if variant.kind == "supervised" else C2FMAETrainer
        trainer = trainer_class(model=build_model(variant, seed, encoder), args=args)
        trainer.create_optimizer_and_scheduler(steps)
        self.model = trainer.model.to(device).train()
        schedule = trainer.lr_scheduler
        rates = [schedule.lr_lambdas[0](step) * schedule.base_lrs[0] for step in range(steps)]
        self.rates = torch.tensor(rates, device=device)
        self.rate = torch.zeros((), device=device)
        self.optimizer = torch.optim.AdamW(
            [{name: group[name] for name in ("params", "weight_decay")} for group in trainer.optimizer.param_groups],
            lr=self.rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            fused=True,
            capturable=device.type == "cuda",
        )
        self.max_norm = args.max_grad_norm
        self.losses = torch.zeros(steps, device=device)
        self.counter = torch.zeros((), dtype=torch.long, device=device)
        self.in_batch = torch.arange(BATCH_SIZE, device=device)
        self.generator = torch.Generator(device)

        config, number = self.model.config, len(photographs)
        num_patches = (config.image_size // config.patch_size) ** 2
        self.inputs = {"pixel_values": photographs.buffers["pixel_values"]}
        self.fixed: dict[str, Any] = {}
        if self.kind == "supervised":
            self.inputs["labels"] = photographs.buffers["labels"]
        elif self.kind == "vit_mae":
            self.inputs["noise"] = torch.empty(number, num_patches, device=device)
        else:
            needed = {*config.granularities, *config.input_granularities} - {"image"}
            self.inputs.update({f"{one}_labels": photographs.buffers[f"{one}_labels"] for one in sorted(needed)})
            self.inputs["bool_masked_pos"] = torch.empty(number, num_patches, dtype=torch.bool, device=device)
            self.fixed["num_masked"] = config.num_masked_patches(num_patches)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.photographs) // BATCH_SIZE

    def draw_masks(self, epoch: int) -> None:
        """Those of an epoch, in place; a sample's progress is that of the step that sees it."""
        self.generator.manual_seed(1_000_033 * (self.seed + 1) + epoch)
        number, device = len(self.photographs), self.rates.device
        if self.kind == "vit_mae":
            self.inputs["noise"].uniform_(generator=self.generator)
        elif self.kind == "c2fmae":
            masks = self.inputs["bool_masked_pos"]
            uniform = torch.rand(number, 1 + 2 * masks.shape[1], generator=self.generator, device=device)
            progress = (self.done + torch.arange(number, device=device) // BATCH_SIZE) / self.steps
            masks.copy_(
                mask_by_strategy(
                    self.photographs.buffers["semantic_labels"],
                    self.photographs.instance,
                    self.curriculum.draw(progress, uniform[:, 0]),
                    uniform[:, 1:],
                    num_masked=self.fixed["num_masked"],
                    cells_per_side=self.model.config.label_cells_per_side,
                    jitter=self.curriculum.jitter,
                )[0]
            )

    def step(self) -> None:
        """One step of training; nothing in it waits for the GPU, or depends on what the CPU knows of it."""
        step = self.counter.view(1)
        index = self.counter % self.steps_per_epoch * BATCH_SIZE + self.in_batch
        batch = {name: buffer.index_select(0, index) for name, buffer in self.inputs.items()}
        self.rate.copy_(self.rates.index_select(0, step)[0])
        self.optimizer.zero_grad(set_to_none=True)
        device = self.rates.device.type
        with torch.autocast(device, torch.bfloat16, cache_enabled=False) if self.bf16 else nullcontext():
            loss = self.model(**batch, **self.fixed).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm, foreach=True)
        self.optimizer.step()
        self.losses.index_copy_(0, step, loss.detach().float().view(1))
        self.counter.add_(1)

    def record(self) -> None:
        """Record a step, and put everything back to where it was."""
        start = [value.detach().clone() for value in self.model.parameters()]
        self.stream = torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP):
                self.step()
        torch.cuda.current_stream().wait_stream(self.stream)
        self.optimizer.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.step()
        with torch.no_grad():
            for value, first in zip(self.model.parameters(), start):
                value.copy_(first)
            for state in self.optimizer.state.values():
                for value in state.values():
                    value.zero_()
            self.counter.zero_()

    def advance(self) -> None:
        if self.done >= self.steps:
            return
        if self.graph is None:
            self.step()
        else:
            with torch.cuda.stream(self.stream):
                self.graph.replay()
        self.done += 1

    def known(self) -> dict[str, Any]:
        """What is recorded of its training."""
        last = self.losses[-min(100, self.steps) :].mean().item()
        return {
            "steps": self.steps,
            "images": self.steps * BATCH_SIZE,
            "epochs": round(self.steps * BATCH_SIZE / len(self.photographs), 2),
            "parameters": sum(value.numel() for value in self.model.parameters()),
            "last_losses": {"loss": last},
            "curve": [round(part.mean().item(), 4) for part in self.losses.chunk(50)],
        }


def train(runs: Sequence[Run], num_threads: int, seconds: float | None = None) -> int:
    """
    All runs to their last step, side by side.

    Args:
        num_threads (`int`): Of the CPU that start steps.
        seconds (`float`, *optional*): Stop after the epoch in which so much time has passed.

    Returns:
        Steps that were made, of all runs together.
    """
    synchronize()
    started, epoch = time.perf_counter(), 0
    shared = list({id(run.photographs): run.photographs for run in runs}.values())
    parts = [list(runs[first::num_threads]) for first in range(num_threads)]

    def advance(part: list[Run], number: int) -> None:
        for _ in range(number):
            for run in part:
                run.advance()

    bar = tqdm(total=sum(run.steps for run in runs), unit=" steps", mininterval=5)
    with bar, ThreadPoolExecutor(num_threads) as pool:
        while any(run.done < run.steps for run in runs):
            if seconds is not None and time.perf_counter() - started > seconds:
                break
            for photographs in shared:
                photographs.draw(epoch)
            for run in runs:
                run.draw_masks(epoch)
            synchronize()
            before = sum(run.done for run in runs)
            list(pool.map(advance, parts, [runs[0].steps_per_epoch] * len(parts)))
            synchronize()
            bar.update(sum(run.done for run in runs) - before)
            epoch += 1
    return sum(run.done for run in runs)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


_study_data: StudyData | None = None


def load_in_worker(folder: Path) -> None:
    global _study_data
    torch.set_num_threads(1)
    _study_data = load_study_data(folder, with_pretraining=False)


def evaluate_in_worker(folder: Path, seed: int, fine_tune: bool, device: str) -> dict[str, float]:
    assert _study_data is not None
    return evaluate(C2FMAEModel.from_pretrained(folder).to(device).eval(), _study_data, seed, fine_tune)


@contextmanager
def evaluators(data: Path, number: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that load the photographs at once, and wait for encoders."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(number, context, load_in_worker, (data,)) as pool:
        for _ in range(number):
            pool.submit(time.sleep, 0.5)
        yield pool


def parse(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(MAIN))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=float, default=100)
    parser.add_argument("--encoder", choices=list(ENCODERS), default="small")
    parser.add_argument("--bf16", action="store_true", help="mixed precision; otherwise float32 with TF32 products")
    parser.add_argument("--fine_tune", action="store_true", help="also fine-tune each encoder for segmentation")
    parser.add_argument("--num_threads", type=int, default=2, help="that start steps")
    parser.add_argument("--num_evaluators", type=int, default=max((os.cpu_count() or 2) - 2, 1), help="processes")
    parser.add_argument("--seconds", type=float, help="stop training after so long, without results: to time it")
    parser.add_argument("--work", type=Path, default=Path("runs/fleet"), help="encoders")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args(args)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    suffix = f"-{args.encoder}-{args.epochs:g}"
    keys = [(name, seed) for seed in args.seeds for name in args.variants]
    paths = {(name, seed): args.output / f"{name}-{seed}{suffix}.json" for name, seed in keys}
    wanted = [key for key, path in paths.items() if not path.is_file()]
    if not wanted:
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.perf_counter()
    with evaluators(args.data, args.num_evaluators) as pool:
        data = load_study_data(args.data)
        photographs: dict[tuple[int, str], Photographs] = {}
        cells = ENCODERS[args.encoder]["image_size"] // ENCODERS[args.encoder]["label_stride"]
        rows = {maps: with_maps(data.pretraining, maps) for maps in {VARIANTS[name].maps for name, _ in wanted}}
        runs = []
        for name, seed in wanted:
            key = (seed, VARIANTS[name].maps)
            if key not in photographs:
                photographs[key] = Photographs(rows[key[1]], seed, cells, device)
            steps = round(args.epochs * (len(photographs[key]) // BATCH_SIZE))
            folder = args.work / paths[name, seed].stem
            runs.append(Run(name, seed, steps, photographs[key], args.encoder, args.bf16, folder))
        gc.collect()
        gc.freeze()  # recording collects garbage, in what is there by now for nothing
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # of what is recorded; crops stay exact
            for run in runs:
                run.draw_masks(0)
                run.record()
            torch.set_float32_matmul_precision("highest")
        ready = time.perf_counter()
        made = train(runs, args.num_threads, args.seconds)
        trained = time.perf_counter()
        print(
            f"{len(runs)} runs: ready after {ready - started:.1f} s, {made} steps in {trained - ready:.1f} s, "
            f"{made / (trained - ready):.0f} a second, {made * BATCH_SIZE / (trained - ready):.0f} images a second",
            flush=True,
        )
        if args.seconds is not None:
            return
        futures = {}
        for run in runs:
            encoder_of(run.model).eval().cpu().save_pretrained(run.folder / "encoder")
            futures[run] = pool.submit(
                evaluate_in_worker, run.folder / "encoder", run.seed, args.fine_tune, device.type
            )
        for run, future in futures.items():
            results = future.result()
            content = {
                "variant": run.name,
                "words": VARIANTS[run.name].words,
                "seed": run.seed,
                "equal": "steps",
                "encoder": args.encoder,
                **run.known(),
                "photographs": {name: len(getattr(data, name).images) for name in ("train", "test", "other_test")},
                "runs_at_once": len(runs),
                "seconds": round(trained - ready, 1),
                "results": results,
                "command": hide_tokens(sys.argv),
                "machine": machine(device.type),
            }
            write_json(paths[run.name, run.seed], content)
            print(f"{run.name}, seed {run.seed}: {summary(results)}", flush=True)
        print(f"evaluated in {time.perf_counter() - trained:.1f} s", flush=True)


if __name__ == "__main__":
    main()
