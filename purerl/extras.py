"""Packages that only some need."""


def how_to_install(extra: str) -> str:
    """The command that installs an extra of this package."""
    return f'pip install "purerl[{extra}]", or in a clone of it: pip install ".[{extra}]"'
