"""Weights of MedSAM get the images that MedSAM's published inference gives them."""

import numpy as np
import pytest
import torch
from skimage.transform import resize

from nnunet_kd.teachers.sam import SamSettings, SamTeacher
from nnunet_kd.teachers.sam_embeddings import Colours, SamEmbedder
from nnunet_kd.training.kd_sam.settings import KDSAMSettings
from tests.small_networks import tiny_sam

CPU = torch.device("cpu")
HEIGHT, WIDTH, SIDE = 20, 30, 64


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(20, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def sam():
    torch.manual_seed(0)
    return tiny_sam().eval()


def published_input(picture):
    """The lines of MedSAM's inference from a picture in uint8 to the input of its encoder."""
    stretched = resize(picture, (SIDE, SIDE), order=3, preserve_range=True, anti_aliasing=True).astype(np.uint8)
    scaled = (stretched - stretched.min()) / np.clip(stretched.max() - stretched.min(), a_min=1e-8, a_max=None)
    return torch.tensor(scaled).float().permute(2, 0, 1)


def seen_by(sam):
    seen = []
    sam.image_encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    return seen


def test_the_encoder_sees_the_slice_and_the_prompts_as_published(sam, picture):
    seen = seen_by(sam)
    structure = np.zeros((1, HEIGHT, WIDTH), dtype=bool)
    structure[0, 4:10, 6:21] = True
    teacher = SamTeacher(sam, SamSettings("tiny", normalisation="medsam", margin=0), CPU)
    logits = teacher.slice_logits(picture.transpose(2, 0, 1), structure)
    expected = published_input(picture)
    torch.testing.assert_close(seen[0][0], expected)
    assert seen[0].min() == 0 and seen[0].max() == 1

    box = torch.tensor([[6.0, 4.0, 20.0, 9.0]]) / torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]) * SIDE
    with torch.no_grad():
        sparse, dense = sam.prompt_encoder(points=None, boxes=box[:, None, :], masks=None)
        masks, _ = sam.mask_decoder(
            image_embeddings=sam.image_encoder(expected[None]),
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        whole = sam.postprocess_masks(masks, (SIDE, SIDE), (HEIGHT, WIDTH))
    np.testing.assert_allclose(logits[0], whole[0, 0].numpy(), rtol=1e-4, atol=1e-5)


def test_points_are_stretched_with_the_slice(sam, picture):
    given = []
    sam.prompt_encoder.register_forward_pre_hook(lambda _, args, words: given.append(words["points"]), with_kwargs=True)
    structure = np.zeros((1, HEIGHT, WIDTH), dtype=bool)
    structure[0, 8:11, 14:17] = True
    settings = SamSettings("tiny", prompt="points", normalisation="medsam")
    SamTeacher(sam, settings, CPU).slice_logits(picture.transpose(2, 0, 1), structure)
    torch.testing.assert_close(given[0][0], torch.tensor([[[15 * SIDE / WIDTH, 9 * SIDE / HEIGHT]]]))


def test_embeddings_are_of_the_same_input(sam, picture):
    seen = seen_by(sam)
    images = torch.from_numpy(picture.transpose(2, 0, 1) / 255).float()[None].repeat(2, 1, 1, 1)
    embedder = SamEmbedder(sam, Colours((0, 1, 2), (True, True, True)), CPU, "medsam")
    assert embedder(images).shape == (2, *embedder.shape)
    torch.testing.assert_close(seen[0], published_input(picture)[None].repeat(2, 1, 1, 1))


def test_a_store_of_sam_is_described_as_before(picture):
    assert "normalisation" not in SamSettings().described()
    assert SamSettings(normalisation="medsam").described()["normalisation"] == "medsam"
    with pytest.raises(ValueError, match="the normalisation must be one of sam, medsam, got 'imagenet'"):
        SamSettings(normalisation="imagenet")
    with pytest.raises(ValueError, match=r"method\.normalisation must be 'sam' or 'medsam', got 'imagenet'"):
        KDSAMSettings(checkpoint="sam.pth", normalisation="imagenet")
