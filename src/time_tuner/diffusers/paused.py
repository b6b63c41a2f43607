"""A pipeline held inside its own denoising loop, so that it can be asked for predictions one by one.

The pipeline's own code prepares its inputs, calls its network and does its guidance, once for every question; nothing
of that is written down again here. It runs in a thread of its own, which stands still in `scheduler.step` between two
questions. Gradients pass through.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, FrozenDict
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

ITERATIONS = 1000
"""Of one run of a pipeline's loop; then it is run anew."""


class _Abort(BaseException):
    """Ends the pipeline's call from inside."""


class PausedPipeline:
    """A pipeline under fixed inputs, one batch of them.

    Args:
        probe: the pipeline's scheduler while it is paused.
        inputs: of the pipeline's call.
        iterations: how many questions one run of its loop answers.

    Attributes:
        first: the state that the pipeline's loop began with, (b, ...).
        first_said: the prediction that it handed to the scheduler then.
        label: what the network is told at the call to come, 0-dim.
        left: how many more questions this run of its loop can answer.
    """

    def __init__(self, probe: "PausingScheduler", inputs: Mapping[str, Any], iterations: int = ITERATIONS) -> None:
        self._scheduler, self._inputs, self._iterations = probe, inputs, iterations
        self._thread: Thread | None = None
        self.first, self.first_said = self._start()

    def predict(self, x: Tensor, label: Tensor) -> Tensor:
        """What the pipeline hands to its scheduler in the state x (b, ...), its network being told `label` (0-dim).

        Raises:
            ValueError: the pipeline changes states between calls.
        """
        if not self.left:
            self._start()
        x = x.to(self.first)
        label = label.to(dtype=torch.float32, device=self._scheduler.device)
        state, said = self._resume((x, label, torch.is_grad_enabled(), _saving()))
        if state is not x and not torch.equal(state, x):
            raise ValueError(
                f"{type(self._scheduler.pipe).__name__} changes the state between two calls of its network (inpainting "
                "with a network of 4 channels does): tune on a pipeline that does not, and run the plan here"
            )
        return said

    def close(self) -> None:
        """Let the pipeline go."""
        if self._thread is not None and self._thread.is_alive():
            self._questions.put(None)
            self._thread.join()
        self._thread = None

    def _start(self) -> tuple[Tensor, Tensor]:
        """Run the pipeline up to its first prediction, which is of a state of its own."""
        self.close()
        self._questions: SimpleQueue[Any] = SimpleQueue()
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self.left = 0
        self._thread = Thread(target=self._run, daemon=True)
        answer = self._resume(None)
        if not self.left:
            self.close()
            raise ValueError(
                f"{type(self._scheduler.pipe).__name__} does not go through scheduler.timesteps in a loop, or only once: "
                "it cannot be tuned as it is (is strength too small?); wrap its network with model_wrapper"
            )
        return answer

    def _resume(self, question: Any) -> tuple[Tensor, Tensor]:
        assert self._thread is not None
        self._scheduler.paused = self
        if question is None:
            self._thread.start()
        else:
            self._questions.put(question)
        answer = self._answers.get()
        if isinstance(answer, BaseException):
            self._thread.join()
            raise answer
        return answer

    def _run(self) -> None:
        pipe, self._as_asked = self._scheduler.pipe, ExitStack()
        try:
            pipe(**self._inputs, num_inference_steps=self._iterations)
            answer: BaseException = ValueError(
                f"{type(pipe).__name__} ended without calling scheduler.step: it cannot be tuned as it is; wrap its "
                "network with model_wrapper"
            )
        except _Abort:
            return
        except BaseException as error:
            answer = error
        self._answers.put(answer)

    def pause(self, said: Tensor, state: Tensor) -> Tensor:
        """Called in the pipeline's thread: hand over what was said of a state, wait, and come back with the next."""
        self._as_asked.close()
        self._answers.put((state, said))
        question = self._questions.get()
        if question is None:
            raise _Abort
        x, self.label, grad, saving = question
        torch.set_grad_enabled(grad)  # of this thread; the pipeline has turned it off
        if saving is not None:
            self._as_asked.enter_context(saved_tensors_hooks(*saving))
        return x


def _saving() -> Any:
    """How the thread that asks keeps tensors for its backward pass, if not as they are: checkpointing and the count of
    what is kept work by that, and another thread would not know of it. torch tells it by a private name alone; where
    there is none, activations are kept."""
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return None if hooks is None else hooks(False)


class PausingScheduler(SchedulerMixin, ConfigMixin):
    """Takes the place of a pipeline's scheduler while it is paused, with that one's configuration.

    Attributes:
        mu: the shift that the pipeline made of the size of its images, if any.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.paused: Any = None  # who is running: one at a time, while all others stand still
        self.mu: float | None = None
        self.device = torch.device("cpu")
        self._internal_dict: Any = FrozenDict(pipe.scheduler.config)

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None, mu: float | None = None
    ) -> None:
        self.mu = mu
        self.device = torch.device(device or "cpu")
        count = len(sigmas) if num_inference_steps is None else num_inference_steps
        last = float(self.config.get("num_train_timesteps", 1000)) - 1
        self.paused.label = torch.tensor(last, device=self.device)
        self.timesteps = _times_to_tell(self.paused, count, self.device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Where an image-to-image run would begin; questions are asked at any time."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        x = self.paused.pause(model_output, sample)
        return SchedulerOutput(prev_sample=x) if return_dict else (x, x)


def _times_to_tell(paused: PausedPipeline, count: int, device: torch.device) -> Tensor:
    """Timesteps that, when a pipeline's loop goes through them, are those that are asked for at that moment."""

    class Told(Tensor):
        def __iter__(self) -> Iterator[Tensor]:
            paused.left = len(self)
            while paused.left:
                paused.left -= 1
                yield paused.label

    return torch.arange(count, 0, -1, device=device, dtype=torch.float32).as_subclass(Told)
