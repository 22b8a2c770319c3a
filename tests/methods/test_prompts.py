"""Methods that learn prompts, against plain transcriptions of their public code on a tiny CLIP."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div, linear

import rada.methods.deep_text as deep_text
import rada.methods.prompts as prompts
from finetune.plain_clip import text_features
from methods.test_recipes import coop_rates
from rada.core.errors import ConfigError
from rada.features import ClassSet
from rada.methods import Run, get_method
from rada.methods.kgcoop import drift
from rada.methods.prompts import context_vectors, prompted_text

NAMES = ("red", "green", "blue")


def text_of(encoder, context):
    """The text encoder on a context before each name, through transformers alone."""
    tokens = encoder.tokenizer([f"{'the ' * len(context)}{name}." for name in NAMES], padding=True)
    ids = torch.tensor(tokens["input_ids"])
    mask = torch.tensor(tokens["attention_mask"])
    embeddings = encoder.model.text_model.embeddings.token_embedding(ids).detach().clone()
    whole = torch.cat(
        [embeddings[:, :1], context.expand(3, -1, -1), embeddings[:, 1 + len(context) :]], 1
    )
    layer = encoder.model.text_model.embeddings.token_embedding
    hook = layer.register_forward_hook(lambda *_: whole)
    try:
        found = encoder.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    finally:
        hook.remove()
    return torch.nn.functional.normalize(found, dim=-1)


def trained(encoder, data, context, epochs, gradient):
    """SGD by CoOp's schedule; all images are one batch."""
    context = torch.nn.Parameter(context.clone())
    optimizer = torch.optim.SGD([context], lr=0.1, momentum=0.9, weight_decay=5e-4)
    for rate in coop_rates(epochs, 0.002):
        optimizer.param_groups[0]["lr"] = rate
        text = text_of(encoder, context)
        logits = data.scale * data.plain() @ text.T
        optimizer.zero_grad()
        context.grad = gradient(context, logits, text)
        optimizer.step()
    return context.detach()


def free_gradient(context, logits, data):
    return torch.autograd.grad(cross_entropy(logits, data.labels), context)[0]


def test_kgcoop_is_coop_with_a_pull_to_the_written_prompts(clip, text_data):
    def gradient(context, logits, text):
        far = 1 - cosine_similarity(text, text_data.text_features).mean()
        loss = cross_entropy(logits, text_data.labels) + 8 * far
        return torch.autograd.grad(loss, context)[0]

    start = context_vectors(clip, "a photo of a")
    expected = trained(clip, text_data, start, 20, gradient)
    method = get_method("kgcoop")
    model = method.fit(text_data, method.config(epochs=20), Run(seed=1, encoder=clip))
    torch.testing.assert_close(model.context.detach(), expected, atol=1e-5, rtol=1e-3)
    assert (expected - start).abs().max() > 1e-3
    free = trained(
        clip, text_data, start, 20, lambda c, logits, _: free_gradient(c, logits, text_data)
    )
    far = [drift(text_of(clip, c), text_data.text_features) for c in (expected, free)]
    assert far[0] < far[1]  # the pull holds it


def test_prograd_takes_the_conflict_out_of_the_gradient(clip, text_data):
    seen = []
    # Labels that zero-shot does not give make the two gradients conflict.
    chances = (text_data.scale * text_data.plain() @ text_data.text_features.T).softmax(1)
    data = dataclasses.replace(text_data, labels=chances.argmin(1))
    assert len(data.labels.unique()) > 1
    teacher = (data.scale * data.plain() @ data.text_features.T).softmax(1)

    def gradient(context, logits, text):
        own = torch.autograd.grad(cross_entropy(logits, data.labels), context, retain_graph=True)[0]
        loss = kl_div(logits.log_softmax(1), teacher, reduction="batchmean")
        general = torch.autograd.grad(loss, context)[0]
        direction = general / general.norm()
        against = torch.dot(own.flatten(), direction.flatten())
        seen.append(bool(against < 0))
        return own - against * direction if against < 0 else own

    start = torch.cat([torch.zeros(2, 32), context_vectors(clip, "a photo of a")])
    expected = trained(clip, data, start, 20, gradient)
    method = get_method("prograd")
    config = method.config(epochs=20, length=6)
    model = method.fit(data, config, Run(seed=1, encoder=clip))
    assert any(seen)
    torch.testing.assert_close(model.context.detach(), expected, atol=1e-5, rtol=1e-3)
    history = model.record["history"]
    assert all(entry["divergence"] >= 0 for entry in history)
    whole = method.fit(data, dataclasses.replace(config, strength=0.0), Run(seed=1, encoder=clip))
    assert not torch.allclose(whole.context, model.context, atol=1e-5)


