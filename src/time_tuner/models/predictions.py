"""What a network predicts: noise, data, v, score, velocity or EDM's output, each a small class with both directions."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..schedules import NoiseSchedule, Point

__all__ = ["PREDICTIONS", "Prediction"]


class Prediction(ABC):
    """What a network predicts in the state x = alpha x_0 + sigma eps at a point p.

    p is the solver's point, whatever time the network receives. A subclass implements `noise` and `output`, and `data`
    where the prediction determines the data without the detour by the noise.

    Attributes:
        determines_data: whether the output determines the data where alpha = 0.
        name_in_diffusers: the `prediction_type` of a scheduler of diffusers for such a network; None if it has none.
    """

    determines_data = True
    name_in_diffusers: str | None = None

    @abstractmethod
    def noise(self, output: Tensor, x: Tensor, p: Point) -> Tensor:
        """The noise eps that an output stands for, (B, ...)."""

    def data(self, output: Tensor, x: Tensor, p: Point) -> Tensor:
        """The data x_0 that an output stands for, (B, ...)."""
        return (x - p.sigma * self.noise(output, x, p)) / p.alpha

    @abstractmethod
    def output(self, x0: Tensor, eps: Tensor, p: Point) -> Tensor:
        """What a network predicts that sees this data and this noise, (B, ...): the inverse of `data` and `noise`."""

    def network_input(self, x: Tensor, p: Point) -> Tensor:
        """The state as the network receives it."""
        return x

    def on(self, schedule: NoiseSchedule) -> "Prediction":
        """The prediction of a network with this noise schedule.

        Raises:
            ValueError: networks with this schedule do not predict that; the message follows the prediction's name.
        """
        return self


class Noise(Prediction):
    """eps."""

    determines_data = False
    name_in_diffusers = "epsilon"

    def noise(self, output: Tensor, x: Tensor, p: Point) -> Tensor:
        return output

    def output(self, x0: Tensor, eps: Tensor, p: Point) -> Tensor:
        return eps


class Data(Prediction):
    """x_0: eps = (x - alpha x_0) / sigma."""

    name_in_diffusers = "sample"

    def noise(self, output: Tensor, x: Tensor, p: Point) -> Tensor:
        return (x - p.alpha * output) / p.sigma

    def data(self, output: Tensor, x: Tensor, p: Point) -> Tensor:
        return output

    def output(self, x0: Tensor, eps: Tensor, p: Point) -> Tensor:
        return x0


class V(Prediction):
    """v = alpha eps - sigma x_0 (Salimans & Ho, 2022, https://arxiv.org/abs/2202.00512): eps = (alpha v + sigma x) / c
    and x_0 = (alpha x - sigma v) / c with c = alpha^2 + sigma^2."""

    name_in_diffusers = "v_prediction"

    def noise(self, output: Tensor, x: Tensor, p: Point) -> Tensor:
        return (p.alpha * output + p.sigma * x) / p.scale**2

    def data(self, output: Tensor, x: Tensor, p: Point) -> Tensor:
        return (p.alpha * x - p.sigma * output) / p.scale**2

    def output(self, x0: Tensor, eps: Tensor, p: Point) -> Tensor:
        return p.alpha * eps - p.sigma * x0


class Score(Prediction):
    """s = -eps / sigma, the gradient of the log density (Song et al., 2021, https://arxiv.org/abs/2011.13456)."""

    determines_data = False

    def noise(self, output: Tensor, x: Tensor, p: Point) -> Tensor:
        return -p.sigma * output

    def output(self, x0: Tensor, eps: Tensor, p: Point) -> Tensor:
        return -eps / p.sigma


class Flow(Prediction):
    """The velocity v = eps - x_0 (Liu et al., 2023, https://arxiv.org/abs/2209.03003): eps = (x + alpha v) / c and
    x_0 = (x - sigma v) / c with c = alpha + sigma."""

    name_in_diffusers = "flow_prediction"

    def noise(self, output: Tensor, x: Tensor, p: Point) -> Tensor:
        return (x + p.alpha * output) / (p.alpha + p.sigma)

    def data(self, output: Tensor, x: Tensor, p: Point) -> Tensor:
        return (x - p.sigma * output) / (p.alpha + p.sigma)

    def output(self, x0: Tensor, eps: Tensor, p: Point) -> Tensor:
        return eps - x0


@dataclass(frozen=True)
class EDM(Prediction):
    """F of D(x) = c_skip x + c_out F(c_in x, c_noise) (Karras et al., 2022, table 1, https://arxiv.org/abs/2206.00364),
    where D predicts the data, on a schedule with alpha = 1:

    c_skip = sigma_d^2 / d^2, c_out = +-sigma sigma_d / d and c_in = 1 / d with d^2 = sigma_d^2 + sigma^2.

    Args:
        sign: -1 for networks with -c_out, as Stable Video Diffusion has it.
        sigma_data: sigma_d, the deviation of the data.
    """

    sign: int = 1
    sigma_data: float = 0.5

    @property
    def name_in_diffusers(self) -> str:  # type: ignore[override]
        """ "epsilon" or, for networks with -c_out, "v_prediction"."""
        return "epsilon" if self.sign > 0 else "v_prediction"

    def _deviation(self, p: Point) -> Tensor:
        return torch.sqrt(self.sigma_data**2 + p.sigma**2)

    def noise(self, output: Tensor, x: Tensor, p: Point) -> Tensor:
        d = self._deviation(p)
        return p.sigma / d**2 * x - (self.sign * self.sigma_data / d) * output

    def data(self, output: Tensor, x: Tensor, p: Point) -> Tensor:
        d = self._deviation(p)
        return self.sigma_data**2 / d**2 * x + self.sign * p.sigma * self.sigma_data / d * output

    def output(self, x0: Tensor, eps: Tensor, p: Point) -> Tensor:
        d = self._deviation(p)
        x = p.alpha * x0 + p.sigma * eps
        return (p.sigma / d**2 * x - eps) / (self.sign * self.sigma_data / d)

    def network_input(self, x: Tensor, p: Point) -> Tensor:
        return x / self._deviation(p)

    def on(self, schedule: NoiseSchedule) -> "EDM":
        if schedule.sigma_data is None:
            raise ValueError(f"is EDM's preconditioning, on a NoiseScheduleVE, got {schedule!r}")
        return replace(self, sigma_data=schedule.sigma_data)


PREDICTIONS: dict[str, Prediction] = {
    "noise": Noise(),
    "x_start": Data(),
    "v": V(),
    "score": Score(),
    "flow": Flow(),
    "edm": EDM(),
    "edm_v": EDM(sign=-1),
}
"""What networks predict, by the name it has in `model_wrapper`."""
