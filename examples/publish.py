"""
Publish a model: look at the repository first, then push it in one commit.

    python examples/publish.py runs/demo/c2fmae-vit-tiny me/c2fmae-vit-tiny runs/preview

Takes a few seconds. `c2fmae push` does the same and adds the records of training.
"""

import sys
from pathlib import Path

from transformers import AutoImageProcessor, AutoModel

import c2fmae_hf  # noqa: F401  registers C2FMAE with transformers
from c2fmae_hf.publishing.hub import write_repository


folder, repo_id, preview = sys.argv[1:4]
model = AutoModel.from_pretrained(folder)
processor = AutoImageProcessor.from_pretrained(folder)
write_repository(model, Path(preview), repo_id, processor=processor)
print(*sorted(path.name for path in Path(preview).iterdir()))
# With a token that may write, from `hf auth login`:
# model.push_to_hub(repo_id, processor=processor)
