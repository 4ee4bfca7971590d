"""Training methods by name, the one vocabulary of registry, records and figure legends."""

from prunelab.methods.dynamic import RigL, SparseEvolutionaryTraining, SparseMomentum
from prunelab.methods.gradual import GradualPruning
from prunelab.methods.lottery import Ticket
from prunelab.methods.snip import Snip
from prunelab.methods.static import Static

# None: no mask. What makes `small_dense` small is its width, which the recipe chooses.
METHODS: dict[str, type[Static] | None] = {
    "dense": None,
    "small_dense": None,
    "small_dense_macs": None,
    "static": Static,
    "snip": Snip,
    "set": SparseEvolutionaryTraining,
    "snfs": SparseMomentum,
    "rigl": RigL,
    "gmp": GradualPruning,
    "lottery": Ticket,
}


def check_method(name: str) -> None:
    """Raises ValueError unless `name` is a key of `METHODS`."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; there are {', '.join(METHODS)}")
