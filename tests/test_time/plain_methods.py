"""Plain transcriptions of the test-time methods from their papers: one image, loops, no shortcuts."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import normalize

from oracle import image_mask


def entropy(probability):
    return float(-(probability * probability.clamp(min=1e-300).log()).sum())


def by_confidence(logits):
    """Numbers of the views, lowest entropy first."""
    return sorted(range(len(logits)), key=lambda view: entropy(logits[view].softmax(-1)))


def zero(logits, count):
    """The class that ZERO names, from the logits of one image's views (Algorithm 1 and its ties)."""
    order = by_confidence(logits)
    names = [int(logits[view].argmax()) for view in order]
    kept = names[:count]
    most = max(kept.count(name) for name in kept)
    winners = {name for name in kept if kept.count(name) == most}
    for name in (*names[count:], *kept):
        if name in winners:
            return name
    raise AssertionError


def mta(views, text, scale, config):
    """The logits of MTA's mode, from one image's views (equations 2 to 8)."""
    count = len(views)
    chances = [(scale * text @ view).softmax(-1) for view in views]
    widths = []
    for view in views:
        far = sorted(float((view - other).square().sum()) for other in views)[1:]
        near = far[: max(1, int(config.neighbours * (count - 1)))]
        widths.append(sum(near) / len(near))
    weights = [1 / count] * count
    mode = views[0]

    def kernel(index):
        return math.exp(-float((views[index] - mode).square().sum()) / widths[index])

    for _ in range(config.iterations):
        for _ in range(config.iterations):
            scores = []
            for p in range(count):
                alike = sum(weights[q] * float(chances[p] @ chances[q]) for q in range(count))
                scores.append((kernel(p) + config.affinity_weight * alike) / config.entropy_weight)
            weights = torch.tensor(scores, dtype=torch.float64).softmax(-1).tolist()
        for _ in range(config.iterations):
            shares = [weights[p] * kernel(p) for p in range(count)]
            mode = sum(share * view for share, view in zip(shares, views, strict=True))
            mode = mode / mode.norm()
    return scale * text @ mode


def tda(features, text, scale, config):
    """The logits of every image of a stream (equations 4 to 8), the caches as lists of tuples."""
    positive, negative = {}, {}
    answers = []
    classes = len(text)
    for feature in features:
        logits = scale * text @ feature
        chance = logits.softmax(-1)
        own, name = entropy(chance), int(chance.argmax())
        for cache, size, use in (
            (positive, config.positive_size, True),
            (
                negative,
                config.negative_size,
                config.lowest_entropy < own / math.log(classes) < config.highest_entropy,
            ),
        ):
            if use:
                cache.setdefault(name, []).append((own, feature, chance))
                cache[name] = sorted(cache[name], key=lambda entry: entry[0])[:size]
        for name, entries in positive.items():
            for _, key, _ in entries:
                near = math.exp(-config.positive_sharpness * (1 - float(key @ feature)))
                logits[name] += config.positive_weight * near
        for entries in negative.values():
            for _, key, chance in entries:
                near = math.exp(-config.negative_sharpness * (1 - float(key @ feature)))
                for k in range(classes):
                    if chance[k] > config.least_probability:
                        logits[k] -= config.negative_weight * near
        answers.append(logits)
    return torch.stack(answers)


def rada(head, views, text, scale, config):
    """The logits of RAda at test time of one image, with the mask of the oracle and autograd.

    A step goes down the gradient of the entropy of the kept views' mean prediction, so far that the
    entry of a mask that moves most, of the kept views and the original, moves by `max_step`.
    """
    scale = torch.as_tensor(scale, dtype=text.dtype)
    learned = [head.out.weight, head.out.bias]
    strength = 1.0 if config.strength is None else config.strength

    def masks(view):
        return 1 + strength * (image_mask(head, view, text, scale) - 1)

    def logits(view):
        return scale * (masks(view) * view * text).sum(1)

    with torch.no_grad():
        before = torch.stack([logits(view) for view in views])
    kept = by_confidence(before)[: config.kept(len(views))]
    leader = int(before[kept].softmax(-1).mean(0).argmax())
    votes = sum(int(row.argmax()) == leader for row in before)
    if votes < config.agreement * len(views):
        return before[0]
    looked_at = [views[number] for number in (*kept, 0)]
    for _ in range(config.steps):
        found = [logits(views[number]) for number in kept]
        mean = torch.stack([row.softmax(-1) for row in found]).mean(0)
        loss = -(mean * mean.log()).sum()
        if config.alpha:
            peaks = [(masks(views[number]) - 1).abs().max() for number in kept]
            loss = loss + config.alpha * torch.stack(peaks).mean()
        gradients = torch.autograd.grad(loss, learned)
        with torch.no_grad():
            # The masks are linear in what is learned, so a small probe tells how far a step goes.
            old = [masks(view) for view in looked_at]
            probe = 1e-4 / max(float(gradient.abs().max()) for gradient in gradients)
            for parameter, gradient in zip(learned, gradients, strict=True):
                parameter -= probe * gradient
            moved = max(
                float((masks(view) - mask).abs().max())
                for view, mask in zip(looked_at, old, strict=True)
            )
            length = config.max_step / (moved / probe)
            promised = length * sum(float(gradient.square().sum()) for gradient in gradients)
            length *= promised / (promised + 1e-6)
            for parameter, gradient in zip(learned, gradients, strict=True):
                parameter -= (length - probe) * gradient
    with torch.no_grad():
        if config.predict_with == "kept":
            return torch.stack([logits(views[n]).softmax(-1) for n in kept]).mean(0).log()
        return logits(views[0])


def problem(images=7, views=20, classes=5, dim=16, seed=0, dtype=torch.float64, noise=0.3):
    """Views of images that are near their classes, and class features."""
    generator = torch.Generator().manual_seed(seed)
    text = normalize(torch.randn(classes, dim, generator=generator, dtype=dtype), dim=-1)
    truth = torch.arange(images) % classes
    offsets = torch.randn(images, views, dim, generator=generator, dtype=dtype)
    return normalize(text[truth][:, None] + noise * offsets, dim=-1), text
