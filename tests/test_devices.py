"""Runs need no float64 on the device of the states; Apple's has none. Points and times are float64, on the CPU."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tables import AROUND, DISCRETE, EVERY, FLOW, INNER, MIXTURE, VE
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from time_tuner import Model, SeededNoise, make_plan, model_wrapper, sample, trajectory, tune
from time_tuner.graphs import as_graph
from time_tuner.models.exact import Gaussian
from time_tuner.samplers import Sampler
from time_tuner.schedules import NoiseSchedule
from time_tuner.tuners import ReferenceDistance

GRIDS = {DISCRETE: [1.0, 0.7, 0.4, 0.1, 0.0], FLOW: [1.0, 0.7, 0.4, 0.1, 0.0], VE: [80.0, 10.0, 1.0, 0.1, 0.0]}


class NoFloat64(TorchDispatchMode):
    """A mode in which an operation that makes float64 of float32 or less is an AssertionError: it fails on a device
    without float64, such as Apple's. Points, times and weights are float64 from the beginning, on the CPU.

    Args:
        shape: of one state. If given, operations on other tensors than states (..., *shape) are free: numbers of a
            state that were moved to the CPU may become float64 there.
    """

    def __init__(self, shape: tuple[int, ...] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shape = shape

    def _on_device(self, value: Tensor) -> bool:
        held = value.is_floating_point() or value.is_complex()
        return held and (self.shape is None or tuple(value.shape[-len(self.shape) :]) == self.shape)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if any(value.dtype in DOUBLES for value in tensors_of(made)):
            given = tensors_of((args, *(kwargs or {}).values()))
            single = any(value.dtype not in DOUBLES for value in given if self._on_device(value))
            assert not single, f"states are computed without float64, {func} makes it of them"
        return made


DOUBLES = (torch.float64, torch.complex128)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in a value of an operation, a tensor or a list of some; faster than torch's own, for every one."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_of(each)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.double(),
        lambda x: x.to(torch.float64),
        lambda x: x.sum(dtype=torch.float64),
        lambda x: x.bfloat16().double(),
        lambda x: x * torch.ones(1, dtype=torch.float64),
        lambda x: torch.zeros(2, 3, dtype=torch.float64).copy_(x),
        lambda x: x.to(torch.complex128),
    ],
)
def test_float64_made_of_a_state_is_noticed(make: Callable[[Tensor], Tensor]) -> None:
    for mode in (NoFloat64(), NoFloat64((3,))):
        with pytest.raises(AssertionError, match="computed without float64"), mode:
            make(torch.ones(2, 3))


def test_float64_of_other_numbers_is_free() -> None:
    with NoFloat64((3,)):
        torch.ones(4).double()
    with NoFloat64():
        x = torch.ones(2, 3) * torch.tensor(0.5, dtype=torch.float64)  # which does not change the dtype of x
        torch.ones(2, 3, dtype=torch.float64).float()
    assert x.dtype == torch.float32


@pytest.mark.parametrize("schedule", GRIDS, ids=repr)
@pytest.mark.parametrize("sampler", EVERY, ids=repr)
def test_sampling_needs_no_float64(sampler: Sampler, schedule: NoiseSchedule) -> None:
    plan = make_plan(sampler, schedule, times=GRIDS[schedule])
    moved = plan.with_corrections(0.1 * torch.ones(len(plan), len(plan), dtype=torch.float64).tril(-1))
    for dtype in (torch.float32, torch.bfloat16):
        noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
        with NoFloat64():
            for each in (plan, moved):
                end = sample(MIXTURE.eps(schedule), each, each.initial_state(noise), SeededNoise(5))
                assert end.dtype == dtype and end.isfinite().all()


@pytest.mark.parametrize("sampler", EVERY, ids=repr)
def test_gradients_through_a_run_need_no_float64(sampler: Sampler) -> None:
    plan = make_plan(sampler, DISCRETE, times=GRIDS[DISCRETE])
    times, tau = plan.step_times.clone().requires_grad_(), plan.tau.clone().requires_grad_()
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    moved = plan.with_times(times).with_tau(tau)
    with NoFloat64((4, 2)):
        *_, end = trajectory(MIXTURE.eps(DISCRETE), moved, x, SeededNoise(5))
        loss = end.square().mean()
    loss.backward()
    assert tau.grad is not None and tau.grad.isfinite().all() and times.grad is not None


@pytest.mark.parametrize("name", [*INNER, *(f"{around}: {inner}" for around in AROUND for inner in ("Mixture",))])
def test_models_need_no_float64(name: str) -> None:
    around, _, inner = name.rpartition(": ")
    model = INNER[inner]() if not around else AROUND[around](INNER[inner]())
    if name == "function":
        return  # of the test, which reads its time
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    t = 0.5 * model.schedule.T
    each = t * torch.linspace(0.5, 1.0, 6, dtype=torch.float64)
    with NoFloat64((2,)):  # the networks of this test have their time in float64
        for time in (t, each):
            for quantity in ("eps", "x0"):
                prediction = model.predict(quantity, x, time, 0.9 * time)
                assert prediction.dtype == torch.float32 and prediction.isfinite().all()


class OnDevice(TorchDispatchMode):
    """A mode in which the device "meta" stands for an accelerator: float64 that is made there is an AssertionError.
    Whatever reads a number of it back to the host is an error of torch."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tensors_of(made):
            if value.device.type == "meta":
                assert value.dtype not in DOUBLES, f"{func} makes float64 on the device"
        return made


