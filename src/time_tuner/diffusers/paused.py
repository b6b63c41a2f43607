"""A pipeline that is paused inside its own denoising loop, and predicts for one state after another.

The pipeline's own code prepares its inputs, calls its network and applies its guidance, once for each prediction; none
of that is written down again here. The code runs in a thread of its own, which waits in `scheduler.step` between two
predictions. Gradients pass through.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..schedules import NoiseSchedule, Point
from .config import GIVEN_DATA, Prediction, prediction_of
from .hook import DenoiserHook
from .interface import MOST_SIGMA, PipelineScheduler
from .native_grid import GridArguments, schedule_in_run
from .step_output import StepOutput

ITERATIONS = 24
"""The predictions of one run of a pipeline's loop; after them the pipeline is started again.

Predictions at all of these calls are compared before the pipeline is used. So many calls show every window of calls
that one call of a run of up to 12 calls lies in.
"""

START = Point(*(torch.zeros(()) for _ in range(3)))
"""A point for a loop that has not begun."""


class _Abort(BaseException):
    """Ends the call of a pipeline from inside."""


class Loop(Protocol):
    """What a pipeline's loop runs for: it has the network time of the next call, and decides on the next state.

    Attributes:
        network_time: what the network receives at the next call, 0-dim.
        point: the solver's point of the state at the next call.
        left: the calls that are left in this run of the loop.
        guided: whether what guidance adds is found at the next call, True, or left out, False; None for neither.
        conditional: what the pipeline would give its scheduler without guidance; None where that is not known.
    """

    network_time: Tensor
    point: Point
    left: int
    guided: bool | None = None
    conditional: Tensor | None = None

    def begin_call(self) -> None:
        """Called before each call of the pipeline's network."""
        return

    def pause(self, output: Tensor, state: Tensor) -> Tensor:
        """The state of the next call, after the pipeline's output for a state."""


class PausedPipeline(Loop):
    """A pipeline with fixed inputs for one batch of conditions.

    Args:
        scheduler: the scheduler of the pipeline while it is paused.
        inputs: of the pipeline's call.

    Attributes:
        first: the state that the pipeline's loop began with, (b, ...).
        first_output: what the pipeline gave its scheduler for that state.
    """

    def __init__(self, scheduler: "PausingScheduler", inputs: Mapping[str, Any]) -> None:
        self._scheduler, self._inputs = scheduler, inputs
        self._thread: Thread | None = None
        self.network_time, self.point = torch.zeros(()), START
        self.first, self.first_output = self._start()

    def predict(self, x: Tensor, network_time: Tensor, point: Point, guided: bool | None = None) -> Tensor:
        """What the pipeline gives its scheduler for the state x (b, ...) at the solver's point, when its network
        receives this time (0-dim); `guided` as of `Loop`.

        Raises:
            ValueError: the pipeline changes states between calls.
        """
        if not self.left:
            self._start()
        x = x.to(self.first)
        network_time = network_time.to(dtype=torch.float32, device=self._scheduler.device)
        self.guided = guided
        state, output = self._resume((x, network_time, point, torch.is_grad_enabled(), _default_hooks()))
        if state is not x and not torch.equal(state, x):
            raise ValueError(
                f"{type(self._scheduler.pipe).__name__} changes the state between two calls of its network (inpainting "
                "with a network of 4 channels does): tune on a pipeline that does not, and run the plan here"
            )
        return output

    def close(self) -> None:
        """End the pipeline's call."""
        if self._thread is not None and self._thread.is_alive():
            self._requests.put(None)
            self._thread.join()
        self._thread = None

    def _start(self) -> tuple[Tensor, Tensor]:
        """Run the pipeline up to its first output, which is for a state of its own."""
        self.close()
        self._requests: SimpleQueue[Any] = SimpleQueue()
        self._outputs: SimpleQueue[Any] = SimpleQueue()
        self.left, self.guided = 0, None
        self._thread = Thread(target=self._run, daemon=True)
        output = self._resume(None)
        if not self.left:
            self.close()
            raise ValueError(
                f"{type(self._scheduler.pipe).__name__} does not iterate over scheduler.timesteps, or only once: it "
                "cannot be tuned as it is (is strength too small?); wrap its network with model_wrapper"
            )
        return output

    def _resume(self, request: Any) -> tuple[Tensor, Tensor]:
        assert self._thread is not None
        self._scheduler.loop = self
        if request is None:
            self._thread.start()
        else:
            self._requests.put(request)
        output = self._outputs.get()
        if isinstance(output, BaseException):
            self._thread.join()
            raise output
        return output

    def _run(self) -> None:
        pipe, self._hooks = self._scheduler.pipe, ExitStack()
        try:
            self.begin_call()
            pipe(**self._inputs, num_inference_steps=ITERATIONS)
            output: BaseException = ValueError(
                f"{type(pipe).__name__} ended without calling scheduler.step: it cannot be tuned as it is; wrap its "
                "network with model_wrapper"
            )
        except _Abort:
            return
        except BaseException as error:
            output = error
        self._outputs.put(output)

    def begin_call(self) -> None:
        """Seed the generators: a pipeline that noises its image does it alike in every run of the loop and call."""
        for value in self._inputs.values():
            if isinstance(value, torch.Generator):
                value.manual_seed(0)

    def pause(self, output: Tensor, state: Tensor) -> Tensor:
        """Called in the pipeline's thread: pass its output on, and wait for the next state."""
        self._hooks.close()
        self._outputs.put((state, output))
        request = self._requests.get()
        if request is None:
            raise _Abort
        x, self.network_time, self.point, grad, hooks = request
        torch.set_grad_enabled(grad)  # of this thread; the pipeline has turned it off
        if hooks is not None:
            self._hooks.enter_context(saved_tensors_hooks(*hooks))
        return x


