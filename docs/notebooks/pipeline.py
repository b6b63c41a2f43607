# %% [markdown]
# # A diffusers pipeline, from load to a shared plan
#
# You have a pipeline of diffusers and want its pictures in fewer steps, with
# the same weights. This notebook takes the whole way: load the pipeline, tune a
# *plan* for three network calls, compare pictures before and after, save the
# plan, share it, load it again, and find out whether a plan fits a pipeline.
#
# The pipeline here is bundled with the library, so that the notebook runs
# anywhere: it draws handwritten digits of ten classes. With yours, two lines
# change, which have a comment.

# %%
import warnings
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    UniPCMultistepScheduler,
)

from time_tuner import Joint, Plan
from time_tuner.diffusers import (
    PipelineModel,
    TimeTunerScheduler,
    tune_pipeline,
)
from time_tuner.digits.pipeline import digits_pipeline
from time_tuner.metrics import distance
from time_tuner.plans.sharing import write_folder
from time_tuner.plots import Strip, image_grid, plot_plan
from time_tuner.tuners import check_plan

# %% tags=["parameters"]
CALLS = 3
PAIRS, ITERATIONS = 16, 12  # of tuning
CHECKED = 10  # samples of the check of a plan

# %% [markdown]
# ## 1. Load the pipeline
#
# The scheduler that a pipeline comes with is the one that it was trained with.
# For few steps, people exchange it, for DDIM, UniPC or DEIS. We draw the ten
# digits with each of them in three steps, from the same noise, and once in a
# hundred steps, to see what the network can do when there is time.

# %%
pipe = digits_pipeline()  # DiffusionPipeline.from_pretrained(...)
pipe.set_progress_bar_config(disable=True)
own = pipe.scheduler

conditions = {
    "class_labels": list(range(10))
}  # {"prompts": ["a red cat", "a boat"], "guidance_scale": 5.0}
noise = torch.randn(
    10, 1, 28, 28, generator=torch.Generator().manual_seed(1000)
)  # nothing is tuned on this noise


def draw(scheduler, calls=CALLS):
    """Pictures (10, 1, 28, 28) in [-1, 1], with this scheduler."""
    pipe.scheduler = scheduler
    images = pipe(
        **conditions, latents=noise, num_inference_steps=calls, output_type="pt"
    ).images
    pipe.scheduler = own
    return 2 * images - 1


reference = draw(DDIMScheduler.from_config(own.config), 100)
untuned = {
    "DDIM": draw(DDIMScheduler.from_config(own.config)),
    "UniPC": draw(UniPCMultistepScheduler.from_config(own.config)),
    "DEIS": draw(DEISMultistepScheduler.from_config(own.config)),
}


# %%
def compare(rows, title):
    """Rows of pictures from the same noise, with their distances."""
    strips = [
        Strip(
            f"{name}, {CALLS} calls",
            x,
            f"distance {distance(x, reference).mean():.2f}",
        )
        for name, x in rows.items()
    ]
    return image_grid(
        [*strips, Strip("reference, 100 calls", reference)], title
    )


compare(untuned, "Schedulers of diffusers in three calls")

# %% [markdown]
# *Figure 1. The same ten noises, drawn by three schedulers of diffusers in
# three calls, and by DDIM in a hundred. The distance is the root of the sum of
# the squared differences of all pixels, in the mean over the ten pictures.*
#
# ## 2. Tune a plan
#
# `tune_pipeline` drives the pipeline itself: its text encoder, its guidance and
# its other parts are used as they are. We start from DEIS. Then the times of
# the steps, the times that the network receives, and the weights of the
# predictions are adjusted, until three calls end near to where forty calls end.
# The weights of the network are not touched.
#
# Here we set the amount of work by hand, so that the notebook takes less than a
# minute. Usually you leave out the sampler and give the time that you have,
# `budget="10m"`: then the untuned plans of all samplers are ranked first, and
# the result is compared with them on other noise, so that an untuned plan is
# returned where tuning was no gain. We leave that out, `guard=False`, and
# measure the plan ourselves below.

# %%
plan = tune_pipeline(
    pipe,
    CALLS,
    Joint(pairs=PAIRS, iterations=ITERATIONS, candidates=1),
    sampler="deis",
    **conditions,
    samples=10,
    batch=10,
    guard=False,
)

print("sampler:", plan.sampler)
spent = sum(part["evaluations"] for part in plan.provenance["cost"].values())
print("evaluations of the network:", spent)

# %% [markdown]
# ## 3. Before and after
#
# A plan becomes a scheduler of the pipeline. `num_inference_steps` is the
# number of calls of the plan.