@pytest.mark.parametrize("read", [lambda x: x.sum().item(), lambda x: bool((x > 0).all()), lambda x: x.cpu()])
def test_what_a_device_stand_in_reads_back_is_an_error(read: Callable[[Tensor], Any]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)), OnDevice():
        read(torch.ones(2, device="meta"))


def test_float64_on_the_stand_in_is_noticed() -> None:
    with pytest.raises(AssertionError, match="float64 on the device"), OnDevice():
        torch.ones(2, device="meta").double()


@pytest.mark.parametrize(
    ("schedule", "kind", "dtype"),
    [
        *((schedule, "v", torch.bfloat16) for schedule in GRIDS),
        (DISCRETE, "noise", torch.float32),
        (FLOW, "x_start", torch.float32),
    ],
    ids=str,
)
def test_the_loop_reads_nothing_back_from_the_device(schedule: NoiseSchedule, kind: str, dtype: torch.dtype) -> None:
    """Of every sampler: the host does not wait for the device until the end of the run."""
    model = model_wrapper(lambda x, n: x * torch.sigmoid(n / 300 - 1)[:, None].to(x), schedule, kind).bind()
    x = torch.empty(4, 2, dtype=dtype, device="meta")
    for sampler in EVERY:
        plan = make_plan(sampler, schedule, times=GRIDS[schedule])
        moved = plan.with_corrections(0.1 * torch.ones(len(plan), len(plan), dtype=torch.float64).tril(-1))
        with OnDevice():
            *_, end = trajectory(model, moved, moved.initial_state(x), SeededNoise(5))
        assert end.device.type == "meta" and end.dtype == dtype


def layer_model(kind: str) -> Model:
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4).requires_grad_(False)
    return model_wrapper(lambda x, n: layer(x) * torch.cos(n / 300)[:, None], DISCRETE, kind).bind()


@pytest.mark.parametrize(("sampler", "kind"), [("ddim", "noise"), ("unipc(order=3)", "x_start"), ("heun", "v")])
def test_the_graph_of_a_plan_is_its_run(sampler: str, kind: str) -> None:
    model, plan = layer_model(kind), make_plan(sampler, DISCRETE, 6)
    moved = plan.with_corrections(0.1 * torch.ones(6, 6, dtype=torch.float64).tril(-1))
    first, other = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).unbind()
    graph = as_graph(model, moved, first)
    assert torch.equal(graph(other), sample(model, moved, other))
    assert all(value.dtype == torch.float32 for value in graph.state_dict().values())


def test_the_graph_of_a_plan_compiles_whole() -> None:
    model, plan, x = layer_model("v"), make_plan("dpmpp", DISCRETE, 3), torch.ones(2, 4)
    compiled = torch.compile(as_graph(model, plan, x), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(2 * x), sample(model, plan, 2 * x))


def test_a_graph_draws_the_noise_of_its_sampler() -> None:
    model, plan, x = layer_model("noise"), make_plan("ddpm", DISCRETE, 3), torch.ones(2, 4)
    graph = as_graph(model, plan, x)
    assert not torch.equal(graph(x), graph(x))


def test_a_graph_of_a_model_that_looks_at_the_state_is_refused() -> None:
    def looks(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="must not read the state back"):
        as_graph(looks, make_plan("ddim", DISCRETE, 3), torch.ones(2, 4))


