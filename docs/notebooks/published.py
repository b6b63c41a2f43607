# %% [markdown]
# # TimeTuner, from the paper to joint tuning
#
# TimeTuner (Xia et al., 2024) makes a trained diffusion model sample better in
# few steps, and changes a single number in each step: the time that the network
# receives. This notebook starts with the code of the paper's README, which runs
# here as it is written there, and ends with *joint tuning*, which tunes the
# whole run at once.
#
# The model is bundled with the library: a latent diffusion model of handwritten
# digits. An autoencoder makes latents of 4 x 7 x 7 numbers from pictures of 28
# x 28 pixels, and the network removes noise from latents, under a label.

# %%
import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader, Dataset

from time_tuner import (
    Joint,
    NoiseScheduleVP,
    Plan,
    SeededNoise,
    TimeTuner,
    make_plan,
    model_wrapper,
    sample,
    tune,
)
from time_tuner.digits.latent import load_latent_digits
from time_tuner.digits.networks import NULL_LABEL, linear_betas
from time_tuner.metrics import distance
from time_tuner.plots import Strip, image_grid, plot_plan

# %% tags=["parameters"]
IMAGES = 48  # to tune TimeTuner on
MEASURED = 40  # samples that nothing is tuned on
PAIRS, ITERATIONS = 40, 14  # of joint tuning
JUDGED = 20  # samples on which its result is judged

# %% [markdown]
# ## 1. The noise schedule and the model
#
# Three statements of the paper's README. `model_wrapper` needs what the network
# predicts and how it is guided. `cond_process_fn`, for latent diffusion, turns
# a raw label into what the network receives. Only `shape`, that of one sample,
# is an addition of this library.

# %%
digits = load_latent_digits()

noise_schedule = NoiseScheduleVP(schedule="discrete", betas=linear_betas())
model_fn = model_wrapper(
    digits.network,
    noise_schedule,
    model_type="noise",
    guidance_type="classifier-free",
    guidance_scale=1.5,
    cond_process_fn=digits.embed,
    shape=digits.shape,
)
time_tuner = TimeTuner(model_fn, noise_schedule)

# %% [markdown]
# ## 2. Samples in four steps
#
# We draw forty digits from the same noise twice: with DDIM in four steps, and
# in a hundred. The run of a hundred steps is the *reference*: this is where the
# few steps should end. `timesteps` are the four noise levels at which the
# network is called.

# %%
labels = torch.arange(MEASURED) % 10
conditions = {
    "condition": labels,
    "uncond_condition": torch.tensor([NULL_LABEL]),
}
x_T = SeededNoise(range(1000, 1000 + MEASURED))(
    torch.empty(MEASURED, *digits.shape)
)

untuned = make_plan("ddim", noise_schedule, calls=4, spacing="quadratic")
timesteps = noise_schedule.network_time(untuned.t[:-1])
print("levels:", *(f"{level:.0f}" for level in timesteps))

few = time_tuner.ddim_sample(x_T, timesteps=timesteps, **conditions)
reference = time_tuner.ddim_sample(x_T, num_steps=100, **conditions)


# %%
def compare(latents, title):
    """Rows of pictures from the same noise, with the distance of latents."""
    with torch.no_grad():
        strips = [
            Strip(
                name,
                digits.decode(x[:10]),
                f"{distance(x, reference).mean():.2f}"
                if x is not reference
                else "",
            )
            for name, x in latents.items()
        ]
    return image_grid(strips, title)


compare(
    {"DDIM, 4 steps": few, "DDIM, 100 steps": reference},
    "Four steps are too few",
)

# %% [markdown]
# *Figure 1. Ten digits from the same noise. The number under a name is the mean
# distance of all samples to those of 100 steps, in latents. Smaller is better,
# and 0 would be the same pictures.*
#
# The lower row is the aim, with its faults: some digits in it are broken,
# because this small network draws them so. A better sampler draws in few steps
# what the network draws in many, and nothing else.
#
# ## 3. Tuning the time of each step
#
# In a step, the sampler goes from one noise level to a much smaller one, and
# trusts the prediction that the network made at the beginning. The paper gives
# the network another time instead, one for which its prediction suits the whole
# step better. The quotient of both times is the *ratio*; ratios of 1 are the
# untuned run.
#
# Tuning needs data, from a loader of dictionaries with `image` and `label`. We
# have no data set here, and take what the model itself draws in many steps.
# `encode_fn` makes latents of pictures.


# %%
class Digits(Dataset):
    """Labelled pictures that the model draws in 20 steps."""

    def __init__(self, count):
        self.labels = torch.arange(count) % 10
        noise = SeededNoise(range(count))(torch.empty(count, *digits.shape))
        latents = time_tuner.sample(
            noise,
            "unipc",
            num_steps=20,
            condition=self.labels,
            uncond_condition=torch.tensor([NULL_LABEL]),
        )
        with torch.no_grad():
            self.images = digits.decode(latents)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index], "label": self.labels[index]}


data_loader = DataLoader(Digits(IMAGES), batch_size=16)
t_ratios = time_tuner.optimize_timesteps(
    data_loader=data_loader,
    step_fn=time_tuner.ddim_step_fn,
    encode_fn=digits.encode,
    timesteps=timesteps,
    tune_type="sequential",
    uncond_condition=torch.tensor([NULL_LABEL]),
    samples=IMAGES,
    eta=0.0,
)
print("ratios:", *(f"{ratio:.3f}" for ratio in t_ratios))

