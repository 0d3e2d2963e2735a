"""A smaller network from a larger one: its channels chosen, its weights fitted to what the larger network gives.

This room needs PyTorch alone, and knows no trainer, no data and no particular network.
"""

from nnunet_kd.pruning.heads import Heads
from nnunet_kd.pruning.pruning import Pruned, prune
from nnunet_kd.pruning.selection import selected_weights

__all__ = ["Heads", "Pruned", "prune", "selected_weights"]
