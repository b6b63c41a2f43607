"""A stand-in of the interfaces of ComfyUI that a node for sampling meets, written from their contracts.

Noise is counted as sigma / alpha, and a state is x / alpha; in a rectified flow both are sigma and x. A sampler
function receives `model(x, sigma, **extra_args)`, which returns the predicted data after guidance.
"""

import copy
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


def _beside(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.reshape(()) if sigma.numel() == 1 else sigma.reshape(-1, *[1] * (x.dim() - 1))


class Sampling(nn.Module):
    """States x_0 + sigma eps, with noise levels from betas; the network predicts "eps" or "v"."""

    sigma_data = 1.0

    def __init__(self, betas: Tensor | None = None, predicts: str = "eps") -> None:
        super().__init__()
        self.predicts = predicts
        if betas is not None:
            kept = torch.cumprod(1 - betas, 0)
            self.set_sigmas(((1 - kept) / kept).sqrt())

    def set_sigmas(self, sigmas: Tensor) -> None:
        self.register_buffer("sigmas", sigmas.float())
        self.register_buffer("log_sigmas", sigmas.log().float())

    @property
    def sigma_max(self) -> Tensor:
        return self.sigmas[-1]

    @property
    def sigma_min(self) -> Tensor:
        return self.sigmas[0]

    def timestep(self, sigma: Tensor) -> Tensor:
        """The nearest level."""
        return (sigma.log().reshape(1, -1) - self.log_sigmas[:, None]).abs().argmin(0).reshape(sigma.shape)

    def sigma(self, timestep: Tensor) -> Tensor:
        """Between two levels log(sigma) is linear."""
        n = timestep.float().clamp(0, len(self.sigmas) - 1)
        low, high = n.floor().long(), n.ceil().long()
        return torch.lerp(self.log_sigmas[low], self.log_sigmas[high], n.frac()).exp()

    def percent_to_sigma(self, percent: float) -> float:
        return (
            math.inf if percent <= 0 else 0.0 if percent >= 1 else float(self.sigma(torch.tensor(999 * (1 - percent))))
        )

    def calculate_input(self, sigma: Tensor, x: Tensor) -> Tensor:
        return x / (_beside(sigma, x) ** 2 + self.sigma_data**2).sqrt()

    def calculate_denoised(self, sigma: Tensor, output: Tensor, x: Tensor) -> Tensor:
        s, d = _beside(sigma, x), self.sigma_data
        if self.predicts == "eps":
            return x - s * output
        both = s**2 + d**2
        sign = 1 if self.predicts == "edm" else -1
        return x * d**2 / both + sign * output * s * d / both.sqrt()

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor, max_denoise: bool = False) -> Tensor:
        s = _beside(sigma, noise)
        return noise * ((1 + s**2).sqrt() if max_denoise else s) + latent

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent


class EDMSampling(Sampling):
    """EDM's network, in continuous time."""

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5) -> None:
        super().__init__(predicts="edm")
        self.sigma_data = sigma_data
        self.set_sigmas(torch.linspace(math.log(sigma_min), math.log(sigma_max), 1000).exp())

    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4

    def sigma(self, timestep: Tensor) -> Tensor:
        return (4 * timestep).exp()


class FlowSampling(Sampling):
    """A rectified flow: states (1 - sigma) x_0 + sigma eps, and the network predicts eps - x_0."""

    def __init__(self, shift: float = 1.0, multiplier: float = 1000.0, noise_scale: float = 1.0) -> None:
        super().__init__()
        self.shift, self.multiplier, self.noise_scale = shift, multiplier, noise_scale
        self.register_buffer("sigmas", self.sigma(torch.arange(1, 1001) / 1000 * multiplier))

    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma * self.multiplier

    def sigma(self, timestep: Tensor) -> Tensor:
        t = timestep / self.multiplier
        return self.shift * t / (1 + (self.shift - 1) * t)

    def calculate_input(self, sigma: Tensor, x: Tensor) -> Tensor:
        return x

    def calculate_denoised(self, sigma: Tensor, output: Tensor, x: Tensor) -> Tensor:
        return x - _beside(sigma, x) * output

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor, max_denoise: bool = False) -> Tensor:
        s = _beside(sigma, noise)
        return s * self.noise_scale * noise + (1 - s) * latent

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent / (1 - _beside(sigma, latent))


