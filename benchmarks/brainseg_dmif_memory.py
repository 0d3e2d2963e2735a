"""Count what a training step of BrainSegDMIF needs: parameters by part, and memory at several batch sizes.

    python benchmarks/brainseg_dmif_memory.py [--modalities 4] [--size 256] [--batches 1 4 16] [--classes 2]

Nothing is computed: the tensors are fake, and the script counts what the forward pass keeps for the gradient, each
storage once. With checkpointing it adds the largest of the blocks that the backward pass computes again. "Mixed" is
autocast to 16 bits, whose copies of the weights are among what is kept. A real step needs more: the working memory of
each operation, and what the allocator wastes.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_kd.networks.brainseg_dmif import BrainSegDMIF

GIB = 2**30


def kept(forward: Callable[[], object], parameters: Iterable[nn.Parameter]) -> int:
    """Return the bytes that a forward pass saves for the gradient, without the parameters."""
    own = {parameter.untyped_storage()._cdata for parameter in parameters}
    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage  # held, so that no other storage gets its number
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    del result
    return sum(storage.nbytes() for storage in storages.values())


def saved_in_a_step(network: BrainSegDMIF, images: Tensor, mixed: bool) -> int:
    """Return the bytes that are kept at the peak of a step."""

    def precision() -> contextlib.AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16) if mixed else contextlib.nullcontext()

    def run(module: nn.Module, inputs: Tensor) -> object:
        with precision():
            return module(inputs)

    total = kept(partial(run, network, images), network.parameters())
    encoder = network.encoder
    if not encoder.activation_checkpointing:
        return total
    grid = network.decoder.image_size // encoder.encoders[0].patch_embed.proj.stride[0]
    width = encoder.encoders[0].pos_embed.shape[-1]
    tokens = torch.zeros(len(images), grid, grid, width, requires_grad=True)
    stacked = torch.zeros(len(images), len(encoder.encoders), grid, grid, width, requires_grad=True)
    again = [(block, tokens) for block in encoder.encoders[0].blocks] + [(dmif, stacked) for dmif in encoder.fusions]
    return total + max(kept(partial(run, module, inputs), module.parameters()) for module, inputs in again)


def main() -> None:
    """Print the parameters and the memory."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--modalities", type=int, default=4)
    options.add_argument("--size", type=int, default=256)
    options.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    options.add_argument("--classes", type=int, default=2)
    chosen = options.parse_args()

    with FakeTensorMode():
        networks = [
            BrainSegDMIF(chosen.modalities, chosen.classes, image_size=chosen.size, activation_checkpointing=saving)
            for saving in (False, True)
        ]
        network = networks[0]
        encoder, decoder = network.encoder, network.decoder
        parts = {
            f"{chosen.modalities} encoders": encoder.encoders,
            "DMIF": encoder.fusions,
            "neck": encoder.neck,
            "prompt generator": decoder.prompts,
            "modulation": decoder.modulation,
            "upsampling": decoder.paths,
            "all": network,
        }
        for name, part in parts.items():
            print(f"{name:<18}{sum(parameter.numel() for parameter in part.parameters()) / 1e6:>9.2f} M")
        weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters()) / GIB
        print(f"\nfor any batch: weights {weights:.2f} GiB, gradients {weights:.2f}, Adam's moments {2 * weights:.2f}")
        print(f"\n{'batch':>5}  {'precision':<9}  {'checkpointing':<13}  {'kept GiB':>9}  {'total GiB':>10}")
        for batch in chosen.batches:
            images = torch.zeros(batch, chosen.modalities, chosen.size, chosen.size)
            for mixed in (False, True):
                for candidate, saving in zip(networks, ("no", "yes"), strict=True):
                    saved = saved_in_a_step(candidate, images, mixed) / GIB
                    name = "mixed" if mixed else "float32"
                    print(f"{batch:>5}  {name:<9}  {saving:<13}  {saved:>9.2f}  {4 * weights + saved:>10.2f}")


if __name__ == "__main__":
    main()
