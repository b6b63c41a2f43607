"""The node "Time Tuner plan", with the classic mappings."""

import os
from typing import Any

import comfy.samplers
import folder_paths
import torch

from .plan_file import choose, read_plans
from .runner import PlanGuidance, PlanSampler, patched

FOLDER = "time_tuner"
OF_GUIDANCE = ("sampler_cfg_function", "sampler_post_cfg_function")
"""The options of a model that change guidance; they have no meaning where it is left out."""

CATEGORY = "sampling/custom_sampling/samplers"
NAME, GUIDER_NAME = "Time Tuner plan", "Time Tuner guider"

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


class PlanGuider(PlanGuidance, comfy.samplers.CFGGuider):
    """Classifier-free guidance at the calls that a plan guides, and at all calls with other samplers."""

    def predict_noise(self, x: Any, timestep: Any, model_options: Any = None, seed: Any = None) -> Any:
        options = dict(model_options or {})

        def guided(record: Any) -> Any:
            def after(args: dict[str, Any]) -> Any:
                record(args["denoised"], args["cond_denoised"])
                return args["denoised"]

            after_all = [*options.get("sampler_post_cfg_function", []), after]
            changed = {**options, "sampler_post_cfg_function": after_all}
            return super(PlanGuider, self).predict_noise(x, timestep, changed, seed)

        def conditional() -> Any:
            alone = {name: value for name, value in options.items() if name not in OF_GUIDANCE}
            positive = self.conds.get("positive")
            return comfy.samplers.sampling_function(
                self.inner_model, x, timestep, None, positive, 1.0, model_options=alone, seed=seed
            )

        return self.guided_or_not(x, guided, conditional)


def run_guider(model: Any, positive: Any, negative: Any, cfg: float) -> Any:
    """GUIDER of a MODEL."""
    guider = PlanGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


class TimeTunerGuider:
    """The guider's node for ComfyUI versions without the V3 schema."""

    RETURN_TYPES = ("GUIDER",)
    FUNCTION = "run"
    CATEGORY = "sampling/custom_sampling/guiders"
    DESCRIPTION = "For plans of time_tuner that leave guidance out of some calls; elsewhere it is a CFG guider."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        scale = {"default": 5.0, "min": 0.0, "max": 100.0, "step": 0.1}
        conditions = {"positive": ("CONDITIONING",), "negative": ("CONDITIONING",)}
        return {"required": {"model": ("MODEL",), **conditions, "cfg": ("FLOAT", scale)}}

    def run(self, model: Any, positive: Any, negative: Any, cfg: float) -> tuple[Any]:
        return (run_guider(model, positive, negative, cfg),)


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


NODE_CLASS_MAPPINGS = {"TimeTunerPlan": TimeTunerPlan, "TimeTunerGuider": TimeTunerGuider}
NODE_DISPLAY_NAME_MAPPINGS = {"TimeTunerPlan": NAME, "TimeTunerGuider": GUIDER_NAME}