class BaseModel:
    """A network under its `model_sampling`."""

    def __init__(self, network: Callable[..., Tensor], sampling: Sampling) -> None:
        self.network, self.model_sampling = network, sampling
        self.times: list[Tensor] = []

    def apply_model(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        time = self.model_sampling.timestep(sigma).float()
        self.times.append(time)
        state = self.model_sampling.calculate_input(sigma, x)
        output = self.network(state, time) if cond is None else self.network(state, time, cond)
        return self.model_sampling.calculate_denoised(sigma, output, x)


class Patcher:
    """MODEL: a model, and patches of its objects that hold while it is sampled."""

    def __init__(self, model: BaseModel) -> None:
        self.model, self.object_patches, self.model_options = model, dict[str, Any](), dict[str, Any]()

    def clone(self) -> "Patcher":
        other = copy.copy(self)
        other.object_patches, other.model_options = dict(self.object_patches), dict(self.model_options)
        return other

    def get_model_object(self, name: str) -> Any:
        return self.object_patches.get(name, getattr(self.model, name))

    def add_object_patch(self, name: str, value: Any) -> None:
        self.object_patches[name] = value

    @contextmanager
    def loaded(self) -> Iterator[BaseModel]:
        before = {name: getattr(self.model, name) for name in self.object_patches}
        vars(self.model).update(self.object_patches)
        try:
            yield self.model
        finally:
            vars(self.model).update(before)


def sampling_function(
    model: BaseModel,
    x: Tensor,
    timestep: Tensor,
    uncond: Any,
    cond: Any,
    cond_scale: float,
    model_options: Any = None,
    seed: Any = None,
) -> Tensor:
    """The predicted data under classifier-free guidance; at scale 1 of the condition alone. Functions in the options
    may change it."""
    alone = guided = model.apply_model(x, timestep, cond)
    if uncond is not None and not math.isclose(cond_scale, 1):
        guided = torch.lerp(model.apply_model(x, timestep, uncond), alone, cond_scale)
    for change in (model_options or {}).get("sampler_post_cfg_function", []):
        guided = change({"denoised": guided, "cond_denoised": alone, "input": x, "sigma": timestep})
    return guided


class CFGGuider:
    """GUIDER: what a sampler calls for predictions."""

    def __init__(self, model_patcher: Patcher) -> None:
        self.model_patcher, self.model_options, self.cfg = model_patcher, model_patcher.model_options, 1.0
        self.conds: dict[str, Any] = {}

    def set_conds(self, positive: Any, negative: Any) -> None:
        self.conds = {"positive": positive, "negative": negative}

    def set_cfg(self, cfg: float) -> None:
        self.cfg = cfg

    def __call__(self, x: Tensor, sigma: Tensor, model_options: Any = None, seed: Any = None) -> Tensor:
        return self.predict_noise(x, sigma, model_options or {}, seed)

    def predict_noise(self, x: Tensor, sigma: Tensor, model_options: Any = None, seed: Any = None) -> Tensor:
        conds = self.conds.get("negative"), self.conds.get("positive")
        return sampling_function(self.inner_model, x, sigma, *conds, self.cfg, model_options, seed)

    def sample(
        self, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor, callback: Any = None, seed: int = 0
    ) -> Tensor:
        with self.model_patcher.loaded() as self.inner_model:
            extra = {"model_options": {"transformer_options": {"sample_sigmas": sigmas}}, "seed": seed}
            return sampler.sample(self, sigmas, extra, callback, noise, latent_image)


class MaskedModel:
    """What a sampler function receives as its model; here without a mask."""

    def __init__(self, model: CFGGuider, sigmas: Tensor) -> None:
        self.inner_model, self.sigmas = model, sigmas

    def __call__(
        self, x: Tensor, sigma: Tensor, denoise_mask: Any = None, model_options: Any = None, seed: Any = None
    ) -> Tensor:
        return self.inner_model(x, sigma, model_options=model_options, seed=seed)


class KSAMPLER:
    """SAMPLER: a sampler function."""

    def __init__(self, sampler_function: Any, extra_options: Any = None, inpaint_options: Any = None) -> None:
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(
        self, model: CFGGuider, sigmas: Tensor, extra_args: Any, callback: Any, noise: Tensor, latent_image: Tensor
    ) -> Tensor:
        extra_args["denoise_mask"] = None
        masked, sampling, first = MaskedModel(model, sigmas), model.inner_model.model_sampling, float(sigmas[0])
        masked.latent_image, masked.noise = latent_image, noise
        maximal = first > float(sampling.sigma_max) * (1 - 1e-5)
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, maximal)

        def report(of: Any) -> None:
            if callback is not None:
                callback(of["i"], of["denoised"], of["x"], len(sigmas) - 1)

        x = self.sampler_function(
            masked, x, sigmas, extra_args=extra_args, callback=report, disable=True, **self.extra_options
        )
        return sampling.inverse_noise_scaling(sigmas[-1], x)


