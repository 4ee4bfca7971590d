"""What the plans of all recipes share: profiles, seeds, and that a run of several experiments is one run."""

from collections.abc import Iterable, Mapping

from prunelab.runs import Run

PROFILES = ("smoke", "small", "full", "paper")


def chosen_seeds(
    profile: str, seeds: Iterable[int] | None, *, of_profile: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """The seeds of a plan: those given, else the profile's own.

    Raises:
        ValueError: Unknown profile, no seed, or a seed twice.
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; there are {', '.join(PROFILES)}")
    seeds = of_profile[profile] if seeds is None else tuple(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be one or more different numbers, got {list(seeds)}")
    return seeds


def distinct(experiments: Mapping[str, Iterable[Run]]) -> list[Run]:
    """The runs of all experiments, each once, the first one first."""
    return list({run.id: run for runs in experiments.values() for run in runs}.values())
