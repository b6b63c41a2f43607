# %% [markdown]
# # Sampling in fewer steps
#
# A diffusion model makes a sample by removing noise in many small steps,
# usually 1000, and each step is one call of its network. This notebook shows
# what happens when we take fewer steps, on an example so small that every
# answer is known. It follows the outline of Andreas Makris' tutorial on DDPM
# and DDIM (2024), and goes one step further:
#
# 1. respacing: DDPM on ten of its 1000 noise levels,
# 2. DDIM, which adds less noise or none, and its parameter eta,
# 3. the three methods side by side,
# 4. a tuned plan, which ends after five calls where DDIM ends after a thousand.
#
# You need no knowledge of this library. Its terms, such as *sampler* and
# *plan*, are in the [glossary](../glossary.md).

# %%
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch

from time_tuner import (
    Joint,
    NoiseScheduleVP,
    Plan,
    SeededNoise,
    exact,
    make_plan,
    respaced_betas,
    sample,
    trajectory,
    tune,
)
from time_tuner.metrics import exact_moments
from time_tuner.sampling import coefficients

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#6b6b6b"

# %% tags=["parameters"]
SAMPLES = 10_000  # of each method
PAIRS, ITERATIONS = 64, 40  # of tuning

# %% [markdown]
# ## A problem whose answer is known
#
# The data are single numbers, drawn from a normal distribution with mean 5 and
# standard deviation 2. The forward process adds noise in 1000 levels: at level
# n the state is x = alpha x_0 + sigma eps, where alpha^2 is the product of all
# 1 - beta up to that level, and sigma^2 = 1 - alpha^2. At the last level almost
# nothing but noise is left.
#
# For such data, the best possible prediction of the noise in x has a formula.
# We take it in place of a trained network. What goes wrong from here on is the
# fault of the *sampler* alone.

# %%
betas = np.linspace(1e-4, 0.02, 1000)
alpha_bar = np.cumprod(1 - betas)  # alpha^2 at each level

schedule = NoiseScheduleVP("discrete", betas=betas)
data = exact.Gaussian(5.0, 2.0)
model = data.eps(schedule)  # model(x, t): the noise in x at time t

print(f"alpha^2 at the first level: {alpha_bar[0]:.5f}")
print(f"alpha^2 at the last level:  {alpha_bar[-1]:.5f}")

# %% [markdown]
# ## Respacing: a DDPM of ten steps
#
# The simplest way to be faster is to skip levels. We keep ten of the 1000. The
# forward process of the short chain must pass through the same noise levels, so
# the ten values of alpha^2 stay as they are, and each step gets a larger beta:
# one minus the quotient of two neighbouring values of alpha^2.

# %%
kept = np.linspace(0, 999, 10, dtype=int)
before = np.concatenate([[1.0], alpha_bar[kept][:-1]])
beta_tilde = 1 - alpha_bar[kept] / before

print("levels", *kept)
print("beta~ ", *(f"{beta:.3f}" for beta in beta_tilde))
same = np.allclose(np.cumprod(1 - beta_tilde), alpha_bar[kept])
print("their product gives the same alpha^2:", same)
same = np.allclose(respaced_betas(betas, kept), beta_tilde)
print("respaced_betas gives the same betas: ", same)

# %%
fig, (left, right) = plt.subplots(
    1, 2, figsize=(7.5, 2.8), layout="constrained"
)
fig.suptitle("Ten of 1000 noise levels")
left.plot(alpha_bar, color=GREY, label="all 1000 levels")
left.plot(
    kept, alpha_bar[kept], "o", color=ORANGE, label="the ten that are kept"
)
left.set(xlabel="level n", ylabel=r"$\alpha^2$, the share of data")
right.semilogy(betas, color=GREY, label="1000 steps")
right.semilogy(kept, beta_tilde, "o", color=ORANGE, label="ten steps")
right.set(xlabel="level n", ylabel=r"$\beta$, the noise that a step adds")
for axes in (left, right):
    axes.legend(frameon=False)

# %% [markdown]
# *Figure 1. Left: the share of data in the state falls from one to zero. The
# short chain (orange) visits ten points of the same curve (grey). Right: each
# of its steps therefore adds up to about seventy times as much noise as a step
# of the long chain.*
#
# In this library a run is a *plan*: the sampler, the noise levels, and
# everything else that defines the run. `make_plan` makes one, `sample` runs it.
# The plan needs no respaced betas, because it computes them. To be sure, we
# compare a run over all levels of the ten-level schedule with a run over the
# ten kept levels of the long schedule, as tables of numbers:

# %%
ddpm_10 = make_plan("ddpm", schedule, calls=10, spacing="linspace")
short = make_plan(
    "ddpm",
    NoiseScheduleVP("discrete", betas=beta_tilde),
    calls=10,
    spacing="linspace",
)
apart = (coefficients(short) - coefficients(ddpm_10)).abs().max()
print(f"largest difference: {apart:.0e}")

