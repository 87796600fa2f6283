"""
Pre-train in Python: a configuration, rows, and a trainer that builds the rest.

    python examples/pretrain_in_python.py runs/demo/dataset runs/python      # the dataset of `c2fmae demo`

Takes about a minute on two CPU cores. Prints the losses; saves checkpoints and an encoder for AutoModel and timm.
"""

import sys

import datasets

from c2fmae_hf import C2FMAEConfig, C2FMAEForPreTraining, C2FMAETrainer, C2FMAETrainingArguments


dataset, output_dir = sys.argv[1:3]
splits = datasets.load_from_disk(dataset)  # columns image, semantic, instance
config = C2FMAEConfig.from_size("tiny", image_size=96, patch_size=8, num_semantic_classes=8)
arguments = C2FMAETrainingArguments(output_dir, max_steps=20, per_device_train_batch_size=16, logging_steps=5)
trainer = C2FMAETrainer(
    C2FMAEForPreTraining(config), arguments, train_dataset=splits["train"], eval_dataset=splits["validation"]
)
trainer.train()
print(trainer.evaluate())
trainer.save_encoder(f"{output_dir}/encoder")
