"""Values as pure functions of the step: the learning rate, and the share of weights that RigL moves."""

import math
from collections.abc import Callable


def _cosine(progress: float) -> float:
    return (1.0 + math.cos(math.pi * progress)) / 2.0


# How a quantity falls from 1 as `progress` goes from 0 to 1. Evci et al. 2020, Sec. 3 (2) and App. G.
DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": _cosine,
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "inverse_power": lambda progress: (1.0 - progress) ** 3,
}


def check_decay(decay: str) -> None:
    """Raises ValueError unless `decay` is a key of `DECAYS`."""
    if decay not in DECAYS:
        raise ValueError(f"unknown decay {decay!r}; there are {', '.join(DECAYS)}")


def drop_fraction(step: int, *, initial: float, stop_update_step: int, decay: str = "cosine") -> float:
    """Returns the share of active weights that a mask update moves at `step`; f_decay in the paper.

    Args:
        step: Optimizer steps done so far, in [0, `stop_update_step`].
        initial: Share at step 0, in [0, 1]; alpha in the paper.
        stop_update_step: Step of the last possible update; T_end.
        decay: A key of `DECAYS`.
    Returns:
        A share in [0, `initial`].
    Source: Evci et al. 2020, arXiv:1911.11134, Eq. 1 and App. G.
    """
    progress = step / stop_update_step if stop_update_step else 1.0
    return initial * DECAYS[decay](progress)


# The learning rate's fall after warm-up, as a share of its peak.
LEARNING_RATES: dict[str, Callable[[float], float]] = {
    "cosine": _cosine,
    # Divided by five at 30, 60 and 90 % of training, the proportions of the authors' CIFAR-10 schedule.
    "step": lambda progress: 0.2 ** sum(progress >= milestone for milestone in (0.3, 0.6, 0.9)),
    # Divided by ten at 50 and 75 % of training, or after each third: Rethinking's on CIFAR and on ImageNet.
    "halves": lambda progress: 0.1 ** ((progress >= 1 / 2) + (progress >= 3 / 4)),
    "thirds": lambda progress: 0.1 ** ((progress >= 1 / 3) + (progress >= 2 / 3)),
    "constant": lambda progress: 1.0,
}


def learning_rate(step: int, *, peak: float, n_steps: int, warmup_steps: int = 0, schedule: str = "cosine") -> float:
    """Returns the learning rate of optimizer step `step`.

    Rises linearly over `warmup_steps`, whose last step has the peak, then falls by `schedule` over the remainder.

    Args:
        step: Counted from 0, below `n_steps`.
        peak: Largest learning rate.
        n_steps: Optimizer steps of the whole training.
        warmup_steps: Steps of the linear rise.
        schedule: A key of `LEARNING_RATES`.
    Raises:
        ValueError: Unknown schedule, or a warm-up as long as the training.
    """
    if schedule not in LEARNING_RATES:
        raise ValueError(f"unknown learning-rate schedule {schedule!r}; there are {', '.join(LEARNING_RATES)}")
    if not 0 <= warmup_steps < n_steps:
        raise ValueError(f"warm-up of {warmup_steps} steps does not fit into training of {n_steps} steps")
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * LEARNING_RATES[schedule]((step - warmup_steps) / (n_steps - warmup_steps))
