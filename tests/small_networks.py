"""Small networks for tests."""

from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn


def unet(width=4):
    """Return a 2-D U-Net of nnU-Net's with three stages, two input channels and three classes."""
    widths, strides = [width, 2 * width, 4 * width], [[1, 1], [2, 2], [2, 2]]
    norm = {"norm_op": nn.InstanceNorm2d, "norm_op_kwargs": {"affine": True}, "nonlin": nn.LeakyReLU}
    return PlainConvUNet(2, 3, widths, nn.Conv2d, 3, strides, 1, 3, 1, conv_bias=True, deep_supervision=True, **norm)


def tiny_sam(checkpoint=None, image_size=64):
    """Build SAM from its published classes with a width of 32, for small images."""
    from functools import partial

    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    assert checkpoint is None
    frame, grid = (image_size, image_size), (image_size // 16, image_size // 16)
    encoder = ImageEncoderViT(
        img_size=image_size,
        patch_size=16,
        embed_dim=16,
        depth=2,
        num_heads=2,
        out_chans=32,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=3,
        global_attn_indexes=(1,),
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=4)
    return Sam(
        encoder,
        PromptEncoder(embed_dim=32, image_embedding_size=grid, input_image_size=frame, mask_in_chans=4),
        MaskDecoder(num_multimask_outputs=3, transformer=transformer, transformer_dim=32),
    )
