"""
The encoder in timm, without this package: features, and feature maps of several blocks for a detector or segmenter.

    python examples/timm_features.py model_cards/c2fmae-vit-tiny-stl10 photo.jpg

Takes a few seconds. Local folders need timm 1.0.26 or newer.
"""

import sys

import timm
import torch
from PIL import Image, ImageOps


folder, photo = sys.argv[1:3]
model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
pixels = transform(image)[None]
with torch.no_grad():
    print("tokens", tuple(model.forward_features(pixels).shape))  # class token, then patches
    print("pooled", tuple(model(pixels).shape))

backbone = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True, out_indices=(3, 7, 11)).eval()
with torch.no_grad():
    for stage in backbone(pixels):
        print("map", tuple(stage.shape))
