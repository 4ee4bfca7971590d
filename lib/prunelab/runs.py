"""A run is a value: what is trained, with which options, seed and parents. Its id is a hash of just that."""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

Option = str | int | float | bool | None


@dataclass(frozen=True)
class Run:
    """One training, named by all that determines it.

    Attributes:
        recipe: Key of the recipe that executes it.
        options: Only those that differ from the recipe's defaults, so that a new option leaves old ids alone.
        seed: Of every random stream in it.
        parents: The runs whose weights, masks or widths it starts from; mostly none or one.
    """

    recipe: str
    options: Mapping[str, Option] = field(default_factory=dict)
    seed: int = 0
    parents: "tuple[Run, ...]" = ()

    @property
    def parent_ids(self) -> str | list[str] | None:
        """As records have it: an id, a list of several, or None."""
        ids = [parent.id for parent in self.parents]
        return ids if len(ids) > 1 else ids[0] if ids else None

    def canonical(self) -> str:
        """JSON with sorted keys and no spaces: equal runs, and only they, have equal text."""
        return json.dumps(
            {
                "options": dict(self.options),
                "parent": self.parent_ids,
                "recipe": self.recipe,
                "seed": self.seed,
            },
            sort_keys=True,
            separators=(",", ":"),
            allow_nan=False,
        )

    @functools.cached_property
    def id(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of `canonical()`."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, Run) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __str__(self) -> str:
        options = " ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.recipe} {options} seed={self.seed} ({self.id})"


def make_run(
    recipe: str, defaults: Mapping[str, Option], *, seed: int, parents: tuple[Run, ...] = (), **options: Option
) -> Run:
    """A run whose options have been checked against a recipe's defaults and stripped of them.

    Whole numbers given for a fractional option become fractions, so 1 and 1.0 are one run.

    Raises:
        ValueError: An option the recipe does not have, one of another type, or a seed below 0.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed must be a whole number from 0, got {seed!r}")
    changed = {}
    for name, value in options.items():
        if name not in defaults:
            raise ValueError(f"{recipe} has no option {name!r}; it has {', '.join(defaults)}")
        default = defaults[name]
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if default is not None and type(value) is not type(default):
            raise ValueError(f"option {name} of {recipe} is {type(default).__name__}, got {value!r}")
        if value != default:
            changed[name] = value
    return Run(recipe, changed, seed, parents)