def test_tcp_puts_class_tokens_into_a_deep_layer(clip, text_data):
    method, run = get_method("tcp"), Run(seed=1, encoder=clip)
    config = method.config(epochs=15, batch_size=64)
    start = method.start(text_data, config, run)
    own = {k: v.detach().clone().requires_grad_() for k, v in start.named_parameters()}
    first = {k: v.detach().clone() for k, v in own.items()}
    rows = clip.tokenizer([f"{'the ' * 4}{name}." for name in NAMES], padding=True)
    ids, written = torch.tensor(rows["input_ids"]), text_data.text_features
    clip.freeze()

    def text_of_classes():
        hidden = linear(written, own["class_tokens.0.weight"], own["class_tokens.0.bias"])
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        tokens = linear(hidden, own["class_tokens.2.weight"], own["class_tokens.2.bias"])
        # Of the tiny encoder's two layers the second is the last; the paper's is 8 of 0 to 11.
        deep = (1, tokens.view(3, 4, 32))
        return text_features(clip.model, ids, prompts=[own["context"]], deep=deep)

    optimizer = torch.optim.Adam(own.values(), lr=2e-3, weight_decay=5e-4)
    for rate in coop_rates(15, 0.002):
        optimizer.param_groups[0]["lr"] = rate
        text = text_of_classes()
        loss = cross_entropy(text_data.scale * text_data.plain() @ text.T, text_data.labels)
        loss = loss + 8 * (1 - cosine_similarity(text, written).mean())
        optimizer.zero_grad()
        loss.backward()
        assert all(value.grad.abs().sum() > 0 for value in own.values())
        optimizer.step()
    model = method.fit(text_data, config, run)
    for key, value in own.items():
        found = dict(model.named_parameters())[key].detach()
        torch.testing.assert_close(found, value.detach(), atol=1e-4, rtol=1e-3)
    assert min((own[key] - first[key]).abs().max() for key in own) > 1e-3
    classes = text_data.class_set()
    expected = text_data.scale * text_data.plain() @ text_of_classes().T
    found = model.logits(text_data.plain(), classes)
    torch.testing.assert_close(found, expected.detach(), atol=2e-3, rtol=1e-3)
    longer = method.fit(text_data, method.config(epochs=60, learning_rate=0.01), run)
    right = [
        (m.logits(text_data.plain(), classes).argmax(1) == text_data.labels).float().mean()
        for m in (start, longer)
    ]
    assert right[1] > right[0] + 0.3
    assert set(dict(clip.model.named_parameters())) and not any(
        p.requires_grad for p in clip.model.parameters()
    )


def test_tcp_in_chunks_has_the_same_gradient(clip, monkeypatch):
    names = tuple(f"{a} {b}" for a in ("red", "blue", "dog") for b in ("cat", "car", "white"))
    deep = torch.randn(9, 4, 32)
    found = []
    for chunk in (64, 2):
        monkeypatch.setattr(deep_text, "TEXT_CHUNK", chunk)
        context = context_vectors(clip, "a photo of a").requires_grad_()
        inner = deep.clone().requires_grad_()
        text = deep_text.deep_prompted_text(clip, names, "a photo of a", [context, inner])
        (text @ torch.arange(24.0)).square().sum().backward()
        found.append((text.detach(), context.grad, inner.grad))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_published_values():
    tcp = get_method("tcp").config()
    assert (tcp.layer, tcp.weight, tcp.epochs, tcp.batch_size, tcp.reduction) == (8, 8.0, 50, 32, 4)
    assert (tcp.learning_rate, tcp.optimizer) == (2e-3, "adam")
    kgcoop, prograd = get_method("kgcoop").config(), get_method("prograd").config()
    assert (kgcoop.weight, kgcoop.batch_size, kgcoop.epochs) == (8.0, 128, 100)
    assert (prograd.length, prograd.batch_size, prograd.epochs) == (16, 32, 100)
    for config in (kgcoop, prograd, get_method("coop").config()):
        assert (config.learning_rate, config.optimizer, config.schedule) == (0.002, "sgd", "epochs")


