"""Large results a piece at a time: the same values and gradients, and less kept for the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from c2fmae_hf import losses as chunks
from c2fmae_hf.losses import in_chunks


def run(function, values, others, max_elements):
    values = values.clone().requires_grad_()
    kept = 0

    def pack(tensor):
        nonlocal kept
        if tensor.untyped_storage().data_ptr() != values.untyped_storage().data_ptr():
            kept += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = in_chunks(function, values, *others, max_elements=max_elements)
    result.square().sum().backward()
    return result, values.grad, kept


@pytest.mark.parametrize("max_elements", [1, 60, 130, 10**6])
def test_same_values_and_gradients(max_elements):
    layer = nn.Linear(5, 3).double()
    values, others = torch.randn(7, 4, 5).double(), (torch.randn(7, 4, 1).double(),)

    def function(values, other):
        return layer(values.softmax(dim=-1)) * other

    plain, gradient, kept = run(function, values, others, None)
    weight_gradient = layer.weight.grad.clone()
    layer.zero_grad()
    result, chunked_gradient, chunked_kept = run(function, values, others, max_elements)
    torch.testing.assert_close(result, plain)
    torch.testing.assert_close(chunked_gradient, gradient)
    torch.testing.assert_close(layer.weight.grad, weight_gradient)
    assert chunked_kept < kept if max_elements < values.numel() else chunked_kept == kept


def test_without_gradients_the_pieces_are_simply_joined():
    values = torch.randn(5, 4)
    with torch.no_grad():
        assert torch.equal(in_chunks(torch.exp, values, max_elements=8), values.exp())


@pytest.mark.parametrize("fields", [{}, {"decoder_prediction_ratio": 0.5, "supervise_visible_labels": True}])
def test_a_model_in_chunks_is_the_same_model(model, batch, monkeypatch, fields):
    for name, value in fields.items():
        setattr(model.config, name, value)
    results = []
    for limit in (2**24, 100):
        monkeypatch.setattr(chunks, "MAX_ELEMENTS", limit)
        model.zero_grad()
        torch.manual_seed(0)
        loss = model.train()(**batch).loss
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(results[0], results[1])
