"""Pre-train one variant with one seed, for the number of steps that its compute allows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from data import SOURCES, SceneData, StudyData
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint
from variants import DECODER, ENCODERS, Variant

from c2fmae_hf import C2FMAEConfig, C2FMAEForImageClassification, C2FMAEForPreTraining, C2FMAEModel, masking
from c2fmae_hf.constants import GRANULARITIES, IGNORE_INDEX_8BIT
from c2fmae_hf.data.data_collator import DataCollatorForC2FMAE
from c2fmae_hf.data.dataset import C2FMAEDataset
from c2fmae_hf.data.progress import SharedProgress
from c2fmae_hf.data.transforms import training_transform
from c2fmae_hf.interop.conversion import convert_to_c2fmae
from c2fmae_hf.labelling.labellers.classical import ClassicalLabeller
from c2fmae_hf.masking import MaskingCurriculum
from c2fmae_hf.modeling_c2fmae import (
    C2FMAECrossAttention,
    C2FMAEDecoder,
    C2FMAEDecoderBlock,
    Queries,
    gather_patches,
    sincos_position_table,
)
from c2fmae_hf.training.trainer import C2FMAETrainer
from c2fmae_hf.training.training_args import C2FMAETrainingArguments


BATCH_SIZE = 32
TRAINING = {
    "per_device_train_batch_size": BATCH_SIZE,
    # Small batches and a high rate: in a thousand steps of 128 photographs no model learns to use the patches.
    "base_learning_rate": 4e-3,
    "logging_steps": 100,
    "save_total_limit": 1,
    "disable_tqdm": False,
}
# MAE's own decoder is a quarter as deep as the encoder here (it is two thirds with ViT-Base), and as wide as ours.
VIT_MAE_DECODER = {**DECODER, "decoder_num_hidden_layers": 2}


def build_model(variant: Variant, seed: int, encoder: str = "small", source: str = "stl10") -> nn.Module:
    set_seed(seed)
    if variant.kind == "vit_mae":
        fields = {name: value for name, value in ENCODERS[encoder].items() if name in ViTMAEConfig().to_dict()}
        model = ViTMAEForPreTraining(
            ViTMAEConfig(
                **{**fields, **VIT_MAE_DECODER, **variant.config},
                mask_ratio=0.75,
                norm_pix_loss=True,
                layer_norm_eps=1e-6,
            )
        )
        initialise_as_authors(model)
        return model
    classes = {
        "num_semantic_classes": {"annotated": SOURCES[source].num_classes, "objects": 2, "classical": 32}[variant.maps]
    }
    weights = dict.fromkeys(variant.config.get("granularities", GRANULARITIES), 1.0)
    fields = {**ENCODERS[encoder], **DECODER, **classes, "loss_weights": weights, **variant.config}
    fields["label_stride"] = label_stride(variant, encoder)
    config = C2FMAEConfig(**fields)
    if variant.kind == "supervised":
        return C2FMAEForImageClassification(C2FMAEConfig(**{**config.to_dict(), "num_labels": 10}))
    model = C2FMAEForPreTraining(config)
    for stage in model.decoder.stages.values():
        embed = stage.embed_prediction
        if variant.feedback == "detached":
            stage.embed_prediction = lambda logits, embed=embed: embed(logits.detach())
        elif variant.feedback == "none":
            stage.embed_prediction = lambda logits: logits.new_zeros(())
        if variant.blocks_twice:
            for block in stage.blocks:
                block.__class__ = TwiceAppliedBlock
    if variant.feeds_memory:
        model.decoder.__class__ = MemoryFedDecoder
    if variant.class_token_predicts:
        model.__class__ = ClassTokenPredictor
        model.predict_shares = nn.Linear(config.hidden_size, config.num_semantic_classes).apply(model._init_weights)
        model.c2fmae.register_forward_hook(model.keep_class_token)
    for name in variant.self_attention:
        blocks = [SelfAttentiveBlock(config) for _ in model.decoder.stages[name].blocks]
        model.decoder.stages[name].blocks = nn.ModuleList(blocks).apply(model._init_weights)
    return model


def label_stride(variant: Variant, encoder: str) -> int:
    return ENCODERS[encoder]["patch_size" if variant.label_a_patch else "label_stride"]


class SelfAttentiveBlock(C2FMAEDecoderBlock):
    """A decoder block whose queries attend to each other before they attend to the visible patches."""

    def __init__(self, config: C2FMAEConfig) -> None:
        super().__init__(config)
        self.norm0 = nn.LayerNorm(config.decoder_hidden_size, eps=config.layer_norm_eps)
        self.self_attn = C2FMAECrossAttention(config)

    def forward(self, queries: torch.Tensor, memory: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        own = self.norm0(queries)
        return super().forward(queries + self.self_attn(own, own, **kwargs)[0], memory, **kwargs)


class TwiceAppliedBlock(C2FMAEDecoderBlock):
    """A decoder block that is applied twice, with the same weights."""

    def forward(self, queries: torch.Tensor, memory: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return super().forward(super().forward(queries, memory, **kwargs), memory, **kwargs)


class MemoryFedDecoder(C2FMAEDecoder):
    """A decoder that predicts visible patches, too, and adds their predictions to the memory of the next stage."""

    def forward(
        self,
        encoder_tokens: torch.Tensor,
        visible_ids: torch.Tensor,
        query_ids: torch.Tensor,
        num_image_queries: int,
        grid_size: tuple[int, int],
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        visible_positions = gather_patches(self.pos_embed, visible_ids)
        memory = self.norm(self.embed(encoder_tokens) + nn.functional.pad(visible_positions, (0, 0, 1, 0)))
        queries = self.mask_token + gather_patches(self.pos_embed, torch.cat([query_ids, visible_ids], dim=1))
        logits = {}
        for name, stage in self.stages.items():
            found, queries = stage(queries, memory, **kwargs)
            logits[name] = found[:, : num_image_queries if name == "image" else query_ids.shape[1]]
            if queries is not None:
                fed = stage.embed_prediction(found[:, query_ids.shape[1] :])
                memory = memory + nn.functional.pad(fed, (0, 0, 1, 0))
        return logits


class ClassTokenPredictor(C2FMAEForPreTraining):
    """A model whose class token predicts each semantic class's share of the image, in the semantic loss."""

    predict_shares: nn.Linear
    class_token: torch.Tensor

    def keep_class_token(self, encoder: nn.Module, inputs: Any, output: Any) -> None:
        self.class_token = output.last_hidden_state[:, 0]

    def compute_losses(
        self,
        logits: dict[str, torch.Tensor],
        queries: Queries,
        pixel_values: torch.Tensor,
        semantic_labels: torch.Tensor | None,
        instance_labels: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        losses = super().compute_losses(logits, queries, pixel_values, semantic_labels, instance_labels)
        if semantic_labels is not None:
            classes = torch.arange(self.config.num_semantic_classes, device=semantic_labels.device)
            counts = (semantic_labels.flatten(1)[..., None] == classes).sum(dim=1).float()
            shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
            losses["semantic"] = losses["semantic"] + nn.functional.cross_entropy(
                self.predict_shares(self.class_token), shares
            )
        return losses


class LossesFollow(TrainerCallback):
    """Weighs each granularity's loss by 0.5 plus 1.5 times the curriculum's present share of its masks."""

    def __init__(self, curriculum: MaskingCurriculum, weights: dict[str, float]) -> None:
        self.curriculum, self.weights = curriculum, weights

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        shares = self.curriculum.probabilities(torch.tensor([state.global_step / state.max_steps]))[0].tolist()
        for name, share in zip(("semantic", "instance", "image"), shares):
            self.weights[name] = 0.5 + 1.5 * share


@torch.no_grad()
def initialise_as_authors(model: ViTMAEForPreTraining) -> None:
    """
    Initialise as MAE's authors do, and as we do. transformers' model without pre-trained weights keeps position tables
    and both tokens at zero, so it cannot tell masked patches apart, and its normal weights are three times smaller at
    this width.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    embeddings, decoder = model.vit.embeddings, model.decoder
    patches = embeddings.patch_embeddings.projection.weight
    nn.init.xavier_uniform_(patches.view(len(patches), -1))
    side = model.config.image_size // model.config.patch_size
    for table in (embeddings.position_embeddings, decoder.decoder_pos_embed):
        table.copy_(nn.functional.pad(sincos_position_table(table.shape[-1], (side, side)), (0, 0, 1, 0)))
    for token in (embeddings.cls_token, decoder.mask_token):
        nn.init.normal_(token, std=model.config.initializer_range)


def encoder_of(model: nn.Module) -> C2FMAEModel:
    """The encoder to evaluate, as this package's class."""
    if isinstance(model, ViTMAEForPreTraining):
        return convert_to_c2fmae(model.vit)
    return model.image_encoder() if isinstance(model, C2FMAEForPreTraining) else model.c2fmae


class LabelDataset(Dataset):
    """The same crops with the class of the image."""

    def __init__(self, rows: C2FMAEDataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        return {"pixel_values": self.rows[index]["pixel_values"], "labels": self.rows.rows[index]["label"]}


class StudyCollator(DataCollatorForC2FMAE):
    """Masks crops as the variant says: the first samples of a batch several times, or regions by area."""

    masks_per_crop = 1
    shares_by_area = False

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        kept = samples[: len(samples) // self.masks_per_crop]
        repeated = []
        for number in range(self.masks_per_crop):
            for sample in kept:
                key = sample["sample_key"]
                repeated.append({**sample, "sample_key": key._replace(epoch=key.epoch + 1000 * number)})
        places = places_by_area if self.shares_by_area else masking.places_in_regions
        with mock.patch.object(masking, "places_in_regions", places):
            return super().__call__(repeated)


def places_by_area(ranks: torch.Tensor, patch_keys: torch.Tensor, places=masking.places_in_regions) -> torch.Tensor:
    """Places of patches in their regions, divided by the region's share of the patches."""
    sizes = nn.functional.one_hot(ranks).sum(dim=1).gather(1, ranks)
    return places(ranks, patch_keys) * ranks.shape[1] / sizes


def pixels_only(samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.stack([sample["pixel_values"] for sample in samples])}


def with_maps(rows: Sequence[dict[str, Any]], maps: str) -> list[dict[str, Any]]:
    """Rows with a variant's maps instead of the annotators'."""
    if maps == "annotated":
        return list(rows)
    if maps == "objects":
        as_objects = [min(value, 1) for value in range(IGNORE_INDEX_8BIT)] + [IGNORE_INDEX_8BIT]
        return [{**row, "semantic": row["semantic"].point(as_objects)} for row in rows]
    labeller = ClassicalLabeller(num_classes=32)
    labeller.fit([row["image"] for row in rows[:: max(len(rows) // 256, 1)]])
    labelled = []
    for row in rows:
        found = labeller.label(row["image"])
        arrays = {"semantic": found.semantic, "instance": found.instance}
        labelled.append({**row, **{name: Image.fromarray(one.astype(np.uint16)) for name, one in arrays.items()}})
    return labelled


def make_arguments(
    variant: Variant, seed: int, steps: int, folder: Path, num_workers: int, **arguments: Any
) -> C2FMAETrainingArguments:
    return C2FMAETrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        seed=seed,
        dataloader_num_workers=num_workers,
        report_to="none",
        save_steps=max(steps // 6, 1),
        **{**TRAINING, **variant.training, **arguments},
    )


def make_trainer(
    variant: Variant,
    seed: int,
    data: StudyData | SceneData,
    steps: int,
    folder: Path,
    num_workers: int,
    encoder: str = "small",
    **arguments: Any,
) -> Trainer:
    model = build_model(variant, seed, encoder, data.source)
    side = ENCODERS[encoder]["image_size"]
    rows = C2FMAEDataset(
        with_maps(data.pretraining, variant.maps),
        training_transform((side, side), label_stride=label_stride(variant, encoder)),
        map_columns=() if variant.kind != "c2fmae" else ("semantic", "instance"),
        seed=seed,
        progress=SharedProgress(),
    )
    args = make_arguments(variant, seed, steps, folder, num_workers, **arguments)
    if variant.kind == "supervised":
        args.label_names = ["labels"]
        return Trainer(model=model, args=args, train_dataset=LabelDataset(rows))
    collator: Any = pixels_only
    if variant.kind == "c2fmae":
        collator = StudyCollator(model.config, curriculum=args.get_curriculum(), seed=seed)
        collator.masks_per_crop = variant.masks_per_crop
        collator.shares_by_area = variant.shares_by_area
    trainer = C2FMAETrainer(model=model, args=args, train_dataset=rows, data_collator=collator)
    if variant.losses_follow:
        trainer.add_callback(LossesFollow(args.get_curriculum(), model.config.loss_weights))
    return trainer


def pretrain(
    variant: Variant,
    seed: int,
    data: StudyData | SceneData,
    steps: int,
    folder: Path,
    num_workers: int = 1,
    encoder: str = "small",
    **arguments: Any,
) -> tuple[C2FMAEModel, dict[str, Any]]:
    """
    Pre-train; return the encoder and facts about its training. An interrupted run resumes from its last checkpoint.

    Args:
        steps (`int`): Number of steps, each of `BATCH_SIZE` photographs.
        folder: Folder of the checkpoints.
        encoder (`str`): One of `ENCODERS`.
    """
    trainer = make_trainer(variant, seed, data, steps, folder, num_workers, encoder, **arguments)
    checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    output = trainer.train(resume_from_checkpoint=checkpoint)
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1:]
    known = {
        "steps": steps,
        "images": steps * BATCH_SIZE,
        "epochs": round(steps * BATCH_SIZE / len(data.pretraining), 2),
        # For a resumed run only the last part's time is known.
        "seconds": None if checkpoint else round(output.metrics["train_runtime"], 1),
        "resumed": checkpoint is not None,
        "parameters": sum(value.numel() for value in trainer.model.parameters()),
        "last_losses": {name: value for name, value in (last or [{}])[0].items() if name.endswith("loss")},
    }
    return encoder_of(trainer.model).eval(), known
