"""The command `time-tuner`."""


def main() -> None:
    """The entry point of the command."""
    from .app import main as run

    run()
