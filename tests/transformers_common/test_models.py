"""
transformers' `ModelTesterMixin`, `BackboneTesterMixin` and `ConfigTester` on our classes, and, for scale, on ViT.

    python -m pytest tests/transformers_common -q
"""

from __future__ import annotations

import unittest
from unittest import mock

import pytest
import torch
import upstream
from transformers import ViTConfig, ViTForImageClassification, ViTForMaskedImageModeling, ViTModel

from c2fmae_hf import (
    C2FMAEBackbone,
    C2FMAEConfig,
    C2FMAEForImageClassification,
    C2FMAEForPreTraining,
    C2FMAEForSemanticSegmentation,
    C2FMAEModel,
    EncoderBackbone,
    EncoderBackboneConfig,
)


pytestmark = pytest.mark.slow

common = upstream.load("test_modeling_common")
backbone_common = upstream.load("test_backbone_common")
configuration_common = upstream.load("test_configuration_common")

BATCH_SIZE = 3
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 3,
    "attn_implementation": "eager",
}


class Tester:
    """What the mixins ask for: sizes, and small inputs for every class."""

    __test__ = False  # pytest would take it for one of its own
    batch_size = BATCH_SIZE
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    image_size = 32
    patch_size = 8
    num_channels = 3
    is_training = True
    seq_length = 17
    num_masks = 12
    mask_length = 16

    def __init__(self, parent) -> None:
        self.parent = parent

    def get_config(self):
        if isinstance(self.parent, C2FMAETest | C2FMAEBackboneTest):
            decoder = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4}
            return C2FMAEConfig(
                **SIZES,
                **decoder,
                decoder_intermediate_size=37,
                label_stride=4,
                num_semantic_classes=5,
                segmentation_head_channels=16,
                out_features=["stage1", "stage2"],
            )
        vit = ViTConfig(**SIZES, encoder_stride=8)
        if isinstance(self.parent, EncoderBackboneTest):
            sizes = {name: SIZES[name] for name in ("hidden_size", "num_hidden_layers", "patch_size")}
            return EncoderBackboneConfig(encoder_config=vit, **sizes, add_fpn=False, out_features=["stage1", "stage2"])
        return vit

    def prepare_config_and_inputs(self):
        pixel_values = torch.randn(BATCH_SIZE, 3, 32, 32)
        return self.get_config(), pixel_values, torch.randint(0, 3, (BATCH_SIZE,))

    def prepare_config_and_inputs_for_common(self):
        config, pixel_values, _ = self.prepare_config_and_inputs()
        return config, {"pixel_values": pixel_values}


class VisionMixin:
    """What every vision transformer overrides: pixels have no token embeddings and no input ids."""

    test_resize_embeddings = False
    test_torchscript = False
    tables: dict = {}  # by which the mixin knows what a class of transformers' own is for

    def setUp(self):
        self.model_tester = Tester(self)
        self.config_tester = configuration_common.ConfigTester(
            self, config_class=self.config_class, has_text_modality=False, hidden_size=48
        )
        for table, model_class in self.tables.items():
            names = mock.patch.dict(getattr(common, table), {self.config_class.model_type: model_class.__name__})
            names.start()
            self.addCleanup(names.stop)

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("images have no token embeddings to pass")
    def test_inputs_embeds(self):
        pass

    @unittest.skip("images have no token embeddings to pass")
    def test_inputs_embeds_matches_input_ids(self):
        pass

    def test_model_get_set_embeddings(self):
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config)
            assert isinstance(model.get_input_embeddings(), torch.nn.Module)
            assert model.get_output_embeddings() is None


