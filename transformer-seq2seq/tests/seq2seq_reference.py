"""What to compare with: PyTorch's own layers with the weights of ours, and the probabilities of given outputs."""

import torch
import torch.nn.functional as F
from torch import nn


def copy_attention(theirs, ours):
    theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
    theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
    theirs.out_proj.load_state_dict(ours.output.state_dict())


@torch.no_grad()
def reference_stack(layers, config, kind, norm_first=False):
    """PyTorch's own layers with our weights."""
    stack = []
    for ours in layers:
        theirs = kind(
            config.d_model,
            config.n_heads,
            config.d_ff,
            dropout=0.0,
            activation=F.relu if config.activation == "relu" else F.silu,
            batch_first=True,
            norm_first=norm_first,
        )
        norms = [ours.self_attention_norm, ours.feed_forward_norm]
        copy_attention(theirs.self_attn, ours.self_attention)
        if kind is nn.TransformerDecoderLayer:
            copy_attention(theirs.multihead_attn, ours.cross_attention)
            norms.insert(1, ours.cross_attention_norm)
        theirs.linear1.load_state_dict(ours.feed_forward.inner.state_dict())
        theirs.linear2.load_state_dict(ours.feed_forward.outer.state_dict())
        for i, norm in enumerate(norms, start=1):
            getattr(theirs, f"norm{i}").load_state_dict(norm.state_dict())
        stack.append(theirs.train())  # without dropout the same as evaluation, and no fused fast path
    return stack


@torch.no_grad()
def token_log_probs(model, prompt, sequences):
    """The log-probabilities (N, T) of sequences of one length under teacher forcing."""
    sequences, pad_id = torch.tensor(sequences), model.config.pad_id
    target = torch.cat([torch.full((len(sequences), 1), pad_id), sequences[:, :-1]], dim=1)
    log_probs = model(torch.tensor([prompt]).expand(len(sequences), -1), target).log_softmax(dim=-1)
    return log_probs.gather(-1, sequences[..., None])[..., 0]
