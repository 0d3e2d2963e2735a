"""Reference implementation of surface distances from all pairs of surface voxels."""

import itertools

import numpy as np


def surface_voxels(mask):
    """Return the voxels of a mask that share a face with a voxel outside it or with the border of the image."""
    found = []
    for voxel in np.argwhere(mask):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            neighbour = voxel.copy()
            neighbour[axis] += step
            outside = neighbour[axis] < 0 or neighbour[axis] >= mask.shape[axis]
            if outside or not mask[tuple(neighbour)]:
                found.append(voxel)
                break
    return np.array(found, float)


def brute_force(reference, prediction, spacing, tolerance):
    """Return the HD95 and the NSD of two masks, in the unit of the spacing."""
    a, b = (surface_voxels(mask) * np.array(spacing) for mask in (reference, prediction))
    distances = np.sqrt(((a[:, None] - b[None]) ** 2).sum(2))
    there, back = distances.min(0), distances.min(1)
    within = (there <= tolerance).sum() + (back <= tolerance).sum()
    return max(np.percentile(there, 95), np.percentile(back, 95)), within / (len(a) + len(b))
