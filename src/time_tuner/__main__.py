"""`python -m time_tuner` is the command `time-tuner`."""

from .cli import main

main()
