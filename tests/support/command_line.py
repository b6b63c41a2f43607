"""The command, run in this process."""

from typing import Any

from typer.testing import CliRunner, Result

from time_tuner.cli.app import app


def call(*args: Any) -> Result:
    """What the command makes of these arguments."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


def done(*args: Any) -> Result:
    """The same, where it must end without an error."""
    result = call(*args)
    assert result.exit_code == 0, result.output
    return result
