"""A network and its head: the last linear layer, with one output a class, which other classes need anew."""

from collections.abc import Mapping

from torch import Tensor, nn


def head_of(model: nn.Module) -> str:
    """Returns the name of a network's head, of its linear layers the one that is registered last.

    Raises:
        ValueError: It has no linear layer.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ValueError(
            f"{type(model).__name__} has no linear layer, so it has no head; let a linear layer be its last"
        )
    return names[-1]


def without_head(state: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """Returns the entries of a state that are not those of the layer `head`."""
    return {name: value for name, value in state.items() if not name.startswith(f"{head}.")}


def misfit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Says in which entries and shapes a state differs from the expected one; empty where it does not."""
    both = expected.keys() & state.keys()
    names = {
        "lacks": expected.keys() - state.keys(),
        "has, of no use here,": state.keys() - expected.keys(),
        "has in another shape": {name for name in both if getattr(state[name], "shape", None) != expected[name].shape},
    }
    return "; ".join(
        f"it {what} {', '.join(sorted(found)[:3])}" + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        for what, found in names.items()
        if found
    )


def load_trunk(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Gives a network all values of a trained one but those of its head, batch normalisation's statistics among them.

    Args:
        model: Keeps its head.
        state: Of a network of the same layers; its head, if it has one, is left aside.
    Raises:
        ValueError: The state is another network's, or `model` has no head; `model` is as it was.
    """
    head = head_of(model)
    state = without_head(state, head)
    if wrong := misfit(state, without_head(model.state_dict(), head)):
        raise ValueError(f"the state is another network's: {wrong}")
    model.load_state_dict(state, strict=False)
