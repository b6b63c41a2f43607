"""What several commands take: their options, and the checks of what was given."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import data
from ..samplers import SAMPLERS
from ..spacings import SPACINGS
from . import sample as drawing

Model_ = Annotated[
    str,
    typer.Option(
        "--model",
        help="digits, latent-digits, gaussian, package.module:function of your own, or a diffusers pipeline: "
        "the folder it was saved to, or its id on the Hub.",
    ),
]
Sampler_ = Annotated[
    str, typer.Option("--sampler", help=f"One of {', '.join(SAMPLERS)}; with options as in 'ddim(eta=0.5)'.")
]
Calls_ = Annotated[int, typer.Option("--calls", help="Network calls of a run.")]
Spacing_ = Annotated[
    str | None,
    typer.Option(
        "--spacing",
        help=f"Where the steps are: {', '.join(SPACINGS)}; with options as in 'karras(rho=5)'.  "
        "[default: quadratic, or what is best on the model's schedule]",
    ),
]
Label_ = Annotated[
    str | None, typer.Option("--label", help="What to draw: 3, or 0,1,2 in turn.  [default: anything]", metavar="LABEL")
]
Guidance_ = Annotated[float, typer.Option("--guidance-scale", help="Classifier-free guidance; needs --label.")]
Prompt_ = Annotated[str | None, typer.Option("--prompt", help="Of a pipeline that takes prompts.", show_default=False)]
Prompts_ = Annotated[
    Path | None, typer.Option("--prompts", help="A file with a prompt a line, dealt out in turn.", show_default=False)
]
Seed_ = Annotated[int, typer.Option("--seed", help="Of everything that is drawn.")]


def is_pipeline(name: str, prompt: str | None, prompts: Path | None) -> bool:
    """Whether the model is a diffusers pipeline: a folder, or an id on the Hub."""
    is_one = Path(name).is_dir() or ("/" in name and ":" not in name)
    if not is_one and (prompt is not None or prompts is not None):
        raise ValueError(f"--prompt and --prompts are for pipelines, got --model {name}: use --label")
    if prompt is not None and prompts is not None:
        raise ValueError("give either --prompt or --prompts")
    return is_one


def guidance(scale: float) -> dict[str, Any]:
    """For a pipeline, which has a guidance scale of its own where none is given."""
    return {} if scale == 1 else {"guidance_scale": scale}


def check_suffix(path: Path, suffixes: tuple[str, ...], option: str = "--out") -> None:
    """Raise a ValueError before any work is done if the file could not be written, or is of another kind."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{option} must end in {' or '.join(suffixes)}, got {str(path)!r}")
    data.check_writable(path)


def check_seed(seed: int) -> None:
    if not 0 <= seed < drawing.STEP_NOISE:
        raise ValueError(f"--seed must be a whole number from 0 to {drawing.STEP_NOISE - 1}, got {seed}")
