"""Pruning: a smaller network with selected channels of a larger one, fitted to the larger one's outputs.

The package needs nothing but PyTorch, and does not depend on a trainer, a data set or a particular network.
"""

from nnunet_kd.pruning.heads import Heads, MappedHeads
from nnunet_kd.pruning.pruning import Pruned, prune
from nnunet_kd.pruning.selection import other_layers, selected_weights

__all__ = ["Heads", "MappedHeads", "Pruned", "other_layers", "prune", "selected_weights"]
