"""The command `time-tuner`."""

import sys

from .._checks import require


def main() -> None:
    """The entry point of the command."""
    try:
        for package in ("typer", "rich"):
            require(package, "cli")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    from .app import main as run

    run()
