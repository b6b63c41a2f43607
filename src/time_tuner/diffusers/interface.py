"""What every pipeline of diffusers reads of its scheduler, whatever the scheduler does at a call."""

from typing import Any

import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor

from ..schedules import NoiseSchedule, Point, as_float64
from .config import Prediction

MOST_SIGMA = 4096.0
"""What diffusers has for the infinite sigma / alpha at alpha = 0."""


class PipelineScheduler(SchedulerMixin, ConfigMixin):
    """The part of a scheduler's interface that follows from its noise schedule.

    A subclass sets `timesteps`, (K,), and `sigmas`, (K + 1,), in `set_timesteps`.

    Attributes:
        schedule: the noise schedule.
        prediction: what the pipeline passes to the scheduler at every call.
        timesteps: the network time of each call, (K,), float32.
        sigmas: the noise at the conditioning time of each call, and that of the end, (K + 1,), float32: sigma in a
            flow, sigma / alpha else.
        num_inference_steps: the number of calls.
    """

    order = 1
    prediction: Prediction
    timesteps: Tensor
    sigmas: Tensor
    num_inference_steps: int | None = None

    @property
    def schedule(self) -> NoiseSchedule:
        raise NotImplementedError

    def __len__(self) -> int:
        return int(self.config.get("num_train_timesteps", 1000))

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha^2 at each trained level, (N,), float32; a flow has none."""
        if self.schedule.shift is not None or self.schedule.levels is None:
            raise AttributeError(f"{self.schedule!r} has no alphas_cumprod")
        levels = torch.arange(self.schedule.levels, dtype=torch.float64)
        return (self.schedule.at(self.schedule.from_network_time(levels)).alpha ** 2).float()

    @property
    def alphas(self) -> Tensor:
        """The quotients of `alphas_cumprod`, (N,)."""
        kept = self.alphas_cumprod
        return torch.cat([kept[:1], kept[1:] / kept[:-1]])

    @property
    def betas(self) -> Tensor:
        """1 - `alphas`, (N,)."""
        return 1 - self.alphas

    @property
    def sigma_min(self) -> float:
        """The least noise that the network was trained at, as `sigmas` count it."""
        return float(self.schedule.sigma_ratio(self.schedule.t_min))

    @property
    def sigma_max(self) -> float:
        """The most noise that the network was trained at, as `sigmas` count it."""
        return float(self.schedule.sigma_ratio(self.schedule.T).clamp(max=MOST_SIGMA))

    def previous_timestep(self, timestep: Any) -> Tensor:
        """The timestep of the call after the one with this timestep, 0-dim; -1 after the last call.

        Raises:
            ValueError: no call has it.
        """
        after = self.index_for_timestep(timestep) + 1
        return self.timesteps[after] if after < len(self.timesteps) else torch.tensor(-1)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The state as the network receives it: unchanged, unless the network has EDM's preconditioning."""
        if self.prediction.sigma_data is None:
            return sample
        return self.prediction.network_input(sample, self._point_of(timestep))

    def _get_conditioning_c_in(self, sigma: Any) -> Any:
        """The factor 1 / sqrt(sigma^2 + sigma_data^2) of a state in EDM's preconditioning, which Cosmos 1 reads.

        Raises:
            ValueError: the network has no such preconditioning.
        """
        if self.prediction.sigma_data is None:
            raise ValueError("the network has no EDM preconditioning: its states are not scaled")
        return 1 / (sigma**2 + self.prediction.sigma_data**2) ** 0.5

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """Data with noise in it, alpha x + sigma noise (B, ...), at one timestep for all samples or one for each."""
        alpha, sigma = self._point(timesteps, original_samples)
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """`add_noise`, as the pipelines of flows call it."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """v = alpha noise - sigma x, (B, ...), of data x."""
        alpha, sigma = self._point(timesteps, sample)
        return (alpha * noise - sigma * sample).to(sample.dtype)

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Tensor | None = None) -> int:
        """The first call with this timestep.

        Raises:
            ValueError: there is none.
        """
        timesteps = self.timesteps if schedule_timesteps is None else schedule_timesteps
        indices = (timesteps == torch.as_tensor(timestep, device=timesteps.device)).nonzero()
        if not len(indices):
            raise ValueError(f"timestep {float(timestep):g} is none of {timesteps.tolist()}")
        return int(indices[0])

    def set_shift(self, shift: float) -> None:
        """Accept the shift that the noise schedule has.

        Raises:
            ValueError: another shift.
        """
        if self.schedule.shift != shift:
            raise ValueError(f"shift is part of the noise schedule {self.schedule!r}, got {shift}: make a plan for it")

    def _point_of(self, timestep: Any) -> Point:
        """The solver's point of a timestep."""
        return self.schedule.at(self._solver_time(float(timestep)))

    def _solver_time(self, timestep: float) -> float:
        """The solver's time of a timestep.

        Raises:
            ValueError: the network was not trained there.
        """
        low, high = sorted(float(self.schedule.network_time(t)) for t in (self.schedule.least_time, self.schedule.T))
        if not low - 1e-3 <= timestep <= high + 1e-3:
            raise ValueError(f"timesteps must be those of the network, {low:g} to {high:g}, got {timestep:g}")
        return float(self.schedule.from_network_time(min(max(timestep, low), high)))

    def _point(self, timesteps: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at timesteps, (1, ...) or (B, ...), to be multiplied with `like` (B, ...)."""
        times = [self._solver_time(timestep) for timestep in as_float64(timesteps).reshape(-1).tolist()]
        p = self.schedule.at(times)
        shape = (-1, *[1] * (like.dim() - 1))
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        alpha, sigma = (value.to(dtype).view(shape).to(like.device) for value in (p.alpha, p.sigma))
        return alpha, sigma