# %% [markdown]
# How good are ten steps? We draw samples. The noise has a seed (`SeededNoise`),
# so that you see the same numbers as we do. Every step
# is a linear function of the state here, so that mean and standard deviation of
# a run can also be computed without drawing a single sample: `exact_moments`
# does it.


# %%
def draw(plan):
    """Samples (n,) of a plan."""
    noise = SeededNoise([0])
    return sample(
        model, plan, noise(torch.empty(1, SAMPLES, dtype=torch.float64)), noise
    ).flatten()


def row(name, plan):
    """Prints moments of samples with standard errors, and exact ones."""
    x = draw(plan)
    mean, std = exact_moments(data, plan)
    error = float(x.std()) / SAMPLES**0.5
    print(
        f"{name:14}{len(plan):5}{x.mean():9.3f} ± {error:.3f}"
        f"{x.std():9.3f} ± {error / 2**0.5:.3f}"
        f"{float(mean):10.4f}{float(std):8.4f}"
    )
    return x


HEADING = f"{'':14}calls  mean of samples   std of samples   exact mean, std"
print(HEADING)
print(f"{'the data':53}{5:10.4f}{2:8.4f}")
slow = row("DDPM", make_plan("ddpm", schedule, calls=1000, spacing="linspace"))
fast = row("DDPM, respaced", ddpm_10)

# %% [markdown]
# The mean survives, the spread does not: with ten steps the samples are too
# close to one another. In pictures the same error shows as a loss of detail and
# variety.
#
# ## DDIM: the same network, another step
#
# DDIM (Song et al., 2021) needs no other network, and makes each step in two
# halves. It first computes the data that the prediction implies, and then adds
# noise again, as much as belongs to the next level. Of this noise, a part is
# fresh and the rest is the noise that was predicted. The parameter eta decides
# how much is fresh: none with eta = 0, and with eta = 1 as much as in DDPM with
# the smaller of its two usual variances. (The DDPM above has the larger one.)
# Here is the whole sampler for eta = 0 by hand, beside the library's:

# %%
ddim_10 = make_plan("ddim", schedule, calls=10, spacing="linspace")


def ddim_by_hand(x, levels):
    """DDIM with eta = 0 from the last level down to the data."""
    for n, previous in pairwise([*levels[::-1], None]):
        a = alpha_bar[n]
        eps = model(x, schedule.from_network_time(float(n)))
        x0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(
            a
        )  # the data that the prediction implies
        b = 1.0 if previous is None else alpha_bar[previous]
        x = (
            np.sqrt(b) * x0 + np.sqrt(1 - b) * eps
        )  # back to the noise of the next level
    return x


x_T = SeededNoise([0])(torch.empty(1, 5, dtype=torch.float64))
print("by hand:    ", *(f"{v:.6f}" for v in ddim_by_hand(x_T, kept).flatten()))
print(
    "the library:", *(f"{v:.6f}" for v in sample(model, ddim_10, x_T).flatten())
)

# %% [markdown]
# A sampler without fresh noise is a map: the noise at the start decides where
# the sample ends. The next figure shows the difference. Each line is one
# sample, from noise at the left to data at the right.

# %%
fig, panels = plt.subplots(
    1, 3, figsize=(7.5, 2.8), sharey=True, layout="constrained"
)
fig.suptitle("Forty samples on their way from noise to data")
panels[0].set_ylabel("state x")
hundred = make_plan("ddpm", schedule, calls=100, spacing="linspace")
for axes, (name, plan, colour) in zip(
    panels,
    (
        ("DDPM, 100 calls", hundred, GREY),
        ("DDPM, 10 calls", ddpm_10, ORANGE),
        ("DDIM, 10 calls", ddim_10, BLUE),
    ),
    strict=True,
):
    noise = SeededNoise([0])
    x = noise(torch.empty(1, 40, dtype=torch.float64))
    path = torch.cat([x, *trajectory(model, plan, x, noise)])
    axes.plot(plan.t, path, color=colour, linewidth=0.7, alpha=0.8)
    axes.set(title=name, xlabel="time t", xlim=(1, 0))

# %% [markdown]
# *Figure 2. The same forty noises in three runs. DDPM (grey, orange) adds fresh
# noise in every step, so its paths cross. DDIM with eta = 0 (blue) adds none:
# its paths never cross, and the order of the samples stays as it was.*
#
# Between the two lies every value of eta. `ddim(eta=0.5)` is the text of a
# sampler with an option. With eta = 1, DDIM is DDPM with the smaller of its two
# usual variances, to the last digit:

# %%
small, one = (
    make_plan(text, schedule, calls=10, spacing="linspace")
    for text in ("ddpm(variance=small)", "ddim(eta=1)")
)
apart = (coefficients(small) - coefficients(one)).abs().max()
print(f"largest difference: {apart:.0e}")

etas = np.linspace(0, 1, 11)
fig, axes = plt.subplots(figsize=(7.5, 3), layout="constrained")
fig.suptitle("The spread of the samples for each eta")
for calls, colour in ((10, ORANGE), (20, GREEN), (50, BLUE)):
    plans = [
        make_plan(f"ddim(eta={eta})", schedule, calls=calls, spacing="linspace")
        for eta in etas
    ]
    axes.plot(
        etas,
        [float(exact_moments(data, plan)[1]) for plan in plans],
        color=colour,
        label=f"{calls} calls",
    )
