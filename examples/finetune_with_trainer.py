"""
Fine-tune an encoder with transformers' own Trainer. This package is only imported.

    python examples/finetune_with_trainer.py model_cards/c2fmae-vit-tiny-stl10 photos runs/finetuned

`photos` has a subfolder of images per class. 20 epochs take about a second per photograph on two CPU cores.
"""

import sys

import datasets
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments

import c2fmae_hf  # noqa: F401  registers C2FMAE with transformers


encoder, photos, output_dir = sys.argv[1:4]
rows = datasets.load_dataset("imagefolder", data_dir=photos, split="train")
rows = rows.train_test_split(0.2, seed=0, stratify_by_column="label")
names = rows["train"].features["label"].names
processor = AutoImageProcessor.from_pretrained(encoder)
model = AutoModelForImageClassification.from_pretrained(
    encoder, num_labels=len(names), id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}
)


def transform(batch: dict) -> dict:
    return {**processor(batch["image"], return_tensors="pt"), "labels": batch["label"]}


def accuracy(prediction) -> dict:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


trainer = Trainer(
    model,
    TrainingArguments(
        output_dir,
        num_train_epochs=20,
        learning_rate=1e-3,
        warmup_steps=0.1,
        per_device_train_batch_size=16,
        remove_unused_columns=False,
        report_to="none",
    ),
    train_dataset=rows["train"].with_transform(transform),
    eval_dataset=rows["test"].with_transform(transform),
    processing_class=processor,
    compute_metrics=accuracy,
)
trainer.train()
print(trainer.evaluate())
trainer.save_model()
