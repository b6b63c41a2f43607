"""What a plan belongs to: a fingerprint of the network and of how it is used, and what differs between two of them."""

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from .base import Model

WEIGHTS, NUMBERS = 4, 4
"""Of so many vectors and so many other tensors among the weights, so many numbers each are kept."""

ROUNDED = 0.02
"""The largest relative difference of two weights that one has through another dtype."""

RELATED = 0.9
"""The least cosine between the weights of a network and those of one that was tuned from it."""

SAME, MEASURE, OTHER = "probably harmless", "measure the plan", "tune another plan"
"""What to expect of a difference."""

STORED = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Difference:
    """One thing in which a model differs from the one that a plan was tuned for.

    Attributes:
        what: a name, such as "dtype".
        made_for, found: the two values, as texts.
        expect: `SAME`, `MEASURE` or `OTHER`.
    """

    what: str
    made_for: str
    found: str
    expect: str

    def __str__(self) -> str:
        return f"{self.what} ({self.made_for}, now {self.found}: {self.expect})"


def network_fingerprint(network: Any) -> dict[str, Any]:
    """The class of a network, a hash of its architecture, a few of its weights, its dtype, and how it is quantised.

    The architecture is hashed from the names and sizes of its vectors, which a quantised copy keeps. The weights are a
    few numbers of a few tensors, chosen by the hash of their names, so that copies in another dtype, fine-tunes and
    other networks can be distinguished. No network call is made. Of what is no torch module there is nothing.
    """
    if not isinstance(network, nn.Module):
        return {}
    network = _unwrapped(network)
    tensors = {_plain(name): value for name, value in network.named_parameters() if "lora_" not in name}
    vectors = sorted(f"{name} {len(value)}" for name, value in tensors.items() if value.dim() == 1)
    found: dict[str, Any] = {
        "class": type(network).__name__,
        "architecture": sha256("\n".join(vectors).encode()).hexdigest()[:16],
        "weights": {name: _numbers(tensors[name]) for name in _chosen(tensors)},
    }
    counts = Counter[str]()
    for value in tensors.values():
        counts[str(value.dtype).removeprefix("torch.")] += value.numel()
    if counts:
        found["dtype"] = counts.most_common(1)[0][0]
    if (kind := _quantisation(network, tensors)) is not None:
        found["quantisation"] = kind
    if any("lora_" in name for name, _ in network.named_parameters()):
        found["adapters"] = True
    return found


def differences(made_for: Mapping[str, Any], found: Mapping[str, Any]) -> list[Difference]:
    """In what a model differs from the one that a plan was tuned for, the gravest first.

    What only one of the two fingerprints has is not compared, but for guidance and quantisation.
    """
    old, new = (_values(fingerprint.get("network")) for fingerprint in (made_for, found))
    differ: list[Difference] = []

    def compare(what: str, a: Any, b: Any, expect: str) -> None:
        if a is not None and type(a) is type(b) and a != b:
            differ.append(Difference(what, _text(a), _text(b), expect))

    if old and new:
        compare("network", old.get("class"), new.get("class"), OTHER)
        was, now = old.get("quantisation", "none"), new.get("quantisation", "none")
        compare("quantisation", was, now, MEASURE)
        if was == now and not differ:
            compare("architecture", old.get("architecture"), new.get("architecture"), OTHER)
        compare("adapters", bool(old.get("adapters")), bool(new.get("adapters")), MEASURE)
        if was == now:
            compare("dtype", old.get("dtype"), new.get("dtype"), SAME)
        if not any(one.expect == OTHER for one in differ):
            differ += _of_weights(_values(old.get("weights")), _values(new.get("weights")))
    for what in ("prediction_type", "inverted"):
        compare(what, made_for.get(what), found.get(what), OTHER)
    for what in ("clip", "thresholding", "conditions", "shape"):
        compare(what, made_for.get(what), found.get(what), MEASURE)
    w, v = (fingerprint.get("guidance_scale", 1.0) for fingerprint in (made_for, found))
    if isinstance(w, int | float) and isinstance(v, int | float) and not math.isclose(w, v, rel_tol=1e-6):
        near = abs(w - v) <= 0.1 * max(abs(w), abs(v))
        differ.append(Difference("guidance_scale", f"{w:g}", f"{v:g}", SAME if near else MEASURE))
    return sorted(differ, key=lambda one: [OTHER, MEASURE, SAME].index(one.expect))


