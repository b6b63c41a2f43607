"""The group of commands, in which every error is one line on standard error and an exit code."""

import logging
import sys
import traceback
import warnings
from typing import Any

import typer

from . import output
from .help import CommandGroup


class Commands(CommandGroup):
    """The group of commands, in which every error is one line on standard error and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command, then exit with one of `help.EXIT_CODES`."""
        kwargs["standalone_mode"] = False
        log, handler = logging.getLogger("time_tuner"), output.LogHandler()
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_: output.note(f"warning: {message}")
                code = super().main(*args, **kwargs)
        except Exception as error:
            print(f"error: {' '.join(_message(error).split())}", file=sys.stderr)
            sys.exit(2)
        finally:
            log.removeHandler(handler)
        if code == 130:
            print("interrupted: the command has written nothing", file=sys.stderr)
        sys.exit(code if isinstance(code, int) else 0)


def _message(error: Exception) -> str:
    """What is wrong, without an error number; with the place of an error that nobody has foreseen."""
    if isinstance(error, typer.TyperException):
        return str(error.format_message())
    if isinstance(error, OSError) and error.strerror:
        file = error.filename2 or error.filename  # of a move, the one that was meant
        return f"{file}: {error.strerror}" if file else error.strerror
    if isinstance(error, ValueError | OSError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f"{type(error).__name__} at {own[-1].filename}:{own[-1].lineno}: {error}"
