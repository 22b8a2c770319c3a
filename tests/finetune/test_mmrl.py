"""MMRL on a tiny CLIP, against a plain loop over its layers."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, linear, normalize

from finetune.plain_clip import image_features, text_features
from finetune.test_inserted import ids_of, pixels_of, predicted
from methods.test_recipes import coop_rates
from rada.core.errors import ConfigError
from rada.features import ClassSet
from rada.methods import Run, get_method

METHOD = get_method("mmrl")
QUICK = {"batch_size": 20, "augmentation": "plain", "space": 16, "length": 3}


def config(**changes):
    return METHOD.config(**QUICK | changes)


def features(encoder, p, pixels, names, layers):
    """Features of images by the class token and by the inserted tokens, and features of classes."""
    image, text = (
        [
            linear(
                p["inserts.tokens"],
                *(p[f"inserts.{side}.{i}.{part}"] for part in ("weight", "bias")),
            )
            for i in range(layers)
        ]
        for side in ("image", "text")
    )
    found, mean = image_features(encoder.model, pixels, inserted=image)
    own = normalize(mean @ p["inserts.projection"], dim=-1)
    return found, own, text_features(encoder.model, ids_of(encoder, names), inserted=text)


def test_it_is_the_published_loop(encoder, examples):
    epochs, run = 6, Run(seed=1, encoder=encoder)
    start = METHOD.start(examples, config(), run)
    first = {k: v.detach().clone() for k, v in start.named_parameters() if v.requires_grad}
    own = {k: v.clone().requires_grad_() for k, v in first.items()}
    pixels, labels, names = pixels_of(encoder, examples), examples.labels, examples.classes
    encoder.freeze()
    frozen, written = image_features(encoder.model, pixels), examples.text_features
    optimizer = torch.optim.AdamW(own.values(), lr=1.0, weight_decay=5e-4)
    for rate in coop_rates(epochs, 1e-3):
        optimizer.param_groups[0]["lr"] = rate
        images, tokens, text = features(encoder, own, pixels, names, 2)
        entropies = [cross_entropy(encoder.scale * x @ text.T, labels) for x in (images, tokens)]
        loss = 0.7 * entropies[0] + 0.3 * entropies[1]
        loss = loss + 1 - cosine_similarity(images, frozen).mean()
        loss = loss + 1 - cosine_similarity(text, written).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model = METHOD.fit(examples, config(epochs=epochs), run)
    found = {k: v.detach() for k, v in model.named_parameters() if k in first}
    for key, value in own.items():
        torch.testing.assert_close(found[key], value.detach(), atol=3e-4, rtol=2e-3)
        assert (value - first[key]).abs().max() > 1e-3, key
    images, tokens, text = features(encoder, found, pixels, names, 2)
    fused = encoder.scale * (0.7 * images + 0.3 * tokens) @ text.T
    torch.testing.assert_close(predicted(model, examples), fused, atol=1e-3, rtol=1e-3)
    # A new class among the candidates: the class token's feature answers alone, for all of them.
    others = ClassSet((names[1], "dog"), examples.text_features[:2])
    both = features(encoder, found, pixels, others.names, 2)
    alone = encoder.scale * both[0] @ both[2].T
    torch.testing.assert_close(predicted(model, examples, others), alone, atol=1e-3, rtol=1e-3)


def test_tokens_enter_the_last_layers_alone_and_the_encoder_keeps_its_width(encoder, examples):
    start = METHOD.start(examples, config(layers=1), Run(seed=1, encoder=encoder))
    own = dict(start.named_parameters())
    pixels = pixels_of(encoder, examples)
    images, tokens, text = features(encoder, own, pixels, examples.classes, 1)
    fused = encoder.scale * (0.7 * images + 0.3 * tokens) @ text.T
    torch.testing.assert_close(predicted(start, examples), fused.detach(), atol=1e-4, rtol=1e-3)
    assert (start.encoder.dim, encoder.dim) == (48, 24)
    with start.plain_encoder() as frozen:
        assert frozen.dim == 24
        torch.testing.assert_close(frozen.forward_images(pixels), examples.plain())
    zero_shot = encoder.scale * images @ text.T
    found = start.logits(start.features_of(examples), examples.class_set(), strength=0.0)
    torch.testing.assert_close(found, zero_shot.detach(), atol=1e-4, rtol=1e-3)


def test_published_values():
    found = METHOD.config()
    assert (found.layers, found.length, found.space, found.class_share) == (7, 5, 512, 0.7)
    assert (found.epochs, found.batch_size, found.learning_rate) == (10, 4, 1e-3)
    assert (found.optimizer, found.weight_decay, found.pull) == ("adamw", 5e-4, 1.0)
    with pytest.raises(ConfigError, match="class_share should be in"):
        config(class_share=2.0)
