"""The hook on a pipeline's network that leaves guidance out of some calls, and finds what guidance adds at others.

Under classifier-free guidance a pipeline calls its network for each state with the condition and without it, in one
batch of twice the states or in two calls, and passes u + w (c - u) to its scheduler, perhaps rescaled. Where guidance
is left out the network predicts c alone, and the pipeline receives c in the place of u, so that its own arithmetic
gives c.

Which of two predictions is c follows from what the pipeline makes of both: their mean and w - 1/2 times c - u.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .refusals import check_guidance

NETWORKS = ("unet", "transformer", "transformer_2")
"""The parts of pipelines that predict; the second transformer makes the later calls (Wan 2.2)."""

CONTROLS = ("controlnet",)
"""Parts that are called before the network, for the same states."""

STATES = ("hidden_states", "sample", "x")
"""The names of the states among the inputs of a network."""

UNBATCHED = ("img_ids", "txt_ids", "image_rotary_emb")
"""Inputs whose first dimension is never that of the batch."""

REPEATED = ("encoder_hidden_states",)
"""Inputs that may have several rows for each state, one for each frame."""

LEAST_FIT = 0.5
"""The least share of what a pipeline passes to its scheduler that mean and difference of two predictions explain."""

NEAR = {torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""The relative differences within which a pipeline passes c on as it is; 1e-4 in other precision."""

WAY_OUT = "take a plan with guidance at every call, plan.with_guidance(len(plan))"


class Branches(NamedTuple):
    """How a pipeline guides.

    Attributes:
        twice: whether the network is called twice, and not once for twice the states.
        conditional: which of the two predictions is that under the condition, 0 or 1.
        sign: of the predictions in what the pipeline passes to its scheduler.
    """

    twice: bool
    conditional: int
    sign: float


