"""What a step of a scheduler returns."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


class StepOutput(Sequence[Tensor]):
    """The state after a call and the data that the call predicted, both (B, ...), by name or as a pair.

    Each is computed when it is first read. Most pipelines read the state alone. Those of Cosmos 1 read the data, apply
    guidance to it, and make the call again with it.

    Args:
        state, data: compute them.
    """

    def __init__(self, state: Callable[[], Tensor], data: Callable[[], Tensor]) -> None:
        self._compute = {"prev_sample": state, "pred_original_sample": data}
        self._values: dict[str, Tensor] = {}

    @property
    def prev_sample(self) -> Tensor:
        return self._read("prev_sample")

    @property
    def pred_original_sample(self) -> Tensor:
        return self._read("pred_original_sample")

    def _read(self, name: str) -> Tensor:
        # Not a functools.cached_property: in Python 3.11 all threads share its lock, and a paused pipeline waits here.
        if name not in self._values:
            self._values[name] = self._compute[name]()
        return self._values[name]

    def __len__(self) -> int:
        return 2

    def __getitem__(self, key: Any) -> Any:
        names = ("prev_sample", "pred_original_sample")
        if isinstance(key, slice):
            return tuple(getattr(self, name) for name in names[key])
        return getattr(self, key if key in names else names[key])