def warn_of_mismatch(provenance: Mapping[str, Any], model: Model, shape: Sequence[int] | None = None) -> None:
    """Warn if a plan with this provenance was tuned for another network, schedule, guidance or size than a model's.

    `shape` is that of one sample, for a model that does not know it.
    """
    made_for = _values(provenance.get("made_for"))
    if not made_for:
        return
    found = fingerprint_of(model, shape)
    if differ := differences(made_for, found):
        text = "; ".join(map(str, differ))
        warnings.warn(f"the plan was tuned for another model: {text}", UserWarning, stacklevel=3)


def fingerprint_of(model: Model, shape: Sequence[int] | None = None) -> dict[str, Any]:
    """`Model.fingerprint` with the shape of one sample; empty for a model that has none."""
    found, shape = model.fingerprint(), model.shape if shape is None else shape
    return found and (found | ({} if shape is None else {"shape": list(shape)}))


def _of_weights(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """The difference between the weights that two fingerprints share."""
    shared = [name for name in old if name in new and len(old[name]) == len(new[name])]
    a, b = (torch.tensor([v for name in shared for v in one[name]], dtype=torch.float64) for one in (old, new))
    if not len(a) or torch.allclose(a, b, rtol=ROUNDED, atol=ROUNDED * float(a.abs().mean())):
        return []
    cosine = float(a @ b / (a.norm() * b.norm()).clamp(min=1e-300))
    if cosine >= RELATED:
        return [Difference("weights", "others", f"those of a fine-tune, cosine {cosine:.3f}", SAME)]
    return [Difference("weights", "others", f"those of another training, cosine {cosine:.2f}", OTHER)]


def _chosen(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors whose numbers are kept."""
    stored = {name: value for name, value in tensors.items() if str(value.dtype).removeprefix("torch.") in STORED}
    names = sorted(
        (name for name, value in stored.items() if value.numel() and value.device.type != "meta"),
        key=lambda name: sha256(name.encode()).digest(),
    )
    vectors = [name for name in names if stored[name].dim() == 1]
    others = [name for name in names if stored[name].dim() > 1]
    return sorted([*vectors[:WEIGHTS], *others[:WEIGHTS]])


@torch.no_grad()
def _numbers(value: Tensor) -> list[float]:
    """A few numbers of a tensor, at even places, with 4 digits."""
    places = torch.linspace(0, value.numel() - 1, min(NUMBERS, value.numel()), dtype=torch.float64).long()
    # Not by `reshape`, which copies tensors of another memory format.
    numbers = value.detach()[torch.unravel_index(places.to(value.device), value.shape)].double().cpu().tolist()
    return [float(f"{number:.4g}") if math.isfinite(number) else 0.0 for number in numbers]


def _quantisation(network: nn.Module, tensors: Mapping[str, Tensor]) -> str | None:
    """How a network is quantised; None if it is not."""
    config = getattr(network, "config", None)
    given = config.get("quantization_config") if isinstance(config, Mapping) else None
    if given is not None:
        method = given.get("quant_method") if isinstance(given, Mapping) else getattr(given, "quant_method", None)
        return str(getattr(method, "value", method) or type(given).__name__)
    for value in tensors.values():
        kind, dtype = type(value.data).__name__, str(value.dtype).removeprefix("torch.")
        if dtype not in STORED and not value.dtype.is_complex:
            return dtype
        if kind not in ("Tensor", "Parameter", "DTensor", "FakeTensor"):
            return kind
    return None


def _unwrapped(network: nn.Module) -> nn.Module:
    """The network inside of modules that hold nothing else, as of compiled networks and of the user's own wrappers."""
    while len(children := list(network.children())) == 1 and not list(network.parameters(recurse=False)):
        (network,) = children
    return network


def _plain(name: str) -> str:
    """The name of a parameter without the wrappers of adapters."""
    return name.replace(".base_layer.", ".").replace("base_model.model.", "")


def _values(given: Any) -> Mapping[str, Any]:
    return given if isinstance(given, Mapping) else {}


def _text(value: Any) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