# %%
pipe.scheduler = TimeTunerScheduler.from_plan(plan, pipe)
images = pipe(**conditions, num_inference_steps=CALLS).images  # as always
print(len(images), "pictures of", images[0].size, "pixels")

tuned = draw(pipe.scheduler)
rows = {"DEIS": untuned["DEIS"], "tuned plan": tuned}
compare(rows, "Before and after tuning")

# %% [markdown]
# *Figure 2. DEIS, from which tuning started, and the tuned plan, beside the
# reference: the same network, called as often, from the same noise.*

# %%
difference = [
    Strip(
        name,
        (x - reference).abs() - 1,
        f"distance {distance(x, reference).mean():.2f}",
    )
    for name, x in rows.items()
]
image_grid(difference, "What differs from the reference")

# %% [markdown]
# *Figure 3. The difference to the reference in each pixel: black where there is
# none, white where a pixel is black in one picture and white in the other.*

# %%
plot_plan(plan, "The tuned plan")

# %% [markdown]
# *Figure 4. What the plan holds. Left: the time that the network receives at
# each call, over the time where the sampler is. Middle: their ratio, 1 when
# untuned. Right: the corrections, the weights with which earlier predictions
# are used.*
#
# ## 4. Save, share, load
#
# A plan is a JSON file of numbers, most of which describe the noise schedule.
# It knows what it was tuned for. `write_folder` adds a card with a picture,
# ready for a repository; `plan.push_to_hub("user/name")` puts the same files on
# the Hub.

# %%
plan.save("plan.json")
write_folder([plan], "my-plan")
for path in [Path("plan.json"), *sorted(Path("my-plan").iterdir())]:
    print(f"{path.as_posix():20} {path.stat().st_size:6} bytes")

# %% [markdown]
# Someone else loads the pipeline, and the plan from the folder, from an
# address, or from the Hub. The pictures are the same:

# %%
received = Plan.from_hub(
    "my-plan", calls=CALLS
)  # "user/name" for a repository on the Hub
scheduler = TimeTunerScheduler.from_plan(received, pipe)
print(
    "the same plan:",
    received == plan,
    "- the same pictures:",
    torch.equal(draw(scheduler), tuned),
)

# %% [markdown]
# Or the plan travels with the pipeline, as its scheduler:
# `pipe.save_pretrained("folder")`.
#
# ## 5. Does a plan fit?
#
# A plan belongs to the network that it was tuned for. It carries a
# *fingerprint* of the network: its class, its architecture, and a few of its
# weights. We give our plan to three pipelines: to this one, to one with
# slightly changed weights, as after a little further training, and to one with
# other weights altogether.


# %%
def changed(amount):
    """The pipeline with noise in its weights, this much of their size."""
    other = deepcopy(pipe)
    draws = torch.Generator().manual_seed(0)
    for weight in other.unet.parameters():
        weight.add_(
            amount
            * weight.std(correction=0)
            * torch.randn(weight.shape, generator=draws)
        )
    return other


for name, other in (
    ("this pipeline", pipe),
    ("trained further", changed(0.05)),
    ("another network", changed(5.0)),
):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        TimeTunerScheduler.from_plan(received, other)
    texts = [str(warning.message) for warning in warned]
    print(f"{name}: {'; '.join(texts) or 'no warning'}")

# %% [markdown]
# A fingerprint says what is different, and not how much it matters.
# `check_plan` measures that, on a few samples: it compares the plan with itself
# without tuning, and with a few untuned plans.

# %%
pipe.scheduler = own
with PipelineModel(pipe, **conditions, batch=10) as model:
    check = check_plan(model, received, samples=CHECKED)
print(check.verdict)

# %% [markdown]
# The verdict is about the nearest rival of the plan. "The plan without its
# tuning" has the tuned step times, but neither the tuned conditioning times nor
# the corrections: most of what this short run of tuning has gained lies in the
# step times, and ten samples do not tell how much the rest adds. Longer tuning
# and more samples do.
#
# ## What to keep
#
# - `tune_pipeline(pipe, calls, prompts=..., budget="10m")`, then
#   `pipe.scheduler = TimeTunerScheduler.from_plan(plan, pipe)`.
# - Tune with prompts, guidance and sizes like those that you will draw with.
#   [Tune a pipeline](../how-to/tune-a-pipeline.md) lists what can be given, and
#   which pipelines are supported.
# - A plan is a small file that can be shared: see [share a
#   plan](../how-to/share.md).
# - You are warned when a plan meets another network, and `check_plan` says
#   whether it still helps.
#
# With [a network of your own](own_network.ipynb), diffusers is not needed.