# %%
paper = time_tuner.ddim_sample(
    x_T, timesteps=timesteps, t_ratios=t_ratios, **conditions
)
compare(
    {
        "DDIM, 4 steps": few,
        "TimeTuner, 4 steps": paper,
        "DDIM, 100 steps": reference,
    },
    "The time of each step is tuned",
)

# %% [markdown]
# *Figure 2. As figure 1, with the tuned times of the paper. The network was
# called four times in both of the upper rows.*
#
# Four numbers, found on other samples, bring the run nearer to the reference.
# How much they bring depends on the model and on the levels. They can also do
# harm, because the paper's loss looks at one step at a time:
# `optimize_timesteps` measures its result and warns you then.
#
# ## 4. Plans
#
# In this library, a run is a *plan*: the sampler, the times of its steps, and
# the times that the network receives. A plan can be compared, saved and drawn.
# The published interface makes one from its own arguments:

# %%
published = time_tuner.plan(timesteps=timesteps, t_ratios=t_ratios)
for t, tau in zip(published.t, published.tau, strict=False):
    print(
        f"sampler at {t:.4f}, network receives {tau:.4f}, ratio {tau / t:.3f}"
    )

# %% [markdown]
# ## 5. Joint tuning
#
# Why only the times? A plan holds more numbers: *where* the steps begin and
# end, and *how* earlier predictions are used in a step. `tune` adjusts all of
# them together. A *teacher* run of many steps gives, for some noise, the end
# that the few steps should reach, and the plan is changed until its ends are
# near. It needs no data, only noise. Before that, it ranks the untuned plans of
# every sampler, and starts from the best of them.
#
# We bind the labels of ten classes to the model, and tune four calls:

# %%
model = model_fn.bind(torch.arange(10), torch.tensor([NULL_LABEL]))
joint = tune(
    model,
    calls=4,
    tuner=Joint(pairs=PAIRS, iterations=ITERATIONS),
    samples=JUDGED,
    seed=1,
)

print("untuned plans:", joint.provenance.get("untuned_plans"))
print(
    "distances:",
    {
        name: round(value, 2)
        for name, value in joint.provenance["distance"].items()
    },
)

# %% [markdown]
# The provenance of a plan records how it was made: the best of the untuned
# plans, from which tuning started, and the distances to the reference on noise
# that nothing was tuned on, "best untuned" before and "tuned" after tuning.

# %%
plot_plan(
    {"DDIM, TimeTuner": published, "joint tuning": joint},
    "What was tuned, in four calls",
)

# %% [markdown]
# *Figure 3. Left: the time that the network receives at each call, over the
# time where the sampler is; on the dashed line the two are equal. Middle: their
# ratio. The points of joint tuning lie elsewhere along the horizontal axis,
# because it moves the steps, too; its run begins late, after the first part of
# the time. Right: its corrections, the weights with which earlier predictions
# are used in each call.*
#
# The plan is for this network and for four calls. It draws the forty digits of
# the test, on whose noise nothing was tuned:

# %%
test = model_fn.bind(labels, torch.tensor([NULL_LABEL]))
ours = sample(test, joint, joint.initial_state(x_T))
rows = {
    "DDIM, 4 steps": few,
    "TimeTuner, 4 steps": paper,
    "joint tuning, 4 steps": ours,
    "DDIM, 100 steps": reference,
}
compare(rows, "From the paper to joint tuning")

# %% [markdown]
# *Figure 4. The same ten digits, four network calls in each row but the last.
# The smaller the number, the nearer are all forty samples to the reference. The
# 2 and the 9 show it: only joint tuning gives them the shape that they have in
# 100 steps.*

# %%
fig, axes = plt.subplots(figsize=(7.5, 2.6), layout="constrained")
fig.suptitle("Distance to the reference, forty samples")
names = list(rows)[:3]
apart = [distance(rows[name], reference) for name in names]
axes.boxplot(
    [values.numpy() for values in apart],
    orientation="horizontal",
    tick_labels=names,
)
axes.invert_yaxis()
axes.set_xlabel("distance in latents, smaller is better")
axes.grid(axis="x", color="#e4e4e4")

# %% [markdown]
# *Figure 5. The distance of each sample: the box holds the middle half, the
# line in it is the median.*
#
# ## 6. Keep it
#
# A plan is a small text file of numbers. The published interface takes a plan
# in the place of ratios, too, if it is one of its own sampler:

# %%
published.save("timetuner-4.json")
joint.save("joint-4.json")
same = time_tuner.ddim_sample(
    x_T, t_ratios=Plan.load("timetuner-4.json"), **conditions
)
print("TimeTuner, loaded: the same samples:", torch.equal(same, paper))
again = Plan.load("joint-4.json")
print(
    "joint, loaded: the same samples:    ",
    torch.equal(sample(test, again, again.initial_state(x_T)), ours),
)

# %% [markdown]
# ## What to keep
#
# - Code written for the paper runs here. [The published
#   interface](../reference/published-interface.md) lists every argument.
# - One tuned number for each step helps, at times. All numbers of a plan
#   together help more.
# - Measure on noise that was not tuned on. `tune` does so by itself, and
#   returns the untuned plan where tuning was no gain.
#
# Next: the same for a [diffusers pipeline](pipeline.ipynb), or for [a network
# of your own](own_network.ipynb).
