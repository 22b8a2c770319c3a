"""CLIP's two encoders layer by layer, tokens and branches put in by hand: what methods are held to."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize


def attention(layer, x, mask=None):
    own = layer.self_attn
    heads, (count, length, width) = own.num_heads, x.shape
    parts = [
        project(x).view(count, length, heads, width // heads).transpose(1, 2)
        for project in (own.q_proj, own.k_proj, own.v_proj)
    ]
    scores = parts[0] @ parts[1].transpose(2, 3) / (width // heads) ** 0.5
    if mask is not None:
        scores = scores + mask
    found = (scores.softmax(-1) @ parts[2]).transpose(1, 2).reshape(count, length, width)
    return own.out_proj(found)


def block(layer, x, mask=None, branch=None):
    change = 0 if branch is None else branch(layer.layer_norm1(x))
    x = x + attention(layer, layer.layer_norm1(x), mask)
    return x + layer.mlp(layer.layer_norm2(x)) + change


def inserted_into(x, tokens, first):
    """Tokens `(n, W)` behind the first row: further ones, or in the place of those of the layer before."""
    behind = 1 if first else 1 + len(tokens)
    return torch.cat([x[:, :1], tokens.expand(len(x), -1, -1), x[:, behind:]], 1)


def image_features(clip, pixels, prompts=(), branches=(), inserted=(), inputs=None):
    """Unit-norm features; prompts `(n, W)` behind the patches of the first layers, branches by layer.

    With tokens inserted into the last layers, also the mean of what becomes of them. What goes into each
    layer joins the list `inputs`.
    """
    vision = clip.vision_model
    x = vision.embeddings(pixels)
    if prompts:
        x = torch.cat([x, prompts[0].expand(len(x), -1, -1)], 1)
    x = vision.pre_layrnorm(x)
    first = len(vision.encoder.layers) - len(inserted)
    for number, layer in enumerate(vision.encoder.layers):
        if number >= first:
            x = inserted_into(x, inserted[number - first], number == first)
        if 0 < number < len(prompts):
            tokens = prompts[number].expand(len(x), -1, -1)
            x = torch.cat([x[:, : -tokens.shape[1]], tokens], 1)
        if inputs is not None:
            inputs.append(x)
        x = block(layer, x, branch=dict(enumerate(branches)).get(number))
    found = normalize(clip.visual_projection(vision.post_layernorm(x[:, 0])), dim=-1)
    if not inserted:
        return found
    return found, vision.post_layernorm(x[:, 1 : 1 + len(inserted[0])]).mean(1)


def text_features(clip, ids, prompts=(), branches=(), deep=None, inserted=()):
    """Unit-norm features; prompts `(n, E)` behind the start mark of the first layers."""
    text = clip.text_model
    x = text.embeddings.token_embedding(ids)

    def put(x, tokens):
        tokens = tokens.expand(len(x), -1, -1)
        return torch.cat([x[:, :1], tokens, x[:, 1 + tokens.shape[1] :]], 1)

    if prompts:
        x = put(x, prompts[0])
    x = x + text.embeddings.position_embedding.weight[: ids.shape[1]]
    first = len(text.encoder.layers) - len(inserted)
    for number, layer in enumerate(text.encoder.layers):
        if number >= first:
            x = inserted_into(x, inserted[number - first], number == first)
        mask = torch.full((x.shape[1],) * 2, -torch.inf).triu(1)
        if 0 < number < len(prompts):
            x = put(x, prompts[number])
        if deep is not None and number == deep[0]:
            x = put(x, deep[1])
        x = block(layer, x, mask, branch=dict(enumerate(branches)).get(number))
    ends = ids.argmax(-1) + (len(inserted[0]) if inserted else 0)
    x = text.final_layer_norm(x)[torch.arange(len(ids)), ends]
    return normalize(clip.text_projection(x), dim=-1)