@pytest.mark.cuda
def test_a_plan_is_one_cuda_graph() -> None:
    plan, x = make_plan("dpmpp", DISCRETE, 3), torch.ones(2, 4, device="cuda")
    layer = torch.nn.Linear(4, 4).requires_grad_(False).cuda()
    model = model_wrapper(lambda x, n: layer(x) * torch.cos(n / 300)[:, None], DISCRETE, "v").bind()
    run, y = as_graph(model, plan, x), 2 * x
    for _ in range(3):
        run(x)
    captured, held = torch.cuda.CUDAGraph(), x.clone()
    with torch.cuda.graph(captured):
        end = run(held)
    held.copy_(y)
    captured.replay()
    torch.testing.assert_close(end, sample(model, plan, y))


@pytest.mark.cuda
@pytest.mark.parametrize("tuner", ["sequential", "joint(pairs=16, iterations=3)", "least_squares(pairs=16)"])
def test_tuning_on_cuda_finds_the_plan_of_the_cpu(tuner: str) -> None:
    plan, found = make_plan("ddim", DISCRETE, times=GRIDS[DISCRETE]), []
    for device in ("cpu", "cuda"):
        model = model_wrapper(lambda x, n: x * torch.sigmoid(n.float() / 300 - 1)[:, None], DISCRETE)
        found.append(tune(model.bind(), plan, tuner, samples=8, shape=(5,), device=device, guard=False))
    torch.testing.assert_close(found[0].tau, found[1].tau, rtol=1e-3, atol=1e-3)


TUNED = {
    "sequential": {},
    "sequential(optimizer=adam, iterations=3)": {},
    "sequential(objective=published)": {},
    "parallel": {"batch": 16},
    "joint(pairs=16, iterations=3)": {},
    "joint(pairs=16, iterations=3, checkpoint_steps=True)": {},
    "joint(pairs=16, iterations=1, gradients=False)": {},
    "least_squares(pairs=16)": {},
}


QUICK = ("sequential", "joint(pairs=16, iterations=3)")


@pytest.mark.parametrize(
    ("tuner", "dtype"),
    [
        *((tuner, torch.float32) for tuner in TUNED),
        *((tuner, torch.bfloat16) for tuner in QUICK),
        *(pytest.param(tuner, torch.bfloat16, marks=pytest.mark.slow) for tuner in TUNED if tuner not in QUICK),
    ],
)
@pytest.mark.usefixtures("short_runs")
def test_tuning_and_the_guard_need_no_float64(tuner: str, dtype: torch.dtype) -> None:
    """What is summed over a sample is summed in float32, and moved to the CPU before it becomes float64."""

    def network(x: Tensor, n: Tensor) -> Tensor:
        return (x.float() * torch.sigmoid(n.float() / 300 - 1)[:, None, None]).to(dtype)

    model, plan = model_wrapper(network, DISCRETE).bind(), make_plan("ddim", DISCRETE, times=GRIDS[DISCRETE])
    with NoFloat64((5, 7)):
        tuned = tune(model, plan, tuner, samples=8, shape=(5, 7), **TUNED[tuner])
    assert tuned.provenance["distance"]["tuned"] <= tuned.provenance["distance"]["untuned"]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim(eta=1)", "sde_dpmpp"])
@pytest.mark.usefixtures("short_runs")
def test_tuning_of_samplers_with_noise_needs_no_float64(sampler: str) -> None:
    model = model_wrapper(lambda x, n: x * torch.sigmoid(n.float() / 300 - 1)[:, None, None], DISCRETE)
    with NoFloat64((5, 7)):
        tune(model.bind(), make_plan(sampler, DISCRETE, 4), data=torch.ones(8, 5, 7), samples=8)


def test_distances_without_float64_are_those_with_it() -> None:
    x = torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    near = x + 1e-3 * x.flip(0)
    for stochastic in (False, True):
        got, expected = (
            ReferenceDistance(lambda x, t, tau: x, DISCRETE, 0.0, start, 10).of_ends(start + near.to(start), stochastic)
            for start in (x, x.double())
        )
        assert got.dtype == torch.float64 and got.device.type == "cpu"
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_exact_models_of_single_numbers_need_no_float64() -> None:
    """0-dim tensors of two dtypes make float64, where a device holds both."""
    model, x = Gaussian(1.0, 0.5).eps(DISCRETE), torch.ones(4, 1)
    with NoFloat64():
        assert model(x, 0.5).dtype == model.x0(x, 0.5).dtype == torch.float32
