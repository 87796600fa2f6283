"""`python -m c2fmae_hf` is the `c2fmae` command."""

import sys

from .commands.main import main


if __name__ == "__main__":
    sys.exit(main())
