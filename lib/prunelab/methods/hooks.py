"""What a training step asks of a method: four hooks, which do nothing here.

Two of them decide, in Python: `before_update` sees the dense gradients and may replace the optimizer step,
`after_update` sees the stepped weights. `change_gradients` and `change_weights`, before and after the optimizer, are
arithmetic on tensors that stay the same, which a GPU replays without Python.
"""

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor
from torch.optim import Optimizer


class Hooks:
    """A method that changes nothing. `step` is the number of optimizer steps done so far.

    Attributes:
        masks: Bool, True where a weight is active, by layer name; of layers that are not in it all are.
        n_dense_gradients: Batches so far that needed the gradients of inactive weights.
        n_extra_images: Images so far that were passed forward and backward besides those of the batches.
        moves: What happened to the masks, and when, for the record; `n_active` in it are the active weights of each
            masked layer from each `step` on.
    """

    masks: Mapping[str, Tensor] = MappingProxyType({})
    n_dense_gradients: int = 0
    n_extra_images: int = 0
    moves: Mapping[str, list] = MappingProxyType({})

    def active_counts_over_time(self) -> list[tuple[int, dict[str, int]]]:
        """Lists from which step on how many weights of each layer were active, where that changed in training."""
        if "n_active" not in self.moves:
            return []
        steps, counts = self.moves["step"], self.moves["n_active"]
        return [(step, dict(zip(self.masks, own, strict=True))) for step, own in zip(steps, counts, strict=True)]

    def before_update(self, step: int, optimizer: Optimizer) -> bool:
        """Sees the dense gradients; True where it takes the place of the optimizer step."""
        return False

    def change_gradients(self) -> None:
        """Has the last say on the gradients."""

    def change_weights(self) -> None:
        """Has the last say on the weights."""

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        """Sees the stepped weights."""

    def state_dict(self) -> dict:
        """Returns all that a resumed training needs besides the model's own state."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Takes over what `state_dict` gave; the weights are restored by the caller."""
