"""What a training step asks of a method: four hooks, which do nothing here.

Two of them decide, in Python: `before_update` sees the dense gradients and may replace the optimizer step,
`after_update` sees the stepped weights. `change_gradients` and `change_weights`, before and after the optimizer, are
arithmetic on tensors that stay the same, which a GPU replays without Python.
"""

from torch.optim import Optimizer


class Hooks:
    """A method that changes nothing. `step` is the number of optimizer steps done so far."""

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
        """All that a resumed training needs besides the model's own state."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Takes over what `state_dict` gave; the weights are restored by the caller."""
