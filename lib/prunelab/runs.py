"""A run is a value: what is trained, with which options, seed and parents. Its id is a hash of just that."""

import contextlib
import difflib
import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, get_args, get_type_hints

Option = str | int | float | bool | None
PROFILES = ("smoke", "small", "full", "paper")  # plans of growing size
ENGINES = ("local", "ray")  # what has a plan's runs trained
MAX_SEED = 2**63 - 1  # what generators and tables alike take


@dataclass(frozen=True)
class Run:
    """One training, named by all that determines it.

    Attributes:
        recipe: Key of the recipe that executes it.
        options: Only those that differ from the recipe's defaults, so that a new option leaves old ids alone.
        seed: Of every random stream in it.
        parents: The runs whose weights, masks or widths it starts from; mostly none or one.
        n_gpus: At most, on which it may be trained together; no part of what it is, since its numbers are the same.
    """

    recipe: str
    options: Mapping[str, Option] = field(default_factory=dict)
    seed: int = 0
    parents: "tuple[Run, ...]" = ()
    n_gpus: int = 1

    @property
    def parent_ids(self) -> str | list[str] | None:
        """As records have it: an id, a list of several, or None."""
        ids = [parent.id for parent in self.parents]
        return ids if len(ids) > 1 else ids[0] if ids else None

    @property
    def ancestors(self) -> "list[Run]":
        """Its parents, and before each of them theirs."""
        return [run for parent in self.parents for run in (*parent.ancestors, parent)]

    def canonical(self) -> str:
        """Returns JSON with sorted keys and no spaces: equal runs, and only they, have equal text."""
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


def option(help: str, default: Option = MISSING) -> Any:
    """Gives a field of `Options` one line of help, and its default where all recipes share one."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Options:
    """What may be chosen of a recipe's runs: one typed field each, whose metadata has one line of help.

    Raises:
        ValueError: A value of another type than its field's, or a fraction that is not finite. A whole number given
            for a fraction becomes one.
    """

    def __post_init__(self) -> None:
        for name, allowed in _types(type(self)).items():
            value = getattr(self, name)
            if type(value) in (int, float) and float in allowed:  # so 1 and 1.0 are one run
                object.__setattr__(self, name, finite(f"option {name}", value))
            elif type(value) not in allowed:
                raise ValueError(f"option {name} is {_in_words(allowed)}, got {value!r}")

    @property
    def changed(self) -> dict[str, Option]:
        """Those that differ from their defaults, which a run's id is made of."""
        own = ((each, getattr(self, each.name)) for each in fields(self))
        return {each.name: value for each, value in own if value != each.default}


@functools.cache
def _types(kind: type[Options]) -> dict[str, tuple[type, ...]]:
    return {name: get_args(hint) or (hint,) for name, hint in get_type_hints(kind).items()}


def _in_words(allowed: Iterable[type]) -> str:
    return " or ".join("None" if each is type(None) else each.__name__ for each in allowed)


def describe(kind: type[Options]) -> dict[str, tuple[str, Option, str]]:
    """Returns the type, the default and the help of each option, by its name."""
    helps: dict[str, str] = {}
    for base in reversed(kind.__mro__):  # a recipe's own default leaves the help as it was
        declared = getattr(base, "__dataclass_fields__", {}).values()
        helps |= {each.name: each.metadata["help"] for each in declared if each.metadata}
    return {each.name: (_in_words(_types(kind)[each.name]), each.default, helps[each.name]) for each in fields(kind)}


def build_options(recipe: str, kind: type[Options], options: Mapping[str, Option]) -> Options:
    """Checks options by name and type.

    Raises:
        ValueError: One that the recipe does not have, or of another type.
    """
    known = [each.name for each in fields(kind)]
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"{recipe} has no option {unknown[0]!r}; it has {', '.join(known)}")
    return kind(**options)


def finite(what: str, number: float) -> float:
    """Returns a number as a float.

    Raises:
        ValueError: It is not finite, or too large for one.
    """
    with contextlib.suppress(OverflowError):
        if math.isfinite(number):
            return float(number)
    raise ValueError(f"{what} must be a finite number of 64 bits, got {number!r:.40}")


def check_choice(what: str, value: object, allowed: Iterable[Option]) -> None:
    """Makes sure that a value is one of those allowed.

    Raises:
        ValueError: It is another; names those there are, and the nearest.
    """
    allowed = list(allowed)
    if value not in allowed:
        names = list(map(str, allowed))
        raise ValueError(f"unknown {what} {value!r}; there are {', '.join(names)}{did_you_mean(value, names)}")


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Asks whether the known name nearest to one was meant; no text where none is near."""
    near = difflib.get_close_matches(str(name).lower(), known, n=1)
    return f". Did you mean {near[0]!r}?" if near else ""


def parse_seeds(text: str) -> tuple[int, ...]:
    """Reads seeds as command line and notebooks have them, such as "0,1,2".

    Raises:
        ValueError: Something else, a seed below 0 or above `MAX_SEED`, or one twice.
    """
    parts = text.split(",")
    seeds = tuple(int(part) for part in parts if re.fullmatch(r"\s*[0-9]{1,19}\s*", part))
    if len(set(seeds)) < len(parts) or max(seeds) > MAX_SEED:
        raise ValueError(
            f"seeds must be different whole numbers from 0 to {MAX_SEED}, separated by commas, such as 0,1,2; "
            f"got {text!r}"
        )
    return seeds


def make_run(
    recipe: str,
    kind: type[Options],
    *,
    seed: int,
    parents: tuple[Run, ...] = (),
    n_gpus: int = 1,
    **options: Option,
) -> Run:
    """Makes a run whose options are checked, and stripped of those that are the defaults.

    Raises:
        ValueError: An option that the recipe does not have, one of another type, a seed below 0 or above `MAX_SEED`, or
            fewer GPUs than 1.
    """
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be a whole number from 0 to {MAX_SEED}, got {seed!r}")
    if type(n_gpus) is not int or n_gpus < 1:
        raise ValueError(f"n_gpus must be a whole number from 1 on, got {n_gpus!r}")
    return Run(recipe, build_options(recipe, kind, options).changed, seed, parents, n_gpus)
