"""
The encoder as the backbone of transformers' UperNet: a training step of semantic segmentation.

    python examples/upernet.py model_cards/c2fmae-vit-tiny-stl10

Takes a few seconds. `c2fmae segment` does the whole job.
"""

import sys

import torch
from transformers import AutoConfig, UperNetConfig, UperNetForSemanticSegmentation

from c2fmae_hf import C2FMAEBackbone


encoder = sys.argv[1]
depth = AutoConfig.from_pretrained(encoder).num_hidden_layers
stages = [f"stage{(i + 1) * depth // 4}" for i in range(4)]
# UperNet expects the feature pyramid of a hierarchical network, made here from four blocks.
# AutoBackbone.from_pretrained returns the same, but only for names on the Hub.
backbone = C2FMAEBackbone.from_pretrained(encoder, out_features=stages, add_fpn=True)
config = UperNetConfig(backbone_config=backbone.config, num_labels=5, hidden_size=64, use_auxiliary_head=False)
model = UperNetForSemanticSegmentation(config)
model.backbone = backbone  # with its weights

pixels = torch.randn(2, 3, 96, 96)
labels = torch.randint(0, 5, (2, 96, 96))
outputs = model(pixels, labels=labels)
outputs.loss.backward()
print("loss", round(outputs.loss.item(), 3), "scores", tuple(outputs.logits.shape))
