"""
transformers' `PipelineTesterMixin` on the models that our classes give pipelines.

Where it would load tiny models of a hub, it finds ones made here; what it runs for each task is in `pipeline_cases`.
"""

from __future__ import annotations

import json
import tempfile
import unittest
from pathlib import Path

import pytest
import torch
import transformers
import upstream

import c2fmae_hf
from c2fmae_hf import (
    C2FMAEBackbone,
    C2FMAEConfig,
    C2FMAEForImageClassification,
    C2FMAEForSemanticSegmentation,
    C2FMAEImageProcessor,
    C2FMAEModel,
    MaskRCNNConfig,
    MaskRCNNForObjectDetection,
    MaskRCNNImageProcessor,
)


pytestmark = pytest.mark.slow

MODELS = {
    "image-feature-extraction": C2FMAEModel,
    "image-classification": C2FMAEForImageClassification,
    "image-segmentation": C2FMAEForSemanticSegmentation,
    "object-detection": MaskRCNNForObjectDetection,
}
FOLDER = tempfile.TemporaryDirectory()

with pytest.MonkeyPatch.context() as patch:
    summary = Path(FOLDER.name) / "reports" / "tiny_model_summary.json"
    summary.parent.mkdir()
    entries = {}
    for model_class in MODELS.values():
        processor = MaskRCNNImageProcessor if model_class is MaskRCNNForObjectDetection else C2FMAEImageProcessor
        entries[model_class.__name__] = {"tokenizer_classes": [], "processor_classes": [processor.__name__]}
    summary.write_text(json.dumps(entries))
    patch.setenv("TRANSFORMERS_TINY_MODEL_PATH", FOLDER.name)
    # Its other source is a checkout of transformers.
    patch.setattr(transformers.utils, "direct_transformers_import", lambda path: transformers)
    mixin = upstream.load("test_pipeline_mixin")
mixin.transformers_module = c2fmae_hf  # where it looks for the image processor
for task in MODELS:
    name = mixin.pipeline_test_mapping[task]["test"].rsplit(".", 1)[-1]
    mixin.pipeline_test_mapping[task]["test"] = f"pipeline_cases.{name}"


def small_config(**fields) -> C2FMAEConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    return C2FMAEConfig(**sizes, image_size=32, patch_size=8, num_labels=5, segmentation_head_channels=16, **fields)


def make_model(model_class) -> tuple:
    if model_class is not MaskRCNNForObjectDetection:
        config = small_config()
        return model_class(config), C2FMAEImageProcessor.from_config(config)
    backbone = C2FMAEBackbone(small_config(add_fpn=True, out_features=[f"stage{i}" for i in range(1, 5)]))
    config = MaskRCNNConfig(
        backbone_config=backbone.config,
        image_size=48,
        max_image_size=96,
        pyramid_channels=16,
        num_box_convolutions=1,
        num_mask_convolutions=1,
        num_rpn_convolutions=1,
        box_hidden_size=32,
        rpn_pre_nms_top_n=100,
        rpn_post_nms_top_n=50,
        detections_per_image=20,
        num_labels=3,
    )
    return MaskRCNNForObjectDetection(config), MaskRCNNImageProcessor()


class C2FMAEPipelineTest(mixin.PipelineTesterMixin, unittest.TestCase):
    pipeline_model_mapping = MODELS

    @classmethod
    def setUpClass(cls):
        torch.manual_seed(0)
        for model_class in MODELS.values():
            folder = Path(FOLDER.name) / model_class.config_class.model_type / model_class.__name__
            for part in make_model(model_class):
                part.save_pretrained(folder)