class C2FMAETest(VisionMixin, common.ModelTesterMixin, unittest.TestCase):
    config_class = C2FMAEConfig
    all_model_classes = (
        C2FMAEModel,
        C2FMAEForPreTraining,
        C2FMAEForImageClassification,
        C2FMAEForSemanticSegmentation,
        C2FMAEBackbone,
    )
    tables = {
        "MODEL_MAPPING_NAMES": C2FMAEModel,
        "MODEL_FOR_PRETRAINING_MAPPING_NAMES": C2FMAEForPreTraining,
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": C2FMAEForImageClassification,
        "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES": C2FMAEForSemanticSegmentation,
        "MODEL_FOR_BACKBONE_MAPPING_NAMES": C2FMAEBackbone,
    }

    test_can_init_all_missing_weights_before_2023 = True  # by which the mixin knows that a model is not too old for it

    def test_can_init_all_missing_weights(self):
        for model_class in self.all_model_classes:  # the error for missing weights, put aside
            may_be_new = mock.patch.object(model_class, "_may_be_new", ("",))
            may_be_new.start()
            self.addCleanup(may_be_new.stop)
        super().test_can_init_all_missing_weights()

    # The pre-training class refuses an encoder without a decoder, which tests/test_modeling_c2fmae.py asserts.

    def test_correct_missing_keys(self):
        self.all_model_classes = tuple(kind for kind in self.all_model_classes if kind is not C2FMAEForPreTraining)
        super().test_correct_missing_keys()

    def test_base_model_prefix_loads_base_weights(self):
        self.all_model_classes = tuple(kind for kind in self.all_model_classes if kind is not C2FMAEForPreTraining)
        super().test_base_model_prefix_loads_base_weights()

    @unittest.skip("missing weights are an error here, which tests/test_modeling_c2fmae.py asserts, not a warning")
    def test_model_weights_reload_no_missing_tied_weights(self):
        pass

    def test_can_load_ignoring_mismatched_shapes(self):
        """The mixin takes a field with `_std` in its name for a width of random values; ours is of pixels."""

        def config_zero_init(config):
            with mock.patch.object(type(config), "__setattr__", set_but_image_std):
                return original(config)

        def set_but_image_std(config, name, value):
            if name != "image_std":
                set_any(config, name, value)

        original, set_any = common._config_zero_init, C2FMAEConfig.__setattr__
        with mock.patch.object(common, "_config_zero_init", config_zero_init):
            super().test_can_load_ignoring_mismatched_shapes()

    # In pre-training the encoder sees the class token and four visible patches, elsewhere all seventeen tokens.

    def _test_by_length(self, test):
        classes = self.all_model_classes
        for length, of_this_length in ((5, classes[1:2]), (17, (classes[0], *classes[2:]))):
            self.all_model_classes, self.model_tester.seq_length = of_this_length, length
            test()

    def test_attention_outputs(self):
        self._test_by_length(super().test_attention_outputs)

    def test_hidden_states_output(self):
        self._test_by_length(super().test_hidden_states_output)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = dict(inputs_dict)
        if model_class is C2FMAEForPreTraining:
            batch_size = len(inputs["pixel_values"])
            inputs["bool_masked_pos"] = (torch.arange(16) < 12).expand(batch_size, -1)
            generator = torch.Generator().manual_seed(0)
            inputs["semantic_labels"] = torch.randint(0, 5, (batch_size, 8, 8), generator=generator)
            inputs["instance_labels"] = torch.rand(batch_size, 3, 8, 8, generator=generator).round()
        elif return_labels and model_class is C2FMAEForImageClassification:
            inputs["labels"] = torch.zeros(BATCH_SIZE, dtype=torch.long)
        elif return_labels and model_class is C2FMAEForSemanticSegmentation:
            inputs["labels"] = torch.zeros(BATCH_SIZE, 32, 32, dtype=torch.long)
        return inputs


class C2FMAEBackboneTest(backbone_common.BackboneTesterMixin, unittest.TestCase):
    config_class = C2FMAEConfig
    all_model_classes = (C2FMAEBackbone,)

    def setUp(self):
        self.model_tester = Tester(self)


class EncoderBackboneTest(backbone_common.BackboneTesterMixin, unittest.TestCase):
    """Another encoder, a ViT, as a backbone."""

    config_class = EncoderBackboneConfig
    all_model_classes = (EncoderBackbone,)

    def setUp(self):
        self.model_tester = Tester(self)


class ViTReference(VisionMixin, common.ModelTesterMixin, unittest.TestCase):
    """transformers' own ViT through the same harness."""

    config_class = ViTConfig
    all_model_classes = (ViTModel, ViTForImageClassification, ViTForMaskedImageModeling)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = dict(inputs_dict)
        if model_class is ViTForMaskedImageModeling:
            inputs["bool_masked_pos"] = torch.zeros(len(inputs["pixel_values"]), 16, dtype=torch.bool)
        elif return_labels and model_class is ViTForImageClassification:
            inputs["labels"] = torch.zeros(BATCH_SIZE, dtype=torch.long)
        return inputs
