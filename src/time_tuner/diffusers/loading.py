"""Saved pipelines as models, and what is found in them."""

import importlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch

from .._checks import check_device, choose, require
from .._files import one_line, read_json
from ..digits.pipeline import ClassConditionalPipeline
from ..models.conditions import Conditions
from .config import config_of, prediction_of, schedule_of
from .model import BATCH, PipelineModel, network_of

INDEX = "model_index.json"
MOST_BYTES = 2**20  # of it
DTYPES = ("float32", "float16", "bfloat16")


def check_folder(name: str) -> None:
    """Raise a ValueError if this is a folder to which no pipeline was saved."""
    folder = Path(name)
    if folder.is_dir() and not (folder / INDEX).is_file():
        raise ValueError(f"model {name!r} is a folder without {INDEX}: give one that a pipeline was saved to")


def load_pipeline(name: str, conditions: Conditions) -> PipelineModel:
    """A saved pipeline as a model: on CUDA where there is one, in float32, under the given conditions.

    Args:
        name: the folder that it was saved to, or its id on the Hub.
        conditions: see `Conditions`; a label is one of its classes.

    Raises:
        ValueError: it cannot be loaded or driven, or does not have one of the conditions.
    """
    inputs = {key: getattr(conditions, key) for key in ("guidance_scale", "negative_prompt", "height", "width")}
    labels = conditions.label
    return PipelineModel(
        read_pipeline(name, conditions.dtype, conditions.device, bool(conditions.offload)),
        conditions.prompts,
        [labels] if isinstance(labels, int) else labels,
        BATCH if conditions.batch is None else conditions.batch,
        **{key: value for key, value in inputs.items() if value is not None},
    )


def read_pipeline(name: str, dtype: str | None = None, device: str | None = None, offload: bool = False) -> Any:
    """A pipeline from a folder, or from the Hub by its id; arguments as for `load_pipeline`.

    Raises:
        ValueError: it cannot be loaded.
    """
    check_folder(name)
    weights = getattr(torch, choose("dtype", dtype or DTYPES[0], DTYPES))
    where = check_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if offload and where.type == "cpu":
        raise ValueError("offload is for a pipeline on an accelerator, as in device='cuda', got device cpu")
    local = Path(name).is_dir()
    with _quiet(bars=not local):  # a download shows how far it is
        try:
            index = _index(name, local)
            ours = index.get("_class_name") == ClassConditionalPipeline.__name__
            kind = ClassConditionalPipeline if ours else diffusers.DiffusionPipeline
            absent = {part: None for part, kind_of in index.items() if kind_of == [None, None]}
            # Newer versions call it dtype, and take both.
            how = {"local_files_only": local, "low_cpu_mem_usage": False, "torch_dtype": weights}
            how["use_safetensors"] = True  # other weights are pickles, which may run code
            pipe = kind.from_pretrained(name, **how, **absent)
            if offload:
                pipe.enable_model_cpu_offload(device=where)
        except (OSError, ValueError, AttributeError, RuntimeError, ImportError) as error:
            what = "cannot be loaded as a pipeline" if local else "is no folder, and cannot be loaded from the Hub"
            raise ValueError(f"model {name!r} {what}: {one_line(error)}") from error
        pipe.set_progress_bar_config(disable=True)
        return pipe if offload else pipe.to(where)


def pipeline_facts(name: str) -> dict[str, str]:
    """What is found in a saved pipeline, as texts by name; the name as for `load_pipeline`.

    Raises:
        ValueError: it cannot be loaded.
    """
    pipe = read_pipeline(name)
    config, network = config_of(pipe), network_of(pipe)
    prediction = prediction_of(pipe)
    clip = f", predicted data kept in [-{prediction.clip:g}, {prediction.clip:g}]" if prediction.clip else ""
    dynamic = "rectified flow, with a shift that depends on the size of the picture"
    weights = sum(weight.numel() for weight in network.parameters())
    facts = {
        "pipeline": type(pipe).__name__,
        "scheduler": type(pipe.scheduler).__name__,
        "prediction type": f"{prediction.kind}{clip}",
        "schedule": dynamic if config.get("use_dynamic_shifting") else repr(schedule_of(pipe)),
        "network": f"{type(network).__name__}, {weights:,} weights, {str(network.dtype).removeprefix('torch.')}",
    }
    plans = ", ".join(str(plan["calls"]) for plan in config.get("plans") or ())
    return facts | ({"plans for calls": plans} if plans else {})


def _index(name: str, local: bool) -> Mapping[str, Any]:
    """The class of a pipeline and the library and class of each of its parts.

    Raises:
        ValueError: one of the libraries is missing.
    """
    if local:
        index = read_json(Path(name) / INDEX, MOST_BYTES)
    else:
        index = diffusers.DiffusionPipeline.load_config(name)
    if not isinstance(index, Mapping):
        raise ValueError(f"{INDEX} must be a JSON object, got {type(index).__name__}")
    for part in index.values():
        if isinstance(part, list) and part and part[0] in ("transformers", "onnxruntime"):
            require(part[0], "diffusers")
    return dict(index)


@contextmanager
def _quiet(bars: bool = False) -> Iterator[None]:
    """Libraries print no advice in the block, and no progress bars unless these are wanted."""
    names = ("diffusers", "transformers", "huggingface_hub")
    libraries = [importlib.import_module(f"{name}.utils.logging") for name in names if find_spec(name) is not None]
    verbosities = [library.get_verbosity() for library in libraries]
    enabled = [getattr(one, "is_progress_bar_enabled", lambda: True)() for one in libraries]
    with_bars = [one for one, on in zip(libraries, enabled, strict=True) if on and hasattr(one, "disable_progress_bar")]
    for library in libraries:
        library.set_verbosity_error()
    for library in [] if bars else with_bars:
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for library, verbosity in zip(libraries, verbosities, strict=True):
            library.set_verbosity(verbosity)
        for library in with_bars:
            library.enable_progress_bar()
