"""What is done with diffusers' scheduler classes: `python -m time_tuner.schedules.verdicts` prints a table."""

from .scheduler_classes import REFUSED, SCHEDULER_CLASSES, SchedulerClass

NOISE = {
    "betas": "betas, or a flow with `use_flow_sigmas`",
    "edm": "EDM",
    "flow": "a rectified flow",
}


def verdict_of(name: str) -> tuple[str, str]:
    """The verdict on a class, "read", "read, with a warning", "noise alone" or "refused", and the reason."""
    if name in REFUSED:
        return "refused", REFUSED[name]
    kind: SchedulerClass = SCHEDULER_CLASSES[name]
    if kind.no_grid:
        return "noise alone", f"{NOISE[kind.noise]}; no grid: {kind.no_grid}"
    if kind.distilled:
        return "read, with a warning", f"{NOISE[kind.noise]}; its own models are distilled: {kind.distilled}"
    return "read", NOISE[kind.noise]


def verdicts() -> str:
    """The classes that are read and those that are refused, as a table in Markdown."""
    rows = (f"| `{name}` | {' | '.join(verdict_of(name))} |" for name in (*SCHEDULER_CLASSES, *REFUSED))
    return "\n".join(["| class | verdict | reason |", "|---|---|---|", *rows])


if __name__ == "__main__":
    print(verdicts())
