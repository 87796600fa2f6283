"""
A masking strategy of your own: masks are an input of the model, so a collator can draw any mask.

    python examples/custom_masking.py runs/demo/dataset      # the dataset of `c2fmae demo`

This one hides a rectangle in the middle, then patches at random. Takes a few seconds.
"""

import sys

import datasets
import torch

from c2fmae_hf import C2FMAEConfig, C2FMAEDataset, C2FMAEForPreTraining, DataCollatorForC2FMAE, training_transform


class CentreFirst(DataCollatorForC2FMAE):
    """Hides the central patches of every image, then others at random, up to the configuration's mask ratio."""

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        batch = super().__call__(samples)
        height, width = self.config.grid_size
        centre = torch.zeros(height, width)
        centre[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = 1
        num_masked = self.config.num_masked_patches(height * width)  # the same in every row
        order = (torch.rand(len(samples), height * width) + centre.flatten()).argsort(dim=1, descending=True)
        mask = torch.zeros(len(samples), height * width, dtype=torch.bool)
        batch["bool_masked_pos"] = mask.scatter(1, order[:, :num_masked], True)
        batch.pop("mask_strategy", None)  # of the curriculum, which is not used
        return batch


rows = datasets.load_from_disk(sys.argv[1])["train"]
config = C2FMAEConfig.from_size("tiny", image_size=96, patch_size=8, num_semantic_classes=8)
dataset = C2FMAEDataset(rows, training_transform((96, 96)))
batch = CentreFirst(config)([dataset[i] for i in range(4)])
print(batch["bool_masked_pos"][0].view(config.grid_size).int())
print("loss", round(C2FMAEForPreTraining(config)(**batch).loss.item(), 3))
# In training: C2FMAETrainer(model, arguments, CentreFirst(config), train_dataset=rows)
