"""The scheduler classes of diffusers: what each of them makes of its configuration, or why it is refused."""

from dataclasses import dataclass

LCM = "latent consistency models (Luo et al., 2023)"


@dataclass(frozen=True)
class SchedulerClass:
    """What the code of a scheduler class does with its entries.

    Attributes:
        noise: "betas", with a flow where `use_flow_sigmas` is set; "edm"; or "flow".
        end: where the last step of a run ends. "sigmas": at the last of the scheduler's sigmas, which is 0 unless
            `final_sigmas_type` is another. "least": the same, where it is never 0. "one": at alpha = 1. "final": at
            alpha = 1 with `set_alpha_to_one`, else at the first level, unless a step of N // steps levels ends before.
            "first": at the first level.
        clips, thresholds: whether `clip_sample` and `thresholding` have an effect.
        passes_sigmas: whether most pipelines pass sigmas to its `set_timesteps`, even from 1 to 1/n in n steps.
        grid_of: the class that makes the grid, where that is another.
        network_input: what the network receives, where that is not the usual of its noise; of "edm".
        distilled: what models its own are, if they are distilled; networks of these models are no ODE's.
        no_grid: why it has no grid for a run from noise to data.
    """

    noise: str
    end: str = "sigmas"
    clips: bool = False
    thresholds: bool = False
    passes_sigmas: bool = False
    grid_of: str | None = None
    network_input: str | None = None
    distilled: str | None = None
    no_grid: str | None = None


_BACKWARDS = "it runs from data to noise"
_DDIM = SchedulerClass("betas", "final", clips=True, thresholds=True)
_DDPM = SchedulerClass("betas", "one", clips=True, thresholds=True)
_EULER = SchedulerClass("betas")
_DPM = SchedulerClass("betas", thresholds=True)
_LEAST = SchedulerClass("betas", "least", thresholds=True)
_COGVIDEOX = SchedulerClass("betas", "final")  # has clip_sample, and never reads it

SCHEDULER_CLASSES: dict[str, SchedulerClass] = {
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "PNDMScheduler": SchedulerClass("betas", "final"),
    "EulerDiscreteScheduler": _EULER,
    "EulerAncestralDiscreteScheduler": _EULER,
    "HeunDiscreteScheduler": SchedulerClass("betas", clips=True),
    "LMSDiscreteScheduler": _EULER,
    "KDPM2DiscreteScheduler": _EULER,
    "KDPM2AncestralDiscreteScheduler": _EULER,
    "DPMSolverSDEScheduler": _EULER,
    "DPMSolverMultistepScheduler": _DPM,
    "DPMSolverSinglestepScheduler": _DPM,
    "DEISMultistepScheduler": _LEAST,
    "UniPCMultistepScheduler": _DPM,
    "SASolverScheduler": _LEAST,
    "UnCLIPScheduler": SchedulerClass("betas", "one", clips=True),
    "CogVideoXDDIMScheduler": _COGVIDEOX,
    "CogVideoXDPMScheduler": _COGVIDEOX,
    "DDIMInverseScheduler": SchedulerClass("betas", clips=True, no_grid=_BACKWARDS),
    "DPMSolverMultistepInverseScheduler": SchedulerClass("betas", thresholds=True, no_grid=_BACKWARDS),
    "RePaintScheduler": SchedulerClass("betas", clips=True, no_grid="it jumps between data and noise"),
    "LCMScheduler": SchedulerClass("betas", "one", clips=True, thresholds=True, distilled=LCM),
    "TCDScheduler": SchedulerClass(
        "betas", "first", distilled="models of trajectory consistency distillation (Zheng et al., 2024)"
    ),
    "EDMEulerScheduler": SchedulerClass("edm"),
    "EDMDPMSolverMultistepScheduler": SchedulerClass("edm", thresholds=True),
    "CosineDPMSolverMultistepScheduler": SchedulerClass(
        "edm", grid_of="EDMDPMSolverMultistepScheduler", network_input="arctan"
    ),
    "FlowMatchEulerDiscreteScheduler": SchedulerClass("flow", passes_sigmas=True),
    "FlowMatchHeunDiscreteScheduler": SchedulerClass("flow"),
    "LTXEulerAncestralRFScheduler": SchedulerClass("flow", grid_of="FlowMatchEulerDiscreteScheduler"),
    "FlowMatchLCMScheduler": SchedulerClass("flow", passes_sigmas=True, distilled=LCM),
    "FlowMapEulerDiscreteScheduler": SchedulerClass(
        "flow", distilled="flow maps, which receive the end of a step beside its beginning"
    ),
    "PiflowScheduler": SchedulerClass("flow", distilled="pi-Flow (Chen et al., 2025), which predict a policy of steps"),
}
"""The classes that are read, by name; diffusers exports each of them."""

_TOKENS = "is for networks that predict discrete tokens, which have no noise level"
_STAGES = "runs in stages of several resolutions, and adds noise between them"

REFUSED: dict[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": "is for consistency models (Song et al., 2023), whose network receives "
    "250 log(sigma) and predicts the data through a boundary condition of its own: it is no network of an ODE",
    "ConsistencyDecoderScheduler": "is for a consistency model that decodes latents: it is no network of an ODE",
    "SCMScheduler": "is for consistency models on a trigonometric flow (Lu & Song, 2025), whose states are scaled by "
    "the deviation of the data",
    "DDPMWuerstchenScheduler": "is for networks that receive a ratio in [0, 1] of a clamped cosine schedule",
    "HeliosScheduler": _STAGES,
    "HeliosDMDScheduler": _STAGES,
    "IPNDMScheduler": "is for networks that receive 2 / pi arctan(sigma / alpha) (Dance Diffusion)",
    "KarrasVeScheduler": "is for variance-exploding networks whose input is rescaled by their pipeline",
    "MiniMaxH3Scheduler": "is for networks that receive 1 - sigma and predict the velocity towards the data",
    "RFD4ProteinaScheduler": "is for proteins, whose parts have noise of their own",
    "ScoreSdeVeScheduler": "is for score networks that receive sigma: give NoiseScheduleVE(sigma_min, sigma_max, "
    "network_input='sigma'), and model_type='score' to model_wrapper",
}
"""The classes of other models, by name, and why they are not read."""

MARKS = {
    "timestep_scaling": "LCMScheduler",
    "scale_factors": "FlowMatchLCMScheduler",
    "num_policy_substeps": "PiflowScheduler",
    "clip_denoised": "CMStochasticIterativeScheduler",
    "stage_range": "HeliosScheduler",
    "sampling_eps": "ScoreSdeVeScheduler",
    "masking_schedule": "AmusedScheduler",
    "num_vec_classes": "VQDiffusionScheduler",
}
"""Entries that no other kind of model has: they name the class of a configuration without a name."""
