"""What the command line does with a pipeline: find it, show it, tune it, draw with it."""

import json
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from .. import data, plots
from ..diffusers.config import config_of, prediction_of, schedule_of
from ..diffusers.scheduler import TimeTunerScheduler
from ..diffusers.tune import tune_pipeline
from ..digits.pipeline import ClassConditionalPipeline
from ..plans.plan import Plan
from ..samplers import Sampler
from ..tuners import Tuner

INDEX = "model_index.json"


def load_pipeline(name: str) -> Any:
    """A pipeline from a folder, or from the Hub by its id.

    Raises:
        ValueError: it is none; says why.
    """
    folder = Path(name)
    if folder.is_dir() and not (folder / INDEX).is_file():
        raise ValueError(f"--model {name} is a folder without {INDEX}: give one that a pipeline was saved to")
    local = (folder / INDEX).is_file()
    ours = local and json.loads((folder / INDEX).read_text()).get("_class_name") == ClassConditionalPipeline.__name__
    kind = ClassConditionalPipeline if ours else diffusers.DiffusionPipeline
    diffusers.utils.logging.disable_progress_bar()
    try:
        pipe = kind.from_pretrained(name, local_files_only=local, low_cpu_mem_usage=False)
    except (OSError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"--model {name} cannot be loaded as a pipeline: {error}") from error
    if torch.cuda.is_available():
        pipe.to("cuda")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def conditions(prompts: Path | None, prompt: str | None, labels: Any) -> dict[str, Any]:
    """Prompts, one a line of a file or a single one, or labels, as `tune_pipeline` takes them."""
    given: dict[str, Any] = {}
    if prompts is not None:
        lines = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not lines:
            raise ValueError(f"--prompts {prompts} holds no prompt: write one a line")
        given["prompts"] = lines
    elif prompt is not None:
        given["prompts"] = [prompt]
    if labels is not None:
        given["class_labels"] = [labels] if isinstance(labels, int) else list(labels)
    return given


def tune(name: str, calls: int, tuner: Tuner, sampler: Sampler, spacing: str | None, **options: Any) -> Plan:
    """A tuned plan of a saved pipeline."""
    plan = tune_pipeline(load_pipeline(name), calls, tuner, sampler=sampler, spacing=spacing, progress=True, **options)
    return plan.with_provenance(model=name)


def draw(name: str, plan: Plan, count: int, seed: int, given: dict[str, Any], batch: int = 4, **inputs: Any) -> Any:
    """Pictures (count, H, W, C) in [0, 1] of a saved pipeline by a plan; each of a seed of its own."""
    pipe = load_pipeline(name)
    pipe.scheduler = TimeTunerScheduler.from_plan(plan, pipe.scheduler)
    takes = signature(type(pipe).__call__).parameters
    drawn = []
    for first in range(0, count, batch):
        rows = range(first, min(first + batch, count))
        arguments: dict[str, Any] = {
            {"prompts": "prompt"}.get(kind, kind): [values[i % len(values)] for i in rows]
            for kind, values in given.items()
        }
        if not given and "batch_size" in takes:
            arguments["batch_size"] = len(rows)
        if "generator" in takes:
            arguments["generator"] = [torch.Generator().manual_seed(seed + i) for i in rows]
        arguments |= inputs | {"num_inference_steps": len(plan), "output_type": "np"}
        drawn.append(np.asarray(pipe(**arguments).images))
    return np.concatenate(drawn)


def save(pictures: Any, out: Path) -> None:
    """Write pictures (n, H, W, C) in [0, 1] as a sheet, or as the array of samples in [-1, 1]."""
    images = 2 * torch.from_numpy(pictures).permute(0, 3, 1, 2) - 1
    if out.suffix.lower() == ".npz":
        data.save_samples(images, out)
    else:
        plots.save(plots.sample_sheet(images), out)


def facts(name: str) -> dict[str, str]:
    """What is found in a saved pipeline."""
    pipe = load_pipeline(name)
    config = config_of(pipe.scheduler)
    prediction = prediction_of(config)
    found = {"pipeline": type(pipe).__name__, "scheduler": type(pipe.scheduler).__name__}
    found["prediction type"] = prediction.kind + (f", data kept in +-{prediction.clip:g}" if prediction.clip else "")
    if config.get("use_dynamic_shifting"):
        found["schedule"] = "rectified flow, with a shift that depends on the size of images"
    else:
        found["schedule"] = repr(schedule_of(config))
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if network is not None:
        size = sum(weight.numel() for weight in network.parameters())
        found["network"] = f"{type(network).__name__}, {size:,} weights, {str(network.dtype).removeprefix('torch.')}"
    if config.get("plans"):
        found["plans for calls"] = ", ".join(str(plan["calls"]) for plan in config["plans"])
    return found
