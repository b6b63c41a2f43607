"""The node "Time Tuner plan", with the V3 schema."""

from typing import Any

from comfy_api.latest import ComfyExtension, io

from .nodes import CATEGORY, NAME, TimeTunerPlan, plan_files, run


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


class TimeTunerExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TimeTunerPlanV3]


async def comfy_entrypoint() -> TimeTunerExtension:
    """The extension that ComfyUI loads."""
    return TimeTunerExtension()