def test_words_that_do_not_fit_are_refused(clip, text_data):
    method = get_method("prograd")
    with pytest.raises(ConfigError, match="4 tokens, more than length=3"):
        method.fit(text_data, method.config(length=3), Run(encoder=clip))


def test_many_classes_are_encoded_in_chunks_with_the_same_gradient(clip, monkeypatch):
    names = tuple(f"{a} {b}" for a in ("red", "blue", "dog") for b in ("cat", "car", "white"))
    found = []
    clip.unfreeze()  # a checkpoint runs again outside the block that holds the encoder still
    for chunk in (64, 2):
        monkeypatch.setattr(prompts, "TEXT_CHUNK", chunk)
        context = context_vectors(clip, "a photo of a").requires_grad_()
        text = prompted_text(clip, names, context)
        (text @ torch.arange(24.0)).square().sum().backward()
        found.append((text.detach(), context.grad))
        assert all(p.grad is None for p in clip.model.parameters())
        with torch.no_grad():
            torch.testing.assert_close(prompted_text(clip, names, context), text.detach())
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["rada_coop", "rada_kgcoop"])
def test_rada_prompt_is_the_head_on_learned_prompts(name, clip, text_data, tmp_path):
    method, below = get_method(name), get_method(name.removeprefix("rada_"))
    config = method.config(epochs=2, min_steps=20, prompt_epochs=3, strength=1.0)
    run = Run(seed=1, encoder=clip, state_dir=tmp_path)
    model = method.fit(text_data, config, run)
    prompt = below.fit(text_data, below.config(epochs=3), Run(seed=1, encoder=clip))
    assert torch.equal(model.context, prompt.context)
    assert len(model.record["prompts"]["history"]) == 3
    classes = text_data.class_set()
    learned = prompt.prepare(classes)
    head = get_method("rada").fit(
        dataclasses.replace(text_data, text_features=learned.text_features.detach()),
        get_method("rada").config(epochs=2, min_steps=20, strength=1.0),
        Run(seed=1),
    )
    found = model.logits(text_data.plain(), classes)
    torch.testing.assert_close(found, head.logits(text_data.plain(), learned))
    # A new class gets the same context, and strength 0 is zero-shot.
    others = ClassSet(("red", "dog"), clip.encode_classes(("red", "dog")))
    expected = head.logits(text_data.plain(), prompt.prepare(others))
    torch.testing.assert_close(model.logits(text_data.plain(), others), expected)
    zero_shot = 50.0 * text_data.plain() @ others.text_features.T
    torch.testing.assert_close(model.logits(text_data.plain(), others, strength=0), zero_shot)
    again = method.fit(text_data, config, run)  # from the states that are there
    assert torch.equal(again.logits(text_data.plain(), classes), found)


def test_rada_prompt_chooses_its_strength_with_prompts_of_the_folds(clip, text_data, monkeypatch):
    seen = []
    fit = type(get_method("coop")).fit

    def watched(self, data, *args, **options):
        if self.name == "coop":
            seen.append(data.classes)
        return fit(self, data, *args, **options)

    monkeypatch.setattr(prompts.PromptMethod, "fit", watched)
    names = ("red", "green", "blue", "dog")
    text = clip.encode_classes(names)
    labels = torch.arange(4).repeat(2)
    images = torch.nn.functional.normalize(text[labels] + torch.randn(8, 24) / 8, dim=-1)
    data = dataclasses.replace(
        text_data, image_features=images, labels=labels, classes=names, text_features=text, ids=()
    )
    method = get_method("rada_coop")
    config = method.config(epochs=1, min_steps=0, prompt_epochs=1)
    model = method.fit(data, config, Run(seed=1, encoder=clip))
    assert seen[0] == names and len(seen) == 3
    assert all(len(classes) == 2 for classes in seen[1:])  # held-out classes are unknown to them
    assert model.record["strength_choice"]["method"] == "classes"
