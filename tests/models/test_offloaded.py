"""Networks whose weights accelerate keeps elsewhere: in the main memory, on disk, or on several devices."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tables import DISCRETE
from torch import Tensor, nn

from time_tuner import Model, SeededNoise, make_plan, model_wrapper, sample, tune
from time_tuner.models.fingerprint import differences

accelerate = pytest.importorskip("accelerate")
WIDTH = 64


class Network(nn.Module):
    """Four layers of one size, and a table of time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        h = self.first(x) * torch.cos(n / 300)[:, None]
        for layer in self.layers:
            h = h + layer(h).tanh() / 4
        return self.last(h)


def network() -> Network:
    torch.manual_seed(0)
    return Network().eval().requires_grad_(False)


def bytes_of(module: nn.Module) -> int:
    return sum(weight.nbytes for weight in module.parameters() if weight.device.type != "meta")


def in_memory(module: Network, folder: Path) -> nn.Module:
    return accelerate.cpu_offload(module, torch.device("cpu"))


def on_disk(module: Network, folder: Path) -> nn.Module:
    return accelerate.disk_offload(module, str(folder), torch.device("cpu"))


def in_less_memory(module: Network, folder: Path) -> nn.Module:
    """Dispatched with memory for a third of the weights: the rest stays on disk between the calls."""
    memory = {"cpu": bytes_of(module) // 3}
    places = accelerate.infer_auto_device_map(module, memory)
    assert "disk" in places.values()
    return accelerate.dispatch_model(module, places, main_device="cpu", offload_dir=str(folder))


def model_of(module: nn.Module) -> Model:
    return model_wrapper(module, DISCRETE, shape=(4,)).bind()


@pytest.mark.parametrize("place", [in_memory, on_disk, in_less_memory], ids=lambda place: place.__name__)
def test_a_network_that_is_kept_elsewhere_gives_the_same_results(
    place: Callable[[Network, Path], nn.Module], tmp_path: Path
) -> None:
    """Its weights are on no device between the calls, in sampling and in tuning, and a call never holds them all."""
    plan, whole = make_plan("ddim", DISCRETE, 3), network()
    kept = place(network(), tmp_path)
    held: list[int] = []
    for layer in kept.layers:
        layer.register_forward_hook(lambda *_: held.append(bytes_of(kept)))
    assert bytes_of(kept) < bytes_of(whole) / 2
    assert str(model_of(kept).device) == "cpu"
    x = SeededNoise(0)(torch.empty(5, 4))
    assert torch.equal(sample(model_of(kept), plan, x), sample(model_of(whole), plan, x))
    for tuner in ("sequential", "joint(pairs=8, iterations=1, candidates=1)"):
        one, other = (
            tune(model_of(each), plan, tuner, samples=4, guard=False, budget=100_000) for each in (whole, kept)
        )
        assert torch.equal(one.tau, other.tau)
        assert one.corrections is None or torch.equal(one.corrections, other.corrections)  # type: ignore[arg-type]
        assert not differences(one.provenance["made_for"], other.provenance["made_for"])
    assert bytes_of(kept) < bytes_of(whole) / 2 and max(held) < bytes_of(whole)
