"""The node "Time Tuner plan", with the V3 schema."""

from typing import Any

from comfy_api.latest import ComfyExtension, io

from .nodes import CATEGORY, GUIDER_NAME, NAME, TimeTunerGuider, TimeTunerPlan, plan_files, run, run_guider


class TimeTunerPlanV3(io.ComfyNode):
    """The node for ComfyUI versions with the V3 schema."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="TimeTunerPlan",
            display_name=NAME,
            category=CATEGORY,
            description=TimeTunerPlan.DESCRIPTION,
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input("plan", options=plan_files()),
                io.Int.Input("calls", default=0, min=0, max=1000, tooltip="0: the only plan of the file"),
            ],
            outputs=[io.Model.Output(), io.Sampler.Output(), io.Sigmas.Output()],
        )

    @classmethod
    def execute(cls, model: Any, plan: str, calls: int) -> Any:
        return io.NodeOutput(*run(model, plan, calls))


class TimeTunerGuiderV3(io.ComfyNode):
    """The guider's node for ComfyUI versions with the V3 schema."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="TimeTunerGuider",
            display_name=GUIDER_NAME,
            category=TimeTunerGuider.CATEGORY,
            description=TimeTunerGuider.DESCRIPTION,
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Float.Input("cfg", default=5.0, min=0.0, max=100.0, step=0.1),
            ],
            outputs=[io.Guider.Output()],
        )

    @classmethod
    def execute(cls, model: Any, positive: Any, negative: Any, cfg: float) -> Any:
        return io.NodeOutput(run_guider(model, positive, negative, cfg))


class TimeTunerExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TimeTunerPlanV3, TimeTunerGuiderV3]


async def comfy_entrypoint() -> TimeTunerExtension:
    """The extension that ComfyUI loads."""
    return TimeTunerExtension()
