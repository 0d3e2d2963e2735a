"""Invented figures of accuracy and cost for tests."""

from nnunet_kd.evaluation.confusion import Confusion
from nnunet_kd.evaluation.cost import Cost
from nnunet_kd.evaluation.measure import Measured
from nnunet_kd.evaluation.metrics import METRICS
from nnunet_kd.evaluation.rows import Row


def rows(**dice):
    """Create rows from the Dice of structures a and b in every case, by method; all other metrics are 0.5."""
    made = []
    for method, values in dice.items():
        for number, value in enumerate(values):
            metrics = {**dict.fromkeys(METRICS, 0.5), "dice": value}
            made.append(Row(method, f"c{number // 2}", "ab"[number % 2], metrics))
    return made


def counted(**volumes):
    """Create rows of one structure from the voxels of prediction and reference in every case, by method."""
    return [
        Row(method, f"c{number}", "a", dict.fromkeys(METRICS, 0.5), confusion=_confusion(*pair), right=0)
        for method, pairs in volumes.items()
        for number, pair in enumerate(pairs)
    ]


def _confusion(found, real):
    both = min(found, real)
    return Confusion(both, found - both, real - both, 100)


def measured(parameters, seconds):
    """Create the cost of a network from its parameters and its seconds per case."""
    return Measured(Cost(parameters, 10 * parameters, 1), 8.0, seconds, 2**28, "CPU, 2 threads", 5)
