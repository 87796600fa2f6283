"""
Export for use without this package: `torch.export` programs (`.pt2`, which torch alone runs) and ONNX files.

A copy of the model is exported, in evaluation mode, on the CPU and in float32; half-precision weights are widened,
which is exact. The batch is dynamic, the image size fixed: the position table is resampled once, at export. Inputs are
normalised images.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..modeling_c2fmae import (
    C2FMAEForImageClassification,
    C2FMAEForPreTraining,
    C2FMAEForSemanticSegmentation,
    C2FMAEModel,
    C2FMAEPreTrainedModel,
)
from ..utils.files import replace_file
from ..utils.packages import require


TOLERANCE = 1e-4
METADATA_FILE = "metadata.json"  # within a .pt2 file
OPSET = 20  # ONNX's first with GELU
_LARGEST_FILE = 1_900_000_000  # bytes of weights; protobuf's limit is 2 GiB for the whole file

_OUTPUTS: dict[type[C2FMAEPreTrainedModel], tuple[str, ...]] = {
    C2FMAEModel: ("last_hidden_state", "pooler_output"),
    C2FMAEForImageClassification: ("logits",),
    C2FMAEForSemanticSegmentation: ("logits",),
}
_Runner = Callable[[torch.Tensor], dict[str, torch.Tensor]]


class _PlainOutputs(nn.Module):
    """A copy of a model that takes only images and returns a plain dict, so that files need no transformers class."""

    def __init__(self, model: C2FMAEPreTrainedModel) -> None:
        super().__init__()
        self.names = _output_names(model)
        self.model = copy.deepcopy(model).cpu().float().requires_grad_(False)
        if model.config._attn_implementation != "eager":
            self.model.set_attn_implementation("sdpa")
        self.eval()

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.model(pixel_values, interpolate_pos_encoding=True, return_dict=True)
        return {name: outputs[name] for name in self.names}


def export_program(
    model: C2FMAEPreTrainedModel, image_size: tuple[int, int] | None = None
) -> torch.export.ExportedProgram:
    """
    Trace a copy of a model to a program.

    Args:
        model: [`C2FMAEModel`], [`C2FMAEForImageClassification`] or [`C2FMAEForSemanticSegmentation`]. Eager attention
            is exported as such, every other implementation as sdpa.
        image_size (*optional*): `(height, width)`, multiples of the patch size; by default the configuration's.

    Returns:
        `torch.export.ExportedProgram` with the weights, from `pixel_values` `(batch, num_channels, height, width)`,
        float32, batch >= 1, given by position, to a dict of float32 tensors: `last_hidden_state` `(batch, 1 + patches,
        hidden_size)` and `pooler_output` `(batch, hidden_size)`; or `logits`, `(batch, num_labels)` of a classifier,
        `(batch, num_labels, 4 * height / patch_size, 4 * width / patch_size)` of a segmenter.

    Raises:
        `ValueError`: for another class of model, or an image size that does not fit.
    """
    wrapper = _PlainOutputs(model)
    config = wrapper.model.config
    if image_size is not None:
        wrapper.model.resize_positions(list(image_size))
    # A traced size of 1 would be taken for a constant.
    example = torch.zeros(2, config.num_channels, *config.image_height_width)
    shapes = {"pixel_values": {0: torch.export.Dim("batch", min=1)}}
    with torch.no_grad():
        program = torch.export.export(wrapper, (example,), dynamic_shapes=shapes, strict=False)
    for node in program.graph.nodes:  # paths of this machine
        node.meta.pop("stack_trace", None)
    return program


def export_pt2(
    model: C2FMAEPreTrainedModel,
    path: str | os.PathLike,
    image_size: tuple[int, int] | None = None,
    processor: Any = None,
    pixel_values: torch.Tensor | None = None,
) -> float:
    """
    Save [`export_program`]'s result, for `torch.export.load(path).module()`. Arguments, result and errors are those of
    [`export_onnx`]; the metadata are the extra file `metadata.json`.
    """
    program = export_program(model, image_size)
    with replace_file(path) as temporary:
        # An open file, because torch requires names to end in .pt2.
        with open(temporary, "wb") as file:
            extra_files = {METADATA_FILE: json.dumps(_metadata(model, program, processor))}
            torch.export.save(program, file, extra_files=extra_files)
        return compare(model, temporary, pixel_values)


def export_onnx(
    model: C2FMAEPreTrainedModel,
    path: str | os.PathLike,
    image_size: tuple[int, int] | None = None,
    processor: Any = None,
    pixel_values: torch.Tensor | None = None,
) -> float:
    """
    Write an ONNX file with the input, the outputs and the dynamic `batch` of [`export_program`]. It replaces `path`
    once its outputs agree with the model's; if anything fails, `path` stays as it was.

    Weights of more than 1.9 GB are written beside it, to `<name>.data`. An earlier `path` is then removed first.

    Args:
        model, image_size: As for [`export_program`].
        path: File to write; its folder must exist.
        processor (*optional*): Image processor whose mean and standard deviation go into the metadata, beside the
            model's type and class, the image size and, unless it is an encoder, `id2label`. Strings are stored as they
            are, all else as JSON.
        pixel_values (*optional*): As for [`compare`].

    Returns:
        The largest difference from the model, as [`compare`] returns it.

    Raises:
        `ImportError`: if `onnx`, `onnxscript` or `onnxruntime` is not installed.
        `ValueError`: as [`export_program`] and [`compare`] do.
    """
    # torch translates with onnxscript; onnxruntime verifies the result.
    onnx, onnx_ir, *_ = [_import(name) for name in ("onnx", "onnx_ir", "onnxscript", "onnxruntime")]
    path = Path(path)
    program = export_program(model, image_size)
    exported: Any = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["pixel_values"],
        output_names=list(_output_names(model)),
        dynamic_shapes={"pixel_values": {0: "batch"}},
        opset_version=OPSET,
        verbose=False,
    )
    for name, value in _metadata(model, program, processor).items():
        exported.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    size = sum(value.const_value.nbytes for value in exported.model.graph.initializers.values())
    data = f"{path.name}.data" if size > _LARGEST_FILE else None
    if data is not None:  # the earlier file would read the new weights
        path.unlink(missing_ok=True)
    with replace_file(path) as temporary:
        onnx_ir.save(exported.model, temporary, external_data=data)
        onnx.checker.check_model(temporary, full_check=True)
        return compare(model, temporary, pixel_values)


def compare(
    model: C2FMAEPreTrainedModel,
    exported: torch.export.ExportedProgram | str | os.PathLike,
    pixel_values: torch.Tensor | None = None,
    batch_sizes: Sequence[int] = (1, 2, 5),
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> float:
    """
    Compare an export's outputs with its model's, in float32 on the CPU, on random images and, if given, real ones.

    Args:
        model: The model that was exported.
        exported: A program, or a `.pt2` or ONNX file.
        pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`, *optional*): Real images.
        batch_sizes: Sizes of the batches of random images.
        seed (`int`): Seed of the random images.
        tolerance (`float`): Largest accepted difference.

    Returns:
        The largest absolute difference of any output.

    Raises:
        `ImportError`: for an ONNX file, without onnxruntime.
        `ValueError`: if a difference is above `tolerance`, or the outputs have other names or shapes.
    """
    run, shape = _load(exported)
    reference = _PlainOutputs(model)
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(size, *shape, generator=generator) for size in batch_sizes]
    if pixel_values is not None:
        if tuple(pixel_values.shape[1:]) != shape:
            raise ValueError(f"pixel_values: expected images of shape {shape}, got {tuple(pixel_values.shape[1:])}")
        batches.append(pixel_values.detach().cpu().float())
    largest = 0.0
    for images in batches:
        with torch.no_grad():
            expected, got = reference(images), run(images)
        shapes = [{name: tuple(value.shape) for name, value in outputs.items()} for outputs in (expected, got)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"exported: expected outputs of shapes {shapes[0]}, got {shapes[1]}")
        for name, value in expected.items():
            difference = (value - got[name]).abs().max().item()
            if not difference <= tolerance:  # also for NaN
                raise ValueError(
                    f"{name}: expected the model's values to {tolerance:g}, got a difference of {difference:g} for a "
                    f"batch of {len(images)}"
                )
            largest = max(largest, difference)
    return largest


def _load(exported: torch.export.ExportedProgram | str | os.PathLike) -> tuple[_Runner, tuple[int, ...]]:
    """Return an export as a function, and the shape of an image."""
    if not isinstance(exported, torch.export.ExportedProgram) and zipfile.is_zipfile(exported):
        with open(exported, "rb") as file:
            exported = torch.export.load(file)
    if isinstance(exported, torch.export.ExportedProgram):
        assert exported.example_inputs is not None
        return exported.module(), tuple(exported.example_inputs[0][0].shape[1:])  # type: ignore[return-value]
    session = _import("onnxruntime").InferenceSession(os.fspath(exported), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        arrays = session.run(names, {"pixel_values": pixel_values.numpy()})
        return dict(zip(names, map(torch.from_numpy, arrays)))

    return run, tuple(session.get_inputs()[0].shape[1:])


def _output_names(model: C2FMAEPreTrainedModel) -> tuple[str, ...]:
    for model_class, names in _OUTPUTS.items():
        if isinstance(model, model_class):
            return names
    hint = ""
    if isinstance(model, C2FMAEForPreTraining):
        hint = "; masking is random, and would be frozen: export its encoder, `model.image_encoder()`"
    raise ValueError(
        f"model: expected one of {[kind.__name__ for kind in _OUTPUTS]}, got {type(model).__name__}{hint}"
    )


def _metadata(model: C2FMAEPreTrainedModel, program: torch.export.ExportedProgram, processor: Any) -> dict[str, Any]:
    assert program.example_inputs is not None
    metadata: dict[str, Any] = {
        "model_type": model.config.model_type,
        "architecture": type(model).__name__,
        "image_size": list(program.example_inputs[0][0].shape[2:]),
    }
    if not isinstance(model, C2FMAEModel):
        metadata["id2label"] = model.config.id2label
    if processor is not None and processor.do_normalize:
        metadata["pixel_mean"], metadata["pixel_std"] = list(processor.image_mean), list(processor.image_std)
    return metadata


def _import(name: str) -> Any:
    require(name, "ONNX export")
    return importlib.import_module(name)


__all__ = ["TOLERANCE", "compare", "export_onnx", "export_program", "export_pt2"]
