"""TimeTuner, the published interface (Xia et al., CVPR 2024), in terms of plans and tuners."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._checks import check_int, choose
from .._distributed import num_processes
from ..models.base import HookedModel, Model, as_model
from ..models.counting import CostLog, CountedModel
from ..models.wrapper import model_wrapper
from ..plans.build import make_plan, reference_plan
from ..plans.plan import Plan
from ..samplers import SAMPLERS, Noise, Sampler, sampler_of
from ..sampling import ModelLike, check_schedule, sample
from ..schedules import NoiseSchedule, Point, as_float64
from ..tuners import ReferenceDistance, Sequential
from ..tuners.base import TuningRun, listener
from ..tuners.budget import forward
from ..tuners.calibration import CalibrationBatch
from ..tuners.guard import gain_with_error
from ..tuners.timesteps.adam import ITERATIONS, adam
from ..tuners.timesteps.runs import PlanRun, Run, State
from ..tuners.timesteps.search import Search
from .data_loader import LoaderCalibration
from .step_functions import FunctionRun, RecordingModel, SamplerStep, StepFn


class TimeTuner:
    """Sampling with tuned timesteps, and tuning them, as in the published code.

    Args:
        model_fn: of `model_wrapper`; without conditions, any model or function `eps(x, t, tau)`.
        noise_schedule: of the network.
        device: where tuning moves images and labels; by default they stay where the data loader puts them.
    """

    def __init__(
        self, model_fn: ModelLike, noise_schedule: NoiseSchedule, device: torch.device | str | None = None
    ) -> None:
        self.model_fn, self.noise_schedule, self.device = model_fn, noise_schedule, device

    def plan(
        self,
        num_steps: int | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        t_ratios: Sequence[float] | Tensor | Plan | None = None,
        sampler: str | Sampler = "ddim",
        **options: Any,
    ) -> Plan:
        """The plan of a call in the published style.

        Args:
            num_steps: network calls, K; on the published "leading" grid when no timesteps are given.
            timesteps: the K network times, in any order: levels n (discrete schedules) or times t (continuous ones).
                The run ends at the least trained time, or at 0 when a call is made there.
            t_ratios: K tuned ratios tau / t; or a tuned plan of this sampler, which brings its own grid.
            sampler: a sampler, or its text, such as "ddim" or "ddim(eta=0.5)".
            options: of the sampler.

        Returns:
            The plan.

        Raises:
            ValueError: names the argument, what was got and the way out.
        """
        bare, schedule = isinstance(sampler, str) and sampler in SAMPLERS and not options, self.noise_schedule
        made = sampler_of(sampler, **options)
        if isinstance(t_ratios, Plan):
            plan = t_ratios
            if type(plan.sampler) is not type(made) or not (bare or plan.sampler == made):
                raise ValueError(f"t_ratios is a plan of {plan.sampler!r}, but {made!r} was asked for")
            if num_steps not in (None, len(plan)):
                raise ValueError(f"num_steps must be that of the plan given as t_ratios, {len(plan)}, got {num_steps}")
            if timesteps is not None:
                raise ValueError("timesteps belong to the plan given as t_ratios: leave them out")
        elif timesteps is not None:
            times = schedule.from_network_time(_numbers("timesteps", timesteps).sort(descending=True).values)
            end = schedule.t_min if times[-1] > schedule.t_min * (1 + 1e-9) else 0.0
            plan = make_plan(made, schedule, calls=num_steps, times=torch.cat([times, as_float64([end])]))
        elif num_steps is not None:
            plan = make_plan(made, schedule, calls=num_steps, spacing="leading")
        else:
            raise ValueError("num_steps= is needed, the number of network calls, or timesteps=")
        if not isinstance(t_ratios, Plan | None):
            ratios = _numbers("t_ratios", t_ratios)
            if ratios.shape != (len(plan),) or not (ratios > 0).all():
                got = ratios.tolist()
                raise ValueError(f"t_ratios must be {len(plan)} positive numbers, one for each call, got {got}")
            plan = plan.with_tau(ratios * plan.t[:-1])
        for known in (schedule, as_model(self.model_fn, schedule).schedule):
            check_schedule(known, plan)
        return plan

    def ddim_sample(
        self,
        x: Tensor,
        num_steps: int | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        t_ratios: Sequence[float] | Tensor | Plan | None = None,
        eta: float | None = None,
        condition: Any = None,
        uncond_condition: Any = None,
        return_intermediates: bool = False,
        verbose: bool = False,
        noise: Noise | None = None,
    ) -> Any:
        """DDIM from the noise x (B, ...); `eta` is 0, or the plan's, by default. See `sample` for the rest.

        Args:
            x: the state at the first time, standard normal noise.
            num_steps: network calls, see `plan`.
            timesteps: the network times of the calls, see `plan`.
            t_ratios: tuned ratios, or a plan, see `plan`.
            eta: 0 is deterministic, 1 is DDPM with the smaller variance.
            condition: see `sample`.
            uncond_condition: see `sample`.
            return_intermediates: see `sample`.
            verbose: show progress.
            noise: draws the noise of a stochastic sampler; `torch.randn_like` by default.

        Returns:
            The samples; with `return_intermediates` also the states.
        """
        options = {} if eta is None else {"eta": eta}
        return self.sample(
            x, "ddim", num_steps, timesteps, t_ratios, condition, uncond_condition, return_intermediates, verbose,
            noise, **options,
        )  # fmt: skip

    def sample(
        self,
        x: Tensor,
        sampler: str | Sampler = "dpmpp",
        num_steps: int | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        t_ratios: Sequence[float] | Tensor | Plan | None = None,
        condition: Any = None,
        uncond_condition: Any = None,
        return_intermediates: bool = False,
        verbose: bool = False,
        noise: Noise | None = None,
        **options: Any,
    ) -> Any:
        """Samples (B, ...) from the noise x (B, ...), by any sampler; its options (order=, eta=, ...) are named.

        Args:
            x: the state at the first time, standard normal noise.
            sampler: see `plan`.
            num_steps: network calls, see `plan`.
            timesteps: the network times of the calls, see `plan`.
            t_ratios: tuned ratios, or a plan, see `plan`.
            condition: what the network is conditioned on, (B, ...) or (1, ...).
            uncond_condition: the condition of the unconditional prediction, (B, ...) or (1, ...).
            return_intermediates: also return `{"x_t": [...], "x0_pred": [...]}`: the states, and the data predicted in
                them, K + 1 entries each: x itself, then one for every call.
            verbose: show progress.
            noise: draws the noise of a stochastic sampler; `torch.randn_like` by default.
            options: of the sampler.

        Returns:
            The samples; with `return_intermediates` also the states.
        """
        plan = self.plan(num_steps, timesteps, t_ratios, sampler, **options)
        eps = self._bound(condition, uncond_condition)
        recording = RecordingModel(eps)
        model: Model = recording if return_intermediates else eps
        if verbose:
            from tqdm import tqdm  # only who looks at it waits for its import

            with tqdm(total=len(plan), desc="sampling", unit="call") as bar:
                end = sample(HookedModel(model, lambda *_: bar.update() and None), plan, x, noise)
        else:
            end = sample(model, plan, x, noise)
        states = {"x_t": [*recording.states, end], "x0_pred": [x, *recording.data]}
        return (end, states) if return_intermediates else end

    def step_fn(self, sampler: str | Sampler, **options: Any) -> "SamplerStep":
        """One step of any sampler, as `optimize_timesteps` takes it."""
        return SamplerStep(sampler_of(sampler, **options), self.noise_schedule, self._bound)

    @property
    def ddim_step_fn(self) -> "SamplerStep":
        """One step of DDIM; `eta=` may be given at the call."""
        return self.step_fn("ddim")

    def optimize_timesteps(
        self,
        data_loader: Iterable[Mapping[str, Any]],
        step_fn: StepFn | None = None,
        encode_fn: Callable[[Tensor], Tensor] | None = None,
        num_steps: int | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        tune_type: str = "sequential",
        lr: float | None = None,
        total_iters: int | None = None,
        verbose: bool = False,
        seed: int = 0,
        samples: int = 256,
        **step_fn_kwargs: Any,
    ) -> Tensor:
        """The tuned ratios tau / t of a sampler, float64 (K,), the last one 1.

        Given `lr` or `total_iters`, the published procedure runs: Adam, `total_iters` batches of the loader for each
        ratio. Given neither, each ratio is found by a search on `samples` images, with forward calls only. The result
        is the bare optimum of the published loss; a warning is given where it ends farther from a many-step run than
        untuned, by more than the standard error.

        Args:
            data_loader: yields dicts with `image` (B, ...) and, under guidance, `label` (B, ...).
            step_fn: DDIM by default; `ddim_step_fn`, `step_fn("dpmpp", order=2)` of this tuner, or a function of your
                own, see `StepFn`.
            encode_fn: takes images to latents.
            num_steps: network calls, see `plan`.
            timesteps: the network times of the calls, see `plan`.
            tune_type: "sequential" or "parallel".
            lr: of Adam, the published optimiser.
            total_iters: batches of Adam for each ratio.
            verbose: show progress.
            seed: of all noise.
            samples: to tune on.
            step_fn_kwargs: given to step_fn at every call; `uncond_condition` is also that of guidance: one condition,
                or one for each image of a batch of the loader, or of the samples.

        Returns:
            The ratios, float64 (K,).

        Raises:
            ValueError: names the argument, what was got and the way out.
        """
        if num_processes() > 1:
            raise ValueError(
                "optimize_timesteps is for one process, since each has a data_loader of its own: take time_tuner.tune "
                "with data=, which share_work divides among processes"
            )
        choose("tune_type", tune_type, ("sequential", "parallel"))
        samples, searches = check_int("samples", samples, 2), lr is None and total_iters is None
        Sequential("search" if searches else "adam", lr=lr, iterations=total_iters)  # checks them
        step = self.ddim_step_fn if step_fn is None else step_fn
        run: Run
        if isinstance(step, SamplerStep):
            options = {name: value for name, value in step_fn_kwargs.items() if name != "uncond_condition"}
            run = PlanRun(self.plan(num_steps, timesteps, sampler=step.with_options(**options).sampler))
        else:
            grid = self.plan(num_steps, timesteps)
            run = FunctionRun(grid.schedule, Point(grid.t, grid.alpha, grid.sigma), step, step_fn_kwargs)
        wrapped = self.model_fn if isinstance(self.model_fn, model_wrapper) else None
        if wrapped is not None and wrapped.time_dtype == "int" and not searches:
            raise ValueError(
                "lr and total_iters need gradients to the time, which time_dtype='int' has none of: leave them out, "
                "the search works with forward calls only"
            )
        guided, cost_log = wrapped is not None and wrapped.guidance_type != "uncond", CostLog()
        calibration = LoaderCalibration(
            data_loader,
            lambda *conditions: CountedModel(self._bound(*conditions), cost_log),
            guided,
            encode_fn,
            step_fn_kwargs.get("uncond_condition"),
            self.device,
            seed,
            samples,
        )
        held_out = calibration.held_out(min(samples, 64))
        reference = forward(len(held_out.x0)) * len(reference_plan(run.schedule, float(run.point(len(run)).t)))
        with listener(verbose) as listening:
            tuning = TuningRun(cost_log=cost_log, listener=listening, planned={"reference": reference})
            if searches:
                ratios = Search(run, calibration.fixed(samples), tune_type, tuning)()[0]
            else:
                calibration.iterations = total_iters or ITERATIONS
                ratios = adam(run, calibration.batch, tune_type, tuning, lr, total_iters)
            with cost_log.purpose("reference"):
                untuned, tuned = _distances(run, ratios, held_out)
            tuning.finish({})
        gain, error = gain_with_error(untuned, tuned, run.stochastic)
        if not gain >= -error:  # also where the tuned run is not finite
            warnings.warn(
                "the tuned timesteps are the optimum of the published loss, but worse than untuned ones: on held-out "
                f"noise they end {float(tuned.mean()):.4g} from a many-step run on average, untuned ones "
                f"{float(untuned.mean()):.4g}; time_tuner.tune(guard=True) sets back the ratios that do the harm",
                stacklevel=2,
            )
        return ratios

    def _bound(self, condition: Any, uncond_condition: Any) -> Model:
        if isinstance(self.model_fn, model_wrapper):
            if self.model_fn.guidance_type == "uncond":  # the published code ignores conditions then
                return self.model_fn.bind()
            guided = self.model_fn.guidance_type != "uncond"  # without guidance conditions are ignored, as published
            return self.model_fn.bind(condition, uncond_condition) if guided else self.model_fn.bind()
        if condition is not None:
            raise ValueError("condition= needs a model_fn made by model_wrapper with a guidance_type, got a bare eps")
        return as_model(self.model_fn, self.noise_schedule)


@torch.no_grad()
def _distances(run: Run, ratios: Tensor, batch: CalibrationBatch) -> tuple[Tensor, Tensor]:
    """The distances of the untuned and of the tuned run to the end of a many-step one, (B,) each."""
    judge = ReferenceDistance(batch.model, run.schedule, float(run.point(len(run)).t), batch.noise)

    def distances(ratios: Tensor) -> Tensor:
        state: State = ((), float(run.point(0).scale) * batch.noise)
        for k in range(len(run)):
            state = run.step(k, state, ratios[k] * run.point(k).t, batch)
        return judge.of_ends(state[1], run.stochastic)

    return distances(torch.ones_like(ratios)), distances(ratios)


def _numbers(name: str, values: Any) -> Tensor:
    try:
        numbers = as_float64(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a list of numbers, got {type(values).__name__}: {error}") from None
    if numbers.dim() != 1 or not len(numbers):
        raise ValueError(f"{name} must be a list of numbers, got shape {tuple(numbers.shape)}")
    return numbers
