"""A Hugging Face Space: the page of `c2fmae app`, with the weights in `weights` beside this file."""

import os
from pathlib import Path

from c2fmae_hf.app.page import serve


HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    serve(os.environ.get("C2FMAE_CHECKPOINT", HERE / "weights"))
