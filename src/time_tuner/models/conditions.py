"""What a model is run with."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Conditions:
    """What a model is run with: conditions, guidance, size and device; None is the model's own default.

    Attributes:
        label: a label, or several of which sample i has number i modulo their count.
        prompts: texts, which samples have likewise.
        negative_prompt: a text that guidance leads away from, for all samples.
        guidance_scale: w in eps_u + w (eps_c - eps_u), classifier-free guidance.
        height, width: of a pipeline's pictures, in pixels.
        dtype: of a pipeline's weights: "float32", "float16" or "bfloat16".
        device: where the model is: "cpu", "cuda", ...
        offload: whether the parts of a pipeline stay in the main memory until they are needed on the device.
        batch: the most samples in one network call.
    """

    label: Any = None
    prompts: tuple[str, ...] | None = None
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    dtype: str | None = None
    device: str | None = None
    offload: bool | None = None
    batch: int | None = None

    def given(self) -> dict[str, Any]:
        """The values that are not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}
