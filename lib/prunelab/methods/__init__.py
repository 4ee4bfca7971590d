"""Training methods by name, the one vocabulary of registry, records and figure legends."""

from prunelab.methods.acdc import AlternatingCompression
from prunelab.methods.dynamic import RigL, SparseEvolutionaryTraining, SparseMomentum
from prunelab.methods.gradual import GradualPruning
from prunelab.methods.lottery import Ticket
from prunelab.methods.snip import Snip
from prunelab.methods.soft_threshold import SoftThreshold
from prunelab.methods.static import Dense, SmallDense, SmallDenseMacs, Static
from prunelab.methods.woodfisher import WoodFisher

METHODS: dict[str, type[Dense]] = {
    "dense": Dense,
    "small_dense": SmallDense,
    "small_dense_macs": SmallDenseMacs,
    "static": Static,
    "snip": Snip,
    "set": SparseEvolutionaryTraining,
    "snfs": SparseMomentum,
    "rigl": RigL,
    "gmp": GradualPruning,
    "woodfisher": WoodFisher,
    "acdc": AlternatingCompression,
    "str": SoftThreshold,
    "lottery": Ticket,
}