class _End(Loop):
    """A loop of a single call, which ends in the states x (b, ...) whatever the pipeline's output is."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.network_time, self.point, self.left = x, torch.zeros(()), START, 0

    def pause(self, output: Tensor, state: Tensor) -> Tensor:
        return torch.cat([self.x] * (len(state) // len(self.x))).to(state)


def run_to_end(scheduler: "PausingScheduler", inputs: Mapping[str, Any], x: Tensor) -> Any:
    """What the pipeline's call returns when its loop ends in the states x (b, ...); costs one network call."""
    scheduler.loop = _End(x)
    with torch.no_grad():
        return scheduler.pipe(**inputs, num_inference_steps=1)


class _Stop(Loop):
    """A loop that ends the pipeline's call at its first step."""

    def __init__(self) -> None:
        self.network_time, self.point, self.left = torch.zeros(()), START, 0

    def pause(self, output: Tensor, state: Tensor) -> Tensor:
        raise _Abort


def grid_arguments(scheduler: "PausingScheduler", inputs: Mapping[str, Any], steps: int) -> GridArguments:
    """What the pipeline passes to `set_timesteps` in a run of this number of steps; costs one network call."""
    scheduler.loop = _Stop()
    with suppress(_Abort), torch.no_grad():
        scheduler.pipe(**inputs, num_inference_steps=steps)
    return scheduler.passed


def _default_hooks() -> Any:
    """The hooks by which this thread saves tensors for its backward pass; None if there are none.

    Checkpointing and the count of saved bytes are such hooks, and do not reach other threads. torch has only a private
    name for them; where that is missing, activations are saved as usual.
    """
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return None if hooks is None else hooks(False)


class PausingScheduler(PipelineScheduler):
    """Replaces a pipeline's scheduler while the pipeline is paused, with that scheduler's configuration.

    Attributes:
        loop: what the pipeline runs for: one at a time, while all others wait.
        passed: what the pipeline passed to `set_timesteps` the last time.
        passed_kind: how its output of the last call is read.
        hook: on the pipeline's network, which leaves guidance out; None without one.
    """

    init_noise_sigma = 1.0
    begin_index: int | None = None
    step_index: int | None = None
    _step_index = 0  # set back by pipelines that make a call twice

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.own = pipe, pipe.scheduler
        self.hook: DenoiserHook | None = None
        self.loop: Loop
        self.passed = GridArguments()
        self.device = torch.device("cpu")
        self.prediction = self.passed_kind = prediction_of(pipe)
        self._internal_dict: Any = FrozenDict(pipe.scheduler.config)

    def __deepcopy__(self, memo: Any) -> "PausingScheduler":
        raise ValueError(
            f"{type(self.pipe).__name__} denoises a second state with a copy of its scheduler (the audio of LTX 2), on "
            "which predictions depend too: it cannot be tuned; it runs plans, as of from_config(pipe, calls=)"
        )

    @property
    def schedule(self) -> NoiseSchedule:
        return schedule_in_run(self.own, self.passed)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        self.passed = GridArguments.of(sigmas, timesteps, mu)
        self.device = torch.device(device or "cpu")
        given = sigmas if timesteps is None else timesteps
        self.num_inference_steps = len(given) if num_inference_steps is None else num_inference_steps
        schedule = self.schedule
        self.loop.point = schedule.at(schedule.T)
        self.loop.network_time = schedule.network_time(schedule.T).to(dtype=torch.float32, device=self.device)
        self.timesteps = _network_times(self.loop, schedule, self.num_inference_steps, self.device)

    @property
    def sigmas(self) -> Tensor:  # type: ignore[override]
        """The noise at the loop's network time, for all calls alike, and 0 at the end."""
        schedule = self.schedule
        sigma = schedule.sigma_ratio(schedule.from_network_time(self.loop.network_time)).clamp(max=MOST_SIGMA)
        calls = self.num_inference_steps or 0
        return torch.cat([sigma.float().expand(calls), torch.zeros(1, device=sigma.device)])

    def _point_of(self, timestep: Any) -> Point:
        return self.loop.point

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Where an image-to-image run would begin; predictions are made at all times."""

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        return noise

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        prev_timestep: Any = None,
        generator: Any = None,
        return_dict: bool = True,
        pred_original_sample: Tensor | None = None,
    ) -> StepOutput:
        passed, kind = model_output, self.prediction
        if pred_original_sample is not None:
            passed, kind = pred_original_sample, GIVEN_DATA
        data = partial(self.prediction.read, "x0", model_output, sample, self.loop.point)
        return StepOutput(partial(self._pause, passed, kind, sample), data)

    def _pause(self, output: Tensor, kind: Prediction, state: Tensor) -> Tensor:
        self.passed_kind, loop = kind, self.loop
        loop.conditional = None
        if self.hook is not None and loop.guided is not None:
            loop.conditional = self.hook.conditional(output, state, loop.guided)
            self.hook.begin()
        return loop.pause(output, state)


def _network_times(loop: Loop, schedule: NoiseSchedule, count: int, device: torch.device) -> Tensor:
    """Timesteps for a pipeline to iterate over; each is the loop's network time at the moment that it is read.

    Read in another way they are those of a run of as many calls, so that what depends on them differs from call to
    call, and shows.
    """

    class NetworkTimes(Tensor):
        def __iter__(self) -> Iterator[Tensor]:
            loop.left = len(self)
            while loop.left:
                loop.left -= 1
                loop.begin_call()
                yield loop.network_time

    times = schedule.network_time(torch.linspace(schedule.T, schedule.t_min, count, dtype=torch.float64))
    return times.to(device=device, dtype=torch.float32).as_subclass(NetworkTimes)
