"""What is known of an operation that a forward pass runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """An operation, what it was given, and what it gave."""

    func: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]
    result: Any

    @cached_property
    def tensors(self) -> list[Tensor]:
        """All tensors that it was given."""
        return _tensors((*self.args, *self.kwargs.values()))

    @cached_property
    def results(self) -> list[Tensor]:
        """All tensors that it gave."""
        return _tensors((self.result,))

    @cached_property
    def numbers(self) -> list[float]:
        """All single numbers that it was given, as arguments or as tensors that hold one."""
        given = (*self.args, *self.kwargs.values())
        tensors = [tensor.item() for tensor in self.tensors if not tensor.is_meta and tensor.numel() == 1]
        return [each for each in given if isinstance(each, int | float)] + tensors

    def option(self, name: str) -> Any:
        """Returns an argument, given by place or by name; None where the operation has none of this name."""
        for place, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                return self.args[place] if place < len(self.args) else self.kwargs.get(name, argument.default_value)
        return None


class Step(NamedTuple):
    """What is compared of an operation in two networks.

    Attributes:
        func: The operation.
        numbers: Those that it was given, where they matter.
        names: All channels that it was given.
        where: The operation and the module.
    """

    func: Any
    numbers: list[float]
    names: Tensor
    where: str


class Parting(NamedTuple):
    """An axis along which channels lie was taken apart, perhaps by numbers that only fit the network as it is.

    Attributes:
        n_steps: How many operations had run before.
        names: The channels.
        where: The operation and the module.
        attention: What kind of module has taken heads apart; None if it was anything else.
    """

    n_steps: int
    names: Tensor
    where: str
    attention: type[nn.Module] | None = None


def _tensors(given: Iterable[Any]) -> list[Tensor]:
    """Picks the tensors out of arguments, which may be lists."""
    each = chain.from_iterable(one if isinstance(one, list | tuple) else (one,) for one in given)
    return [one for one in each if isinstance(one, Tensor)]
