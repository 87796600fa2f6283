"""
What transformers' `PipelineTesterMixin` runs for each task.

transformers keeps these in `tests/pipelines`, which its source distribution leaves out. Those here have the same
interface (`get_test_pipeline`, `run_pipeline_test`) and are ours: they hold a pipeline's answer against what the model
itself says of the same image, instead of against its form alone. transformers' own pass on `dtype`, which
pipelines ignore; here the model is loaded anew with it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ImageClassificationOutputElement, ImageSegmentationOutputElement
from huggingface_hub import ObjectDetectionOutputElement as ObjectDetectionElement
from PIL import Image
from transformers import (
    ImageClassificationPipeline,
    ImageFeatureExtractionPipeline,
    ImageSegmentationPipeline,
    ObjectDetectionPipeline,
)
from transformers.image_utils import load_image
from transformers.testing_utils import compare_pipeline_output_to_hub_spec


HEIGHT, WIDTH = 44, 60


def make_image(mode: str = "RGB") -> Image.Image:
    """A photograph's stand-in, in one of PIL's modes."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, channels), dtype=np.uint8)
    return Image.fromarray(values[..., 0] if channels == 1 else values)


class PipelineCase:
    """An image as a file and in memory, in every mode, alone and in batches."""

    pipeline_class: type
    options: dict = {}

    def get_test_pipeline(
        self, model, tokenizer=None, image_processor=None, feature_extractor=None, processor=None, dtype="float32"
    ):
        model = model.from_pretrained(model.name_or_path, dtype=getattr(torch, dtype)).eval()
        return self.pipeline_class(model=model, image_processor=image_processor), [make_image(), make_image("RGBA")]

    def run_pipeline_test(self, pipeline, examples):
        image = make_image()
        self.check(pipeline, image, pipeline(image, **self.options))
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "image.png")
            image.save(path)
            self.check(pipeline, image, pipeline(path, **self.options))
        images = [image, make_image("RGBA"), make_image("LA"), make_image("L"), image]
        for batch_size in (1, 2):
            answers = pipeline(images, batch_size=batch_size, **self.options)
            assert len(answers) == len(images)
            for given, answer in zip(images, answers):
                self.check(pipeline, given, answer)

    def predict(self, pipeline, image):
        """The model's output on the image, without the pipeline."""
        inputs = pipeline.image_processor(load_image(image), return_tensors="pt").to(pipeline.model.dtype)
        with torch.no_grad():
            return pipeline.model(**inputs)

    def tolerance(self, pipeline) -> float:
        return 1e-4 if pipeline.model.dtype == torch.float32 else 2e-2  # batches of another size round differently

    def check(self, pipeline, image, answer) -> None:
        raise NotImplementedError


class ImageFeatureExtractionPipelineTests(PipelineCase):
    pipeline_class = ImageFeatureExtractionPipeline

    def run_pipeline_test(self, pipeline, examples):
        super().run_pipeline_test(pipeline, examples)
        image = make_image()
        tensor = pipeline(image, return_tensors=True)
        assert isinstance(tensor, torch.Tensor)
        assert tensor.dtype == pipeline.model.dtype
        expected = self.predict(pipeline, image).pooler_output.float().numpy()
        np.testing.assert_allclose(pipeline(image, pool=True), expected, atol=self.tolerance(pipeline))
        plain = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
        assert not np.allclose(pipeline(image, image_processor_kwargs=plain), pipeline(image), atol=1e-2)

    def check(self, pipeline, image, answer):
        expected = self.predict(pipeline, image).last_hidden_state.float().numpy()
        np.testing.assert_allclose(np.array(answer), expected, atol=self.tolerance(pipeline))


class ImageClassificationPipelineTests(PipelineCase):
    pipeline_class = ImageClassificationPipeline
    options = {"top_k": 2}

    def check(self, pipeline, image, answer):
        scores = self.predict(pipeline, image).logits[0].float().softmax(-1).sort(descending=True)
        assert [entry["score"] for entry in answer] == pytest.approx(
            scores.values[:2].tolist(), abs=self.tolerance(pipeline)
        )
        assert {entry["label"] for entry in answer} <= set(pipeline.model.config.id2label.values())
        for entry in answer:
            compare_pipeline_output_to_hub_spec(entry, ImageClassificationOutputElement)


class ImageSegmentationPipelineTests(PipelineCase):
    pipeline_class = ImageSegmentationPipeline
    options = {"threshold": 0.0, "mask_threshold": 0.0, "overlap_mask_area_threshold": 0.0}

    def run_pipeline_test(self, pipeline, examples):
        super().run_pipeline_test(pipeline, examples)
        image = make_image()
        semantic, by_default = pipeline(image, subtask="semantic"), pipeline(image)
        assert [part["label"] for part in semantic] == [part["label"] for part in by_default]
        assert all(part["score"] is None for part in semantic)
        with pytest.raises(ValueError, match="Subtask panoptic is not supported"):
            pipeline(image, subtask="panoptic")

    def check(self, pipeline, image, answer):
        outputs = self.predict(pipeline, image)
        classes = pipeline.image_processor.post_process_semantic_segmentation(outputs, target_sizes=[(HEIGHT, WIDTH)])
        classes = classes[0].numpy()
        names = pipeline.model.config.id2label
        found = np.full((HEIGHT, WIDTH), -1)
        for part in answer:
            compare_pipeline_output_to_hub_spec(part, ImageSegmentationOutputElement)
            mask = np.asarray(part["mask"]) == 255
            assert (found[mask] == -1).all()  # masks do not overlap
            found[mask] = next(index for index, name in names.items() if name == part["label"])
            assert part["score"] is None or 0 <= part["score"] <= 1
        assert (found >= 0).all()
        # Where two classes are equally likely, rounding decides.
        assert (found == classes).mean() > (0.999 if pipeline.model.dtype == torch.float32 else 0.98)


class ObjectDetectionPipelineTests(PipelineCase):
    pipeline_class = ObjectDetectionPipeline
    options = {"threshold": 0.0}

    def check(self, pipeline, image, answer):
        (expected,) = self.predict(pipeline, image).detections
        assert len(answer) == len(expected["scores"]) > 0
        assert [entry["score"] for entry in answer] == pytest.approx(expected["scores"].tolist(), abs=1e-4)
        for entry in answer:
            compare_pipeline_output_to_hub_spec(entry, ObjectDetectionElement)
            box = entry["box"]
            assert 0 <= box["xmin"] <= box["xmax"] <= WIDTH
            assert 0 <= box["ymin"] <= box["ymax"] <= HEIGHT
