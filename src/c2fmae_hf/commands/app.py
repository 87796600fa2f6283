"""
Try a pre-trained model in the browser: hide parts of a photograph, and see what the model predicts and attends to.

    c2fmae app runs/mine/c2fmae-vit-tiny-pretraining
    c2fmae app runs/mine/c2fmae-vit-tiny-pretraining --port 7861

Nothing is downloaded: the model is a local folder, and the page loads nothing from other sites. Needs
`pip install "c2fmae-hf[app]"`.
"""

from __future__ import annotations

import os

from ..utils.packages import require
from .arguments import CommandParser


def main(args: list[str] | None = None) -> None:
    parser = CommandParser("app", __doc__)
    parser.add_argument(
        "model",
        nargs="?",
        default=os.environ.get("C2FMAE_CHECKPOINT"),
        help="folder of a pre-training model; by default the environment variable C2FMAE_CHECKPOINT",
    )
    parser.add_argument("--port", type=int, help="port of the page; by default the first free one from 7860")
    options = parser.parse_args(args)
    if options.model is None:
        parser.error("expected the folder of a pre-training model")
    for package in ("gradio", "matplotlib", "skimage"):
        require(package, "the page", extra="app")
    from ..app.page import serve

    serve(options.model, options.port)
