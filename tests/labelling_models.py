"""Small randomly initialised checkpoints of the real classes, with their real processors, as folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    BaseImageProcessor,
    CLIPTokenizer,
    DetrConfig,
    DetrForSegmentation,
    DetrImageProcessor,
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerImageProcessor,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
    OneFormerImageProcessor,
    OneFormerProcessor,
    PreTrainedModel,
    ProcessorMixin,
    ResNetConfig,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2ImageProcessor,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
    SamConfig,
    SamImageProcessor,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    SwinConfig,
)


NAMES = {0: "person", 1: "car", 2: "sky", 3: "road"}
LABELS = {"id2label": NAMES, "label2id": {name: index for index, name in NAMES.items()}}


def _swin() -> SwinConfig:
    return SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def _mask2former(folder: Path) -> tuple[PreTrainedModel, ProcessorMixin | BaseImageProcessor]:
    config = Mask2FormerConfig(
        backbone_config=_swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=8,
        **LABELS,
    )
    model = Mask2FormerForUniversalSegmentation(config)
    # As the original settings: the shorter side resized, batches padded.
    processor = Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}, size_divisor=32)
    return model, processor


def _maskformer(folder: Path) -> tuple[PreTrainedModel, ProcessorMixin | BaseImageProcessor]:
    config = MaskFormerConfig(
        backbone_config=_swin(),
        fpn_feature_size=32,
        mask_feature_size=32,
        decoder_config=DetrConfig(
            d_model=32,
            decoder_layers=2,
            encoder_layers=1,
            decoder_ffn_dim=16,
            encoder_ffn_dim=16,
            decoder_attention_heads=2,
            encoder_attention_heads=2,
            num_queries=8,
        ),
        num_attention_heads=2,
        **LABELS,
    )
    model = MaskFormerForInstanceSegmentation(config)
    processor = MaskFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}, size_divisor=32)
    return model, processor


def _oneformer(folder: Path) -> tuple[PreTrainedModel, ProcessorMixin | BaseImageProcessor]:
    config = OneFormerConfig(
        backbone_config=_swin(),
        hidden_dim=32,
        mask_dim=32,
        conv_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=8,
        query_dec_layers=1,
        text_encoder_vocab_size=300,
        text_encoder_width=32,
        text_encoder_num_layers=1,
        task_seq_len=16,
        text_encoder_context_length=16,
        **LABELS,
    )
    model = OneFormerForUniversalSegmentation(config)
    info = {str(i): {"name": name, "isthing": int(i < 2)} for i, name in NAMES.items()}
    (folder / "classes.json").write_text(json.dumps(info))
    image_processor = OneFormerImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 128}, repo_path=str(folder), class_info_file="classes.json"
    )
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    return model, OneFormerProcessor(image_processor, tokenizer, max_seq_length=16, task_seq_length=16)


def _eomt(folder: Path) -> tuple[PreTrainedModel, ProcessorMixin | BaseImageProcessor]:
    config = EomtConfig(
        image_size=64,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        mlp_ratio=2,
        num_blocks=1,
        num_queries=8,
        num_upscale_blocks=1,
        **LABELS,
    )
    model = EomtForUniversalSegmentation(config)
    processor = EomtImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True)
    return model, processor


def _eomt_dinov3(folder: Path) -> tuple[PreTrainedModel, ProcessorMixin | BaseImageProcessor]:
    config = EomtDinov3Config(
        image_size=64,
        patch_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_blocks=1,
        num_queries=8,
        num_upscale_blocks=1,
        **LABELS,
    )
    model = EomtDinov3ForUniversalSegmentation(config)
    processor = EomtImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True)
    return model, processor


def _detr(folder: Path) -> tuple[PreTrainedModel, ProcessorMixin | BaseImageProcessor]:
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        num_queries=8,
        **LABELS,
    )
    model = DetrForSegmentation(config)
    return model, DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})


def _segformer(folder: Path) -> tuple[PreTrainedModel, ProcessorMixin | BaseImageProcessor]:
    config = SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        **LABELS,
    )
    model = SegformerForSemanticSegmentation(config)
    return model, SegformerImageProcessor(size={"height": 64, "width": 64})


def _sam(folder: Path) -> tuple[PreTrainedModel, ProcessorMixin | BaseImageProcessor]:
    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=16,
            output_channels=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=64,
            patch_size=8,
            window_size=4,
            global_attn_indexes=[1],
            num_pos_feats=8,
            mlp_dim=32,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4
        ),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=16, mlp_dim=32, num_hidden_layers=2, num_attention_heads=2, iou_head_hidden_dim=16
        ),
    )
    model = SamModel(config)
    processor = SamImageProcessor(
        size={"longest_edge": 64},
        mask_size={"longest_edge": 32},
        pad_size={"height": 64, "width": 64},
        mask_pad_size={"height": 32, "width": 32},
    )
    return model, processor


def _sam2(folder: Path) -> tuple[PreTrainedModel, ProcessorMixin | BaseImageProcessor]:
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[64, 64],
        patch_kernel_size=[7, 7],
        patch_stride=[4, 4],
        patch_padding=[3, 3],
        blocks_per_stage=[1, 2, 1, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 4, 4],
        global_attention_blocks=[2],
        window_positional_embedding_background_size=[4, 4],
    )
    config = Sam2Config(
        vision_config=Sam2VisionConfig(
            backbone_config=backbone,
            backbone_channel_list=[64, 32, 16, 8],
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
            fpn_hidden_size=16,
        ),
        prompt_encoder_config=Sam2PromptEncoderConfig(
            hidden_size=16, image_size=64, patch_size=16, mask_input_channels=4
        ),
        mask_decoder_config=Sam2MaskDecoderConfig(
            hidden_size=16, mlp_dim=32, num_hidden_layers=2, num_attention_heads=2, iou_head_hidden_dim=16
        ),
    )
    model = Sam2Model(config)
    return model, Sam2ImageProcessor(size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16})


UNIVERSAL = {
    "mask2former": _mask2former,
    "maskformer": _maskformer,
    "oneformer": _oneformer,
    "eomt": _eomt,
    "eomt_dinov3": _eomt_dinov3,
    "detr": _detr,
}
MASK_GENERATORS = {"sam": _sam, "sam2": _sam2}


def save_checkpoint(kind: str, folder: Path) -> Path:
    """A folder with model and processor; the same weights every time."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    model, processor = {**UNIVERSAL, **MASK_GENERATORS, "segformer": _segformer}[kind](folder)
    with torch.no_grad():
        # As initialised, a small model says the same everywhere.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
