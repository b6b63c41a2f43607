"""Tuning needs forward calls of a network alone: compiled, quantised or exported ones will do."""

import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import seeded
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from time_tuner import TUNERS, NoiseScheduleVP, Plan, make_plan, model_wrapper, sample, tune
from time_tuner.models.base import Model

SIZE, WIDTH = 8, 1024
DATA = seeded(256, SIZE, seed=1).float() * torch.linspace(0.3, 1.5, SIZE)


class Network(nn.Module):
    """A network of one hidden layer that sees something of the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(SIZE + 2, WIDTH), nn.Tanh(), nn.Linear(WIDTH, SIZE))
        for i, weight in enumerate(self.parameters()):
            with torch.no_grad():
                weight.copy_(0.15 * seeded(*weight.shape, seed=i).float())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        s = t[:, None] / 1000
        hidden: Tensor = self.body(torch.cat([x, s, torch.sin(6 * s)], 1))
        return s * x + 0.3 * hidden


@pytest.fixture
def network() -> Network:
    return Network().eval()


def bound(network: Callable[..., Tensor], schedule: NoiseScheduleVP) -> Model:
    return model_wrapper(network, schedule).bind()


def tuned(network: Callable[..., Tensor], schedule: NoiseScheduleVP, **options: Any) -> Plan:
    plan = make_plan("ddim", schedule, 5, "quadratic")
    return tune(bound(network, schedule), plan, data=DATA, guard=False, **options)


def same(a: Plan, b: Plan, tau: float = 1e-3, loss: float = 1e-5) -> None:
    assert a.tuned
    torch.testing.assert_close(a.tau, b.tau, rtol=0, atol=tau)
    totals = [sum(plan.provenance["loss"]["tuned"]) for plan in (a, b)]
    assert totals[0] == pytest.approx(totals[1], rel=loss)


@pytest.mark.parametrize("method", ["sequential", "parallel"])
def test_the_batch_does_not_matter(network: Network, discrete: NoiseScheduleVP, method: str) -> None:
    whole = tuned(network, discrete, tuner=method)
    same(tuned(network, discrete, tuner=method, batch=32), whole)
    same(tuned(network, discrete, tuner=method, batch=100), whole)


def test_threads_do_not_matter(network: Network, discrete: NoiseScheduleVP) -> None:
    one = tuned(network, discrete)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        same(tuned(network, discrete), one)
    finally:
        torch.set_num_threads(threads)


def test_inference_mode_will_do(network: Network, discrete: NoiseScheduleVP) -> None:
    def strict(x: Tensor, t: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        return network(x, t)

    with torch.inference_mode():
        inside = tuned(strict, discrete)
    assert torch.equal(inside.tau, tuned(network, discrete).tau)


def test_no_gradient_is_computed(network: Network, discrete: NoiseScheduleVP) -> None:
    def strict(x: Tensor, t: Tensor) -> Tensor:
        assert not torch.is_grad_enabled() and not t.requires_grad
        return network(x, t)

    for method in ("sequential", "parallel"):
        for objective in ("published", "noise", "substeps"):
            tuned(strict, discrete, tuner=TUNERS[method](objective=objective))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])  # which compiles C++
def test_compiled_networks_are_tuned(network: Network, discrete: NoiseScheduleVP, backend: str) -> None:
    compiled = torch.compile(network, backend=backend)
    same(tuned(compiled, discrete), tuned(network, discrete))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_networks_are_tuned(network: Network, discrete: NoiseScheduleVP) -> None:
    quantisation = pytest.importorskip("torch.ao.quantization")
    if torch.backends.quantized.engine == "none":
        pytest.skip("this torch has no quantised kernels")
    small = quantisation.quantize_dynamic(network, {nn.Linear}, torch.qint8)
    x, t = DATA[:4], torch.full((4,), 500.0)
    assert not torch.equal(small(x, t), network(x, t)), "it is another network"
    plan = tuned(small, discrete)
    same(plan, tuned(network, discrete), tau=0.05, loss=0.05)
    assert sum(plan.provenance["loss"]["tuned"]) < sum(plan.provenance["loss"]["untuned"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_networks_of_another_runtime_are_tuned(network: Network, discrete: NoiseScheduleVP) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    file = io.BytesIO()
    sizes = {"x": {0: "batch"}, "t": {0: "batch"}}
    example = (DATA[:2], torch.zeros(2))
    torch.onnx.export(network, example, file, input_names=["x", "t"], dynamic_axes=sizes, dynamo=False)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])

    def elsewhere(x: Tensor, t: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"x": x.numpy(), "t": t.contiguous().numpy()})[0])

    same(tuned(elsewhere, discrete), tuned(network, discrete))


class Peak(TorchDispatchMode):
    """The most bytes that were held at once by tensors made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[int, int]] = {}  # storage: its bytes, and how many tensors share it
        self.bytes = self.most = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = op(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage.data_ptr(), storage.nbytes()
                held, sharing = self.live.get(key, (size, 0))
                self.bytes += 0 if sharing else held
                self.live[key] = held, sharing + 1
                weakref.finalize(tensor, self._gone, key)
        self.most = max(self.most, self.bytes)
        return made

    def _gone(self, key: int) -> None:
        held, sharing = self.live.pop(key)
        if sharing > 1:
            self.live[key] = held, sharing - 1
        else:
            self.bytes -= held


def peak(work: Callable[[], Any]) -> int:
    with Peak() as watched:
        work()
    return watched.most


@pytest.mark.parametrize("objective", ["published", "substeps"])
@pytest.mark.parametrize("batch", [32, 256])
def test_memory_is_that_of_sampling_the_same_batch(
    network: Network, discrete: NoiseScheduleVP, batch: int, objective: str
) -> None:
    """Besides the states of what is tuned on, some of (256, ...), which no batch makes smaller."""
    plan, noise = make_plan("ddim", discrete, 5, "quadratic"), seeded(batch, SIZE).float()
    states = 24 * DATA.numel() * 4
    sampling = peak(lambda: sample(bound(network, discrete), plan, noise))
    assert sampling > batch * WIDTH * 4, "the network's own tensors are counted"
    assert states < sampling
    assert (
        peak(lambda: tuned(network, discrete, batch=batch, tuner=f"sequential(objective={objective})"))
        <= sampling + states
    )
