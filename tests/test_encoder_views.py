import pytest
import torch

from c2fmae_hf import C2FMAEConfig, C2FMAEModel
from c2fmae_hf.pictures.encoder_views import attention_in_objects, attention_maps


@pytest.fixture
def encoder() -> C2FMAEModel:
    torch.manual_seed(0)
    config = C2FMAEConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    return C2FMAEModel(config)


def test_maps_are_those_of_the_encoder_which_is_left_as_it_was(encoder):
    before = encoder.config._attn_implementation
    encoder.train()
    maps = attention_maps(encoder, torch.randn(3, 3, 32, 40))
    assert maps.shape == (2, 3, 2, 21, 21)
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(2, 3, 2, 21))
    assert encoder.training
    assert encoder.config._attn_implementation == before != "eager"


def test_the_attention_is_set_back_after_an_error(encoder):
    before = encoder.config._attn_implementation

    with pytest.raises(ValueError, match="pixel_values"):
        attention_maps(encoder.train(), torch.randn(1, 2, 32, 32))
    assert encoder.training
    assert encoder.config._attn_implementation == before


def test_attention_in_objects():
    instances = torch.tensor([[1, 1, 0, 0, 2, -100], [3, 3, 3, 3, 3, 3], [0, 0, 0, 0, 0, 0]])
    even = torch.ones(3, 6, 6)
    shares, areas = attention_in_objects(even, instances, min_patches=2)
    torch.testing.assert_close(shares, areas)
    torch.testing.assert_close(areas, torch.tensor([2 / 6, 1.0]))
    inward = torch.eye(6).repeat(3, 1, 1)
    torch.testing.assert_close(attention_in_objects(inward, instances, min_patches=1)[0], torch.ones(3))
    assert len(attention_in_objects(even, instances, min_patches=7)[0]) == 0
