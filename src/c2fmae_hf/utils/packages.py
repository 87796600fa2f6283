"""Check for optional packages before the work that needs them."""

from __future__ import annotations

from importlib.util import find_spec


def require(package: str, purpose: str, otherwise: str = "", extra: str = "all") -> None:
    """
    Check that a package is installed.

    Args:
        package (`str`): Its import name.
        purpose (`str`): What needs it.
        otherwise (`str`): How to do without it; the message ends with this.
        extra (`str`): The extra of this package that installs it.

    Raises:
        `ImportError`: if it is not installed, with the command that installs it.
    """
    if find_spec(package) is None:
        raise ImportError(f'{purpose} needs {package}: pip install "c2fmae-hf[{extra}]"{otherwise}')