axes.axhline(2, color=GREY, linestyle="--", label="the data")
axes.set(
    xlabel="eta, 0: no fresh noise, 1: DDPM with the smaller variance",
    ylabel="exact standard deviation",
)
_ = fig.legend(loc="outside right center", frameon=False)

# %% [markdown]
# *Figure 3. In DDIM fresh noise makes the error larger here, and more so in
# fewer calls. With eta = 0 the spread is nearest to that of the data, 2, but
# ten calls still lose a part of it.*
#
# ## Three methods
#
# The line of DDIM for the table above, and the histograms of all three:

# %%
print(HEADING)
methods = {
    "DDPM, 1000 calls": slow,
    "DDPM, 10 calls": fast,
    "DDIM, 10 calls": row("DDIM, eta = 0", ddim_10),
}


# %%
def histograms(samples, title):
    """A histogram for each method, with the density of the data."""
    fig, panels = plt.subplots(
        1, len(samples), figsize=(7.5, 2.6), sharey=True, layout="constrained"
    )
    fig.suptitle(title)
    at = np.linspace(-3, 13, 200)
    for axes, (name, x) in zip(panels, samples.items(), strict=True):
        axes.hist(
            x,
            bins=60,
            range=(-3, 13),
            density=True,
            color="#56b4e9",
            label="samples",
        )
        axes.plot(
            at,
            np.exp(-((at - 5) ** 2) / 8) / np.sqrt(8 * np.pi),
            color=ORANGE,
            label="the data",
        )
        axes.set(title=name, xlabel="x")
    panels[0].set_ylabel("density")
    panels[-1].legend(frameon=False)


histograms(methods, "Three methods and the data")

# %% [markdown]
# *Figure 4. The histograms of the three methods, with the density of the data
# in orange. Ten calls of either method give too narrow a peak.*
#
# Which of the two is better at ten calls depends on the problem: compare them
# on yours. But both can be improved without a single additional call.
#
# ## A tuned plan
#
# A plan is a table of numbers: the times t of its steps, the time tau that the
# network receives in each call, and the weights of the predictions in each
# step. Usually tau is t; TimeTuner (CVPR 2024) tunes tau alone, see
# [two times](../explanation/two-times.md). DDPM and DDIM fix these numbers by a
# formula. `tune` looks for better ones: it runs the model in many steps from
# some noise, and makes the run of few steps end at the same place. The weights
# of the network stay as they are.
# We ask for *five* calls, half as many as above:

# %%
tuned = tune(
    model, calls=5, tuner=Joint(pairs=PAIRS, iterations=ITERATIONS), samples=64
)
print(HEADING)
final = {
    "DDIM, 1000 calls": row(
        "DDIM, eta = 0",
        make_plan("ddim", schedule, calls=1000, spacing="linspace"),
    ),
    "DDIM, 5 calls": row(
        "DDIM, eta = 0",
        make_plan("ddim", schedule, calls=5, spacing="linspace"),
    ),
    "tuned, 5 calls": row("tuned plan", tuned),
}

print("untuned plans:", tuned.provenance.get("untuned_plans"))
print(
    "distances:",
    {
        name: round(value, 4)
        for name, value in tuned.provenance["distance"].items()
    },
)

# %%
histograms(final, "Five calls, untuned and tuned")

# %% [markdown]
# *Figure 5. DDIM in a thousand calls, in five calls, and the tuned plan in five
# calls.*
#
# The tuned plan of five calls ends where DDIM ends after a thousand. It also
# has the mean of DDIM, which is not exactly 5: all runs start from pure noise,
# but at the last level of the forward process a little of the data is left, and
# a run without fresh noise remembers its start. Tuning cannot repair that,
# since it imitates the run of many steps.
#
# The two last lines above compare with more than DDIM. `tune` knows every
# sampler of the library, ranks them untuned, and starts from the best one. The
# distances are those of samples to the end of 100 calls from the same noise:
# "best untuned" before tuning, "tuned" after it.
#
# The tuned plan is a value that can be saved. It is a small text file, and
# draws the same samples wherever it is loaded:

# %%
tuned.save("five-calls.json")
again = Plan.load("five-calls.json")
print(
    "the same plan:",
    again == tuned,
    "- the same samples:",
    torch.equal(draw(again), draw(tuned)),
)

# %% [markdown]
# ## What to keep
#
# - Skipping levels is legitimate: `make_plan(sampler, schedule, calls=10)`
#   derives all that the long chain had.
# - Few steps of DDPM and DDIM keep the mean and lose spread. Fresh noise (eta)
#   makes that worse in DDIM on this problem.
# - The numbers in a plan need not come from a formula. Tuned to the model, five
#   calls do what ten could not.
#
# On a normal distribution this is easy. The notebook [TimeTuner, from the paper
# to joint tuning](published.ipynb) does the same with a network and pictures,
# and [another one](own_network.ipynb) with a network that you train.
