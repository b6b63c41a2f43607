"""The node "Time Tuner plan", with the classic mappings."""

import os
from typing import Any

import comfy.samplers
import folder_paths
import torch

from .plan_file import choose, read_plans
from .runner import PlanSampler, patched

FOLDER = "time_tuner"
CATEGORY = "sampling/custom_sampling/samplers"
NAME = "Time Tuner plan"

folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))


def plan_files() -> list[str]:
    """The plan files in `models/time_tuner`."""
    return [name for name in folder_paths.get_filename_list(FOLDER) if name.endswith(".json")]


def run(model: Any, plan: str, calls: int) -> tuple[Any, Any, Any]:
    """MODEL, SAMPLER and SIGMAS of a plan file.

    Raises:
        ValueError: the file is no plan file, has no plan for so many calls, or one for another noise schedule.
    """
    path = folder_paths.get_full_path(FOLDER, plan)
    if path is None:
        raise ValueError(f"there is no plan file {plan!r} in models/{FOLDER}")
    plans = read_plans(path)
    chosen = choose(plans, calls)
    sampler = comfy.samplers.KSAMPLER(PlanSampler(chosen, plans))
    return patched(model, chosen), sampler, torch.tensor(chosen.sigmas, dtype=torch.float32)


class TimeTunerPlan:
    """The node for ComfyUI versions without the V3 schema."""

    RETURN_TYPES = ("MODEL", "SAMPLER", "SIGMAS")
    FUNCTION = "run"
    CATEGORY = CATEGORY
    DESCRIPTION = "Runs a plan of time_tuner. Connect all three outputs to a custom sampler and its guider."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        whole = {"default": 0, "min": 0, "max": 1000, "tooltip": "0: the only plan of the file"}
        return {"required": {"model": ("MODEL",), "plan": (plan_files(),), "calls": ("INT", whole)}}

    def run(self, model: Any, plan: str, calls: int) -> tuple[Any, Any, Any]:
        return run(model, plan, calls)


NODE_CLASS_MAPPINGS = {"TimeTunerPlan": TimeTunerPlan}
NODE_DISPLAY_NAME_MAPPINGS = {"TimeTunerPlan": NAME}
