"""PyTorch's own layers with the weights of ours, to compare with."""

from torch import nn


def copy_linear(theirs, ours):
    theirs.weight.data, theirs.bias.data = ours.weight.data, ours.bias.data


def copy_attention(theirs, ours):
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.qkv.weight.data, ours.qkv.bias.data
    copy_linear(theirs.out_proj, ours.output)


def torch_layer(ours, config, norm_first=False):
    """Return PyTorch's encoder layer with our layer's weights, in double precision."""
    layer = nn.TransformerEncoderLayer(
        config.d_model,
        config.n_heads,
        config.d_ff,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=config.layer_norm_eps,
        batch_first=True,
        norm_first=norm_first,
    ).double()
    copy_attention(layer.self_attn, ours.attention)
    copy_linear(layer.linear1, ours.feed_forward.inner)
    copy_linear(layer.linear2, ours.feed_forward.outer)
    copy_linear(layer.norm1, ours.attention_norm)
    copy_linear(layer.norm2, ours.feed_forward_norm)
    return layer.eval()