class DenoiserHook:
    """Leaves guidance out of some calls of a pipeline's network, until it is removed. In a `with` block it is removed
    at the end.

    How the pipeline guides is found at the first guided call for states of a shape. Where guidance is left out before
    that is known, both predictions are made once.

    Args:
        pipe: the pipeline.
        guided: whether the next call is guided; None where the hook has nothing to do.

    Raises:
        ValueError: a pipeline in which guidance cannot be left out.
    """

    def __init__(self, pipe: Any, guided: Callable[[], bool | None]) -> None:
        check_guidance(pipe)
        networks, controls = (
            [part for name in names if isinstance(part := getattr(pipe, name, None), nn.Module)]
            for names in (NETWORKS, CONTROLS)
        )
        if not networks:
            raise ValueError(f"{type(pipe).__name__} has no unet and no transformer: guidance cannot be left out of it")
        self.pipe, self._guided = pipe, guided
        self._known: dict[tuple[int, ...], Branches] = {}  # for states of a shape, with the batch, in the network
        self._finish: Callable[[Any], Any] | None = None  # makes the output of a call for half of its states
        self._restore: Callable[[], None] | None = None  # ends that the network returns an answer
        self._handles: list[Any] = []
        self.begin()
        for part in networks:
            self._handles += [
                part.register_forward_pre_hook(self._before, with_kwargs=True),
                part.register_forward_hook(self._after, always_call=True),
            ]
        for part in controls:
            self._handles += [
                part.register_forward_pre_hook(self._before_control, with_kwargs=True),
                part.register_forward_hook(self._after_control, always_call=True),
            ]

    def __enter__(self) -> "DenoiserHook":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def __deepcopy__(self, memo: Any) -> "DenoiserHook":
        raise ValueError(f"{type(self.pipe).__name__} copies its scheduler, and a hook belongs to one: {WAY_OUT}")

    @property
    def attached(self) -> bool:
        """Whether it has not been removed."""
        return bool(self._handles)

    def remove(self) -> None:
        """Leave the pipeline as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.begin()

    def begin(self) -> None:
        """Called when a run begins."""
        self._checked = False  # whether the pipeline was seen to pass c on as it is
        self._rows: int | None = None  # states in a call of the network that is guided
        self._next_step()

    def _next_step(self) -> None:
        self._outputs: list[Tensor] = []  # of the network, since the last step of the scheduler
        self._left_out = False
        if self._restore is not None:
            self._restore()

    def conditional(self, output: Tensor, state: Tensor, guided: bool) -> Tensor:
        """What the pipeline would pass to its scheduler without guidance in the place of `output`, of the same shape.

        Called once at each step of the scheduler.

        Args:
            output, state: what the pipeline passes to the step.
            guided: whether the call is guided in the plan.

        Raises:
            ValueError: guidance is missing, or the pipeline guides in a way in which it cannot be left out.
        """
        outputs, left_out, name = self._outputs, self._left_out, type(self.pipe).__name__
        self._next_step()
        if left_out and guided:
            raise ValueError(f"{name} makes the calls of the plan in another order, and guidance is missing: {WAY_OUT}")
        sizes, batch = [len(one) for one in outputs], len(state)
        if sizes == [batch]:
            if _doubled(state):  # DiT has both halves in its states
                batch //= 2
            elif guided:
                raise ValueError(
                    f"{name} makes one prediction for each state, without guidance that could be left out: give "
                    "guidance_scale= of more than 1 (true_cfg_scale= and a negative prompt in some pipelines) if it "
                    f"takes that, or {WAY_OUT}"
                )
            elif left_out and not self._known[self._shape].twice:
                raise ValueError(
                    f"{name} guided with {batch} states in its network before, and does not now, when half of them "
                    "were left out: attach the hook again where guidance is switched off"
                )
            else:
                return output  # as where the pipeline stops guiding by itself
        if sizes not in ([2 * batch], [batch, batch]):
            raise ValueError(
                f"guidance cannot be left out of {name}, whose network makes {sizes or 'no'} predictions for a batch "
                f"of {batch}, not two for each state: {WAY_OUT}"
            )
        self._rows = sizes[0]
        pair = outputs if len(outputs) == 2 else outputs[0].split(batch)
        passed = output[:batch]
        if not left_out and self._shape not in self._known:
            if torch.equal(*pair):
                return output
            self._known[self._shape] = self._find(pair, passed, len(outputs) == 2)
        known = self._known[self._shape]
        found = self._fitted(pair[known.conditional], passed) * known.sign
        if not left_out:
            return torch.cat([found] * (len(output) // batch)).to(output.dtype)
        if not self._checked:
            error, limit = (found - passed).norm() / found.norm(), NEAR.get(pair[0].dtype, 1e-4)
            if not float(error) <= limit:
                raise self._unknown()
        self._checked = True
        return output

    def _find(self, pair: Any, passed: Tensor, twice: bool) -> Branches:
        """How the pipeline guides, from a pair of predictions and what it passes on."""
        one, other, made = (self._fitted(part, passed).detach().double().cpu().flatten() for part in (*pair, passed))
        parts = torch.stack([(one + other) / 2, other - one])
        products = parts @ parts.T
        mean, difference = (weights := torch.linalg.solve(products, parts @ made)).tolist()
        left = float((made - weights @ parts).square().sum())
        error = (left / len(made) * float(torch.linalg.inv(products)[1, 1])) ** 0.5
        clear = abs(difference) > abs(mean) / 2 + 2 * error + 1e-4 * abs(mean)  # as of w > 1
        if left > (1 - LEAST_FIT) * float(made.square().sum()) or not clear:
            raise self._unknown()
        if twice and mean * difference > 0:
            raise ValueError(
                f"{type(self.pipe).__name__} predicts without the condition before it predicts with it: guidance "
                f"cannot be left out, {WAY_OUT}"
            )
        return Branches(twice, int(mean * difference > 0), 1.0 if mean > 0 else -1.0)

    def _fitted(self, prediction: Tensor, passed: Tensor) -> Tensor:
        """A prediction of the network in the shape of what the pipeline passes on, which leaves out a learned variance
        and tokens of pictures in the condition."""
        if prediction.numel() == passed.numel():
            return prediction.reshape(passed.shape)
        if prediction.dim() != passed.dim() or any(a < b for a, b in zip(prediction.shape, passed.shape, strict=True)):
            raise self._unknown()
        return prediction[tuple(map(slice, passed.shape))]

    def _unknown(self) -> ValueError:
        return ValueError(
            f"{type(self.pipe).__name__} passes to its scheduler something else than u + w (c - u), w > 1, of "
            f"predictions c with the condition and u without it: guidance cannot be left out, {WAY_OUT}"
        )

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        guided = self._guided()
        if guided is None or self._outputs:
            return None
        self._shape = state_shape(args, kwargs)
        known = self._known.get(self._shape)
        if guided or known is None:
            return None
        self._left_out = True
        return None if known.twice else self._halves(args, kwargs, known.conditional)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        finished = self._after_control(module, args, output)
        output = output if finished is None else finished
        if output is None or self._guided() is None:  # None where the network has raised an error
            return finished
        self._outputs.append(_prediction(output))
        if self._restore is not None:
            self._restore()
        elif self._left_out and finished is None:
            self._answer_with(module, output)
        return finished

    def _answer_with(self, module: nn.Module, output: Any) -> None:
        """Have the next call of the network return a copy of this output, without an evaluation."""
        own, forward = module.__dict__.get("forward"), module.forward
        copied = tree_map_only(Tensor, Tensor.clone, output)

        def answer(*args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs) if self._guided() is not False else copied

        def restore() -> None:
            self._restore = None
            if own is None:
                del module.forward
            else:
                module.forward = own

        module.forward, self._restore = answer, restore

    def _before_control(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rows = state_shape(args, kwargs)[0]
        kinds = {(one.twice, one.conditional) for shape, one in self._known.items() if shape[0] == rows}
        if self._guided() is not False or rows != self._rows or len(kinds) != 1:
            return None  # in "guess mode" it is called under the condition alone
        ((twice, conditional),) = kinds
        return None if twice else self._halves(args, kwargs, conditional)

    def _after_control(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        finish, self._finish = self._finish, None
        return None if finish is None else finish(output)

    def _halves(self, args: tuple[Any, ...], kwargs: dict[str, Any], which: int) -> Any:
        """The inputs of a network for one half of its batch."""
        lists, rows = isinstance(_states(args, kwargs), list), state_shape(args, kwargs)[0]
        self._finish = partial(_twice, lists=lists)
        half = partial(_half, rows=rows, which=which, lists=lists)
        return tuple(half(value, "") for value in args), {name: half(value, name) for name, value in kwargs.items()}


def _states(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The states among the inputs of a network, a tensor (B, ...) or a list of B tensors."""
    named = [kwargs[name] for name in STATES if name in kwargs]
    return [*args, *named, *(one for one in kwargs.values() if isinstance(one, Tensor) and one.dim() > 1)][0]