def _io() -> Any:
    """The part of the V3 schema that the node uses: inputs and outputs as records."""

    def kind(name: str) -> Any:
        def given(*args: Any, **kwargs: Any) -> Any:
            return SimpleNamespace(kind=name, id=args[0] if args else None, **kwargs)

        return SimpleNamespace(Input=given, Output=given)

    class NodeOutput:
        def __init__(self, *args: Any) -> None:
            self.result = args

    class ComfyNode:
        pass

    kinds = {name: kind(name.upper()) for name in ("Model", "Combo", "Int", "Float", "Sampler", "Sigmas", "Guider")}
    kinds["Conditioning"] = kind("CONDITIONING")
    return SimpleNamespace(**kinds, Schema=SimpleNamespace, NodeOutput=NodeOutput, ComfyNode=ComfyNode)


def modules(folder: Any, v3: bool = True) -> dict[str, ModuleType | None]:
    """The modules that the node imports, for `sys.modules`; without the V3 schema its import fails."""
    comfy, samplers, paths = ModuleType("comfy"), ModuleType("comfy.samplers"), ModuleType("folder_paths")
    vars(samplers).update(KSAMPLER=KSAMPLER, CFGGuider=CFGGuider, sampling_function=sampling_function)
    vars(comfy).update(samplers=samplers)
    folders: dict[str, Any] = {}
    vars(paths).update(
        models_dir=str(folder),
        add_model_folder_path=lambda name, path: folders.setdefault(name, path),
        get_filename_list=lambda name: sorted(
            file.relative_to(folder / name).as_posix() for file in (folder / name).rglob("*") if file.is_file()
        ),
        get_full_path=lambda name, file: str(folder / name / file) if (folder / name / file).is_file() else None,
    )
    made: dict[str, ModuleType | None] = {"comfy": comfy, "comfy.samplers": samplers, "folder_paths": paths}
    if not v3:
        return made | {"comfy_api": None, "comfy_api.latest": None}
    api, latest = ModuleType("comfy_api"), ModuleType("comfy_api.latest")
    vars(latest).update(io=_io(), ComfyExtension=object)
    return made | {"comfy_api": api, "comfy_api.latest": latest}


def load_package(monkeypatch: Any, path: Any, name: str) -> Any:
    """The package in a folder, loaded anew under this name as ComfyUI loads one."""
    from importlib.util import module_from_spec, spec_from_file_location

    for loaded in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    spec = spec_from_file_location(name, path / "__init__.py", submodule_search_locations=[str(path)])
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module
