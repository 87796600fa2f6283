"""
Gradient descent with weights sharded by PyTorch's FSDP2, or of one process; for `test_distributed.py`. The library's
Trainer shards on accelerators alone, so that its own option cannot be tried on CPUs.

    torchrun --nproc_per_node 2 tests/sharded_run.py OUTPUT
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


sys.path.insert(0, str(Path(__file__).resolve().parent))

from c2fmae_hf import C2FMAEForPreTraining
from c2fmae_hf.data.data_collator import DataCollatorForC2FMAE
from c2fmae_hf.data.dataset import C2FMAEDataset
from c2fmae_hf.data.transforms import evaluation_transform
from c2fmae_hf.training.non_finite import Watched
from distributed_run import CONFIG
from testing_utils import make_rows


STEPS, BATCH_SIZE = 4, 8


def main(output: Path) -> None:
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    torch.manual_seed(7)
    model = C2FMAEForPreTraining(CONFIG).train()
    rank = 0
    if world_size > 1:
        distributed.init_process_group("gloo")
        rank = distributed.get_rank()
        mesh = init_device_mesh("cpu", (world_size,))
        for stage in model.decoder.stages.values():
            for block in stage.blocks:
                fully_shard(block, mesh=mesh)
        for block in model.c2fmae.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    dataset = C2FMAEDataset(make_rows(16), evaluation_transform((32, 32)), num_semantic_classes=5)
    collator = DataCollatorForC2FMAE(CONFIG)
    losses = []
    for step in range(STEPS):
        indices = range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)
        batch = collator([dataset[index % 16] for index in indices][rank::world_size])
        loss = model(**batch).loss
        loss.backward()
        norm = torch.nn.utils.get_total_norm(
            [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
        )
        watched = Watched()
        for factor in (1.0, float("nan")):
            watched.add(["loss"], loss.detach().reshape(1), None)
            watched.end_update(step, norm * factor)
        found, report = watched.report()
        assert (found, report["gradient_norm"], watched.report()) == (step, "nan", None)
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach() / world_size
        if world_size > 1:
            distributed.all_reduce(total)
        losses.append(total.item())
    weights = {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).clone()
        for name, value in model.state_dict().items()
    }
    if rank == 0:
        save_file(weights, output / "weights.safetensors")
        (output / "losses.json").write_text(json.dumps(losses))
    if world_size > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