def state_shape(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of the states among the inputs of a network, the batch first."""
    states = _states(args, kwargs)
    return tuple(states.shape) if isinstance(states, Tensor) else (len(states), *states[0].shape)


def _doubled(state: Tensor) -> bool:
    one, *others = state.chunk(2)
    return bool(others) and torch.equal(one, others[0])


def _half(value: Any, name: str, rows: int, which: int, lists: bool) -> Any:
    """The half of an input of a network for `rows` states; an input that has nothing of a batch as it is. In networks
    of `lists` the lists of as many entries are of the batch."""
    if isinstance(value, Tensor):
        count = len(value) if value.dim() and name not in UNBATCHED else 0
        batched = count == rows or (name in REPEATED and count % rows == 0)
        return value.chunk(2)[which] if batched else value
    if isinstance(value, dict):
        return {key: _half(one, key, rows, which, lists) for key, one in value.items()}
    if type(value) not in (list, tuple):
        return value
    if lists and len(value) == rows:
        return value[which * rows // 2 :][: rows // 2]
    return type(value)(_half(one, name, rows, which, lists) for one in value)


def _twice(output: Any, lists: bool) -> Any:
    """The output of a network with each half of the batch like that of one half."""
    if lists and isinstance(output, list):
        return output + output
    if lists and isinstance(output, tuple):
        return tuple(_twice(one, lists) for one in output)
    return tree_map_only(Tensor, lambda one: torch.cat([one, one]) if one.dim() else one, output)


def _prediction(output: Any) -> Tensor:
    """The prediction (B, ...) in the output of a network."""
    while not isinstance(output, Tensor):
        output = torch.stack(output) if isinstance(output, list) else output[0]
    return output
