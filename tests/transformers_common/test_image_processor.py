"""transformers' `ImageProcessingTestMixin` on our image processor."""

from __future__ import annotations

import unittest

import pytest
import torch
import upstream
from transformers.modeling_outputs import SemanticSegmenterOutput

from c2fmae_hf import C2FMAEImageProcessor


pytestmark = pytest.mark.slow

common = upstream.load("test_image_processing_common")


class Tester:
    """What the mixin asks for: sizes, arguments, and images of several kinds."""

    __test__ = False  # pytest would take it for one of its own
    batch_size = 3
    num_channels = 3
    min_resolution = 30
    max_resolution = 60

    def __init__(self, parent) -> None:
        self.parent = parent

    @property
    def image_processing_classes(self):
        return {"torchvision": C2FMAEImageProcessor}

    def prepare_image_processor_dict(self):
        return {
            "do_resize": True,
            "size": {"shortest_edge": 36},
            "do_center_crop": True,
            "crop_size": {"height": 32, "width": 32},
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        }

    def expected_output_image_shape(self, images):
        return self.num_channels, 32, 32

    def prepare_image_inputs(self, equal_resolution=False, numpify=False, torchify=False):
        return common.prepare_image_inputs(
            batch_size=self.batch_size,
            num_channels=self.num_channels,
            min_resolution=self.min_resolution,
            max_resolution=self.max_resolution,
            equal_resolution=equal_resolution,
            numpify=numpify,
            torchify=torchify,
        )

    def prepare_post_process_semantic_segmentation_inputs(self):
        outputs = SemanticSegmenterOutput(logits=torch.randn(self.batch_size, 5, 8, 12))
        return {"outputs": outputs}, {"num_labels": 5, "height": 8, "width": 12}


class C2FMAEImageProcessorTest(
    common.PostProcessSemanticSegmentationTestMixin, common.ImageProcessingTestMixin, unittest.TestCase
):
    image_processor_tester_class = Tester
