"""
Evaluations of a frozen encoder: linear probe, k nearest neighbours, a linear layer that segments patches, and the
share of attention that stays inside objects. Of scenes, the linear layer alone, which also separates instances.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import torch
from answers import Answers, pack_answers
from data import NUM_CLASSES, SCENES, Labelled, Masked, SceneData, StudyData, normalise
from torch import nn

from c2fmae_hf import C2FMAEConfig, C2FMAEModel
from c2fmae_hf.image_processing_c2fmae import C2FMAEImageProcessor
from c2fmae_hf.losses import instance_loss
from c2fmae_hf.metrics.scores import PanopticCounts, confusion_matrix, iou_scores, panoptic_from_instances
from c2fmae_hf.modeling_c2fmae import C2FMAEForPreTrainingOutput
from c2fmae_hf.pictures.encoder_views import attention_in_objects, attention_maps
from c2fmae_hf.targets import instance_labels_from_map, patchify
from c2fmae_hf.transfer.probes import LinearProbe, extract_features, weighted_knn


EVALUATION_BATCH = 256
ATTENTION_LAYERS = 2
# As in `instance_map_from_labels`, in units of the map's sides.
VOTE_RADIUS = 0.06


class Judged(TypedDict):
    """
    Args:
        results: Scores in [0, 1] by name.
        answers: Answers of the probes and neighbours, by name; empty for scenes.
    """

    results: dict[str, float]
    answers: dict[str, Answers]


def evaluate(encoder: C2FMAEModel, data: StudyData | SceneData, seed: int, fine_tune: bool = False) -> Judged:
    """
    Evaluate an encoder by all protocols.

    Args:
        encoder: The encoder, on the device to use.
        fine_tune (`bool`): Whether to fine-tune the encoder for segmentation at the end, which changes it. Not for
            scenes.
    """
    if isinstance(data, SceneData):
        return {"results": judge_scenes(encoder, data, seed), "answers": {}}
    results: dict[str, float] = {}
    answers: dict[str, Answers] = {}
    for prefix, train, test in (("", data.train, data.test), ("caltech101_", data.other_train, data.other_test)):
        for name, right in judge_classes(encoder, train, test, seed).items():
            by_class = [right[test.labels == label].float().mean() for label in test.labels.unique()]
            results[f"{prefix}{name}"] = right.float().mean().item()
            results[f"{prefix}{name}_balanced"] = torch.stack(by_class).mean().item()
            answers[f"{prefix}{name}"] = pack_answers(right.numpy())
    results["patch_mean_iou"] = judge_patches(encoder, data.mask_train, data.mask_test, seed)["mean_iou"]
    results.update(judge_attention(encoder, data.mask_test))
    if fine_tune:
        results["fine_tuned_mean_iou"] = judge_fine_tuning(encoder, data.mask_train, data.mask_test, seed)
    return {"results": results, "answers": answers}


def judge_classes(encoder: C2FMAEModel, train: Labelled, test: Labelled, seed: int) -> dict[str, torch.Tensor]:
    """
    Find the photographs of `test` that a linear probe and nearest neighbours classify correctly from mean-pooled
    features. The probe is trained on plain and mirrored photographs.
    """

    def features(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        batches = (
            {"pixel_values": normalise(part), "labels": truth}
            for part, truth in zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH))
        )
        return extract_features(encoder, batches)[0]["mean"]

    num_classes = int(train.labels.max()) + 1
    plain, tested = features(train.images, train.labels), features(test.images, test.labels)
    mirrored = features(train.images.flip(-1), train.labels)
    torch.manual_seed(seed)
    probe = LinearProbe(plain.shape[1], num_classes).fit(
        torch.cat([plain, mirrored]), torch.cat([train.labels, train.labels]), seed=seed
    )
    with torch.no_grad():
        probed = probe(tested)
    neighbours = weighted_knn(plain, train.labels, tested, num_classes)
    return {
        name: score.argmax(dim=1) == test.labels for name, score in (("linear_probe", probed), ("knn", neighbours))
    }


@torch.inference_mode()
def patch_tokens(encoder: C2FMAEModel, images: torch.Tensor) -> torch.Tensor:
    """Patch tokens of the last layer, `(N, patches, width)`."""
    device = encoder.device
    parts = [encoder(normalise(part.to(device))).last_hidden_state[:, 1:] for part in images.split(EVALUATION_BATCH)]
    return torch.cat(parts).clone()


def to_patches(squares: torch.Tensor, side: int) -> torch.Tensor:
    """Group squares `(N, S, S)` by patch: `(N, side ** 2, squares of a patch)`."""
    return patchify(squares[:, None], squares.shape[1] // side)[..., 0]


def judge_scenes(encoder: C2FMAEModel, data: SceneData, seed: int) -> dict[str, float]:
    """
    Scores of linear layers that are trained on plain and mirrored scenes: mean IoU and accuracy of classes, and the
    panoptic quality of instances regardless of their class, as the package scores its decoder.
    """
    names = {"pq": "panoptic_quality", "rq": "recognition_quality", "sq": "segmentation_quality"}
    results = {}
    for name, (train, test) in data.scored.items():
        parts = (train.images, train.semantic, train.instance)
        train = Masked(*(torch.cat([part, part.flip(-1)]) for part in parts))
        one = SCENES[name]
        found = judge_patches(encoder, train, test, seed, one.num_classes, one.has_instances)
        results.update({f"{name}_{names.get(key, key)}": value for key, value in found.items()})
    return results


def judge_patches(
    encoder: C2FMAEModel,
    train: Masked,
    test: Masked,
    seed: int,
    num_classes: int = NUM_CLASSES,
    with_instances: bool = False,
    epochs: int = 20,
) -> dict[str, float]:
    """
    Scores of a linear layer that predicts the class of each square from its patch's token: `mean_iou`, `accuracy`.
    With instances it also predicts the offset to the instance's centre and the foreground flag, see
    [`score_instances`].
    """
    side, device = encoder.config.grid_size[0], encoder.device
    truth = to_patches(train.semantic, side).flatten(0, 1).to(device)
    squares, channels = truth.shape[1], num_classes + 3 * with_instances
    if with_instances:
        offsets = instance_labels_from_map(train.instance)
        offsets = patchify(offsets, offsets.shape[-1] // side).flatten(0, 1).to(device)

    def loss_of(scores: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        scores = scores.unflatten(1, (squares, channels))
        loss = nn.functional.cross_entropy(scores[..., :num_classes].flatten(0, 1), truth[index].flatten())
        if with_instances:
            fields = scores[None, ..., num_classes:]
            loss = loss + instance_loss(fields, offsets[None, index], C2FMAEConfig.instance_offset_weight)
        return loss

    head = fit_linear(patch_tokens(encoder, train.images).flatten(0, 1), squares * channels, loss_of, seed, epochs)
    with torch.no_grad():
        scores = head(patch_tokens(encoder, test.images).flatten(0, 1)).unflatten(1, (squares, channels))
    results = score_classes(scores[..., :num_classes], to_patches(test.semantic, side).flatten(0, 1))
    if with_instances:
        fields = scores[..., num_classes:].unflatten(0, (len(test.images), side**2))
        results.update(score_instances(encoder, fields, test.instance))
    return results


def fit_linear(
    tokens: torch.Tensor,
    outputs: int,
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    seed: int,
    epochs: int,
) -> nn.Module:
    """
    Fit a linear layer to standardised tokens `(T, width)`; `loss_of` takes its outputs `(batch, outputs)` and the
    numbers `(batch,)` of their tokens.
    """
    torch.manual_seed(seed)
    head = nn.Sequential(nn.BatchNorm1d(tokens.shape[1], affine=False), nn.Linear(tokens.shape[1], outputs))
    head = head.to(tokens.device)
    batch_size = min(4096, len(tokens))
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    steps = epochs * (len(tokens) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        if step % (len(tokens) // batch_size) == 0:
            order = torch.randperm(len(tokens)).split(batch_size)
        index = order[step % (len(tokens) // batch_size)]
        loss = loss_of(head(tokens[index]), index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head.eval()


def score_classes(scores: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """
    Mean IoU over the classes that occur, and the share of squares that are right, of class scores `(..., classes)`
    against classes `(...)`.
    """
    found = scores.argmax(dim=-1).cpu()
    counted = iou_scores(confusion_matrix(found.numpy(), expected.numpy(), scores.shape[-1]))
    return {"mean_iou": float(counted["mean_iou"]), "accuracy": float(counted["overall_accuracy"])}


def score_instances(encoder: C2FMAEModel, fields: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """
    Scores of predicted offsets and flags `(N, patches, squares of a patch, 3)` against instances `(N, S, S)`,
    regardless of class: `pq`, `sq` and `rq`, panoptic, segmentation and recognition quality; and, as these are zero
    until whole objects are found, `foreground_iou` of the flag, and `votes_near_centre`, the share of the instances'
    squares whose offset leads to within `VOTE_RADIUS` of their centre.
    """
    true = instance_labels_from_map(expected)
    true = patchify(true, true.shape[-1] // encoder.config.grid_size[0]).to(fields.device)
    known, is_instance, is_found = true[..., 2] >= 0, true[..., 2] > 0.5, fields[..., 2] > 0
    near = (fields[..., :2] - true[..., :2]).norm(dim=-1)[is_instance] <= VOTE_RADIUS
    results = {
        "foreground_iou": ((is_found & is_instance).sum() / ((is_found | is_instance) & known).sum()).item(),
        "votes_near_centre": near.float().mean().item(),
    }
    patch_ids = torch.arange(fields.shape[1], device=fields.device).expand(len(fields), -1)
    outputs = C2FMAEForPreTrainingOutput(instance_logits=fields, patch_ids=patch_ids)
    processor = C2FMAEImageProcessor.from_config(encoder.config)
    found = processor.post_process_instance_segmentation(outputs, grid_size=encoder.config.grid_size)
    counts = PanopticCounts(2)
    for one, reference in zip(found, expected):
        maps = (panoptic_from_instances(ids.cpu().numpy()) for ids in (one["segmentation"], reference))
        counts.add(*maps, things={0})
    return {**counts.scores([0]), **results}


def judge_fine_tuning(
    encoder: C2FMAEModel, train: Masked, test: Masked, seed: int, epochs: int = 8, batch_size: int = 64
) -> float:
    """Mean IoU of the same linear layer, trained together with the encoder, on randomly mirrored photographs."""
    side, device = encoder.config.grid_size[0], encoder.device
    squares = (train.semantic.shape[1] // side) ** 2
    torch.manual_seed(seed)
    head = nn.Linear(encoder.config.hidden_size, squares * NUM_CLASSES).to(device)
    images, truth = normalise(train.images.to(device)), train.semantic.to(device)
    parameters = [*encoder.train().parameters(), *head.parameters()]
    steps = epochs * (len(images) // batch_size)
    optimizer = torch.optim.AdamW(parameters, lr=3e-4, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-4, steps, pct_start=0.1)
    for _ in range(epochs):
        for index in torch.randperm(len(images))[: steps // epochs * batch_size].split(batch_size):
            flips = torch.rand(len(index)).to(device) < 0.5
            pixels, classes = images[index], truth[index]
            pixels = torch.where(flips[:, None, None, None], pixels.flip(-1), pixels)
            classes = to_patches(torch.where(flips[:, None, None], classes.flip(-1), classes), side)
            scores = head(encoder(pixels).last_hidden_state[:, 1:]).unflatten(-1, (squares, NUM_CLASSES))
            loss = nn.functional.cross_entropy(scores.flatten(0, 2), classes.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        scores = head(patch_tokens(encoder.eval(), test.images)).unflatten(-1, (squares, NUM_CLASSES))
    return score_classes(scores, to_patches(test.semantic, side))["mean_iou"]


@torch.inference_mode()
def judge_attention(encoder: C2FMAEModel, data: Masked) -> dict[str, float]:
    """
    Scores of the attention of the last layers, averaged over heads: the share that stays inside an object; the share
    that even attention would give; and the share that the three most attended patches of a photograph receive. If this
    is much more than their area, the encoder stores global information in these patches.
    """
    side = encoder.config.grid_size[0]
    # A patch belongs to the instance of most of its squares.
    instances = to_patches(data.instance, side).mode(dim=-1).values
    found, most = [], []
    for images, ids in zip(data.images.split(EVALUATION_BATCH), instances.split(EVALUATION_BATCH)):
        maps = attention_maps(encoder, normalise(images.to(encoder.device)))[-ATTENTION_LAYERS:, :, :, 1:, 1:]
        mean = maps.mean(dim=(0, 2)).cpu()
        found.append(torch.stack(attention_in_objects(mean, ids)))
        received = (mean / mean.sum(dim=-1, keepdim=True)).mean(dim=1)  # by each patch, as a share of all attention
        most.append(received.topk(3).values.sum(dim=-1))
    share, area = torch.cat(found, dim=1).double().mean(dim=1).tolist()
    three = torch.cat(most).double().mean().item()
    return {"attention_in_object": share, "object_area": area, "attention_to_three_patches": three}


def summary(results: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * value:.1f}" for name, value in results.items())
