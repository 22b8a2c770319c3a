"""Learned prompts: context vectors among the tokens, and prompts in the layers."""

from __future__ import annotations

import pytest
import torch

from rada.core.errors import EncoderError

WORDS = ["a dog", "the red car"]


@torch.no_grad()
def test_own_embeddings_change_nothing(encoder):
    tokens = encoder.tokenize(WORDS)
    embeddings = encoder.embed_tokens(tokens)
    torch.testing.assert_close(
        encoder.encode_texts_from_embeddings(embeddings, tokens), encoder.forward_texts(tokens)
    )


@torch.no_grad()
def test_context_of_words_is_a_prompt_of_words(encoder):
    """Learned vectors equal to the embeddings of "a photo of" give the prompt "a photo of ..."."""
    if encoder.family == "siglip2":
        pytest.skip("its tokenizer writes the space before a word into the word's token")
    context, names = "a photo of", ["red dog", "green cat"]
    start, length = encoder.context_start, 3
    vectors = encoder.embed_tokens(encoder.tokenize([context]))[:, start : start + length]
    tokens = encoder.tokenize_with_context(names, length)
    embeddings = encoder.embed_tokens(tokens)
    embeddings[:, start : start + length] = vectors
    found = encoder.encode_texts_from_embeddings(embeddings, tokens)
    expected = encoder.forward_texts(encoder.tokenize([f"{context} {name}" for name in names]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_context_learns(encoder):
    encoder.freeze()
    tokens = encoder.tokenize_with_context(WORDS, 2)
    embeddings = encoder.embed_tokens(tokens)
    start = encoder.context_start
    context = torch.zeros(2, embeddings.shape[-1], requires_grad=True)
    whole = torch.cat(
        [embeddings[:, :start], context.expand(2, -1, -1), embeddings[:, start + 2 :]], 1
    )
    features = encoder.encode_texts_from_embeddings(whole, tokens)
    assert features.shape == (2, encoder.dim)
    features[0, 0].backward()
    assert context.grad.abs().sum() > 0


def test_deep_text_prompts(encoder):
    tokens = encoder.tokenize_with_context(WORDS, 2)
    plain = encoder.forward_texts(tokens)
    width = encoder.embed_tokens(tokens).shape[-1]
    layers = len(encoder.text_layers())
    prompts = [None] + [torch.randn(2, width, requires_grad=True) for _ in range(layers - 1)]
    with encoder.deep_text_prompts(prompts):
        prompted = encoder.forward_texts(tokens)
    assert not torch.allclose(prompted, plain, atol=1e-4)
    prompted[:, 0].sum().backward()
    assert all(prompt.grad.abs().sum() > 0 for prompt in prompts[1:])
    torch.testing.assert_close(encoder.forward_texts(tokens), plain)
    with pytest.raises(EncoderError, match="deep prompts"), encoder.deep_text_prompts(prompts * 3):
        pass
    bad = torch.zeros(2, width + 1)
    with pytest.raises(EncoderError, match="does not fit"), encoder.deep_text_prompts([bad]):
        encoder.forward_texts(tokens)


def test_deep_image_prompts(encoder, images):
    pixels = torch.stack([encoder.preprocess(image) for image in images])
    if "deep_image_prompts" not in encoder.capabilities:
        with (
            pytest.raises(EncoderError, match="does not offer 'deep_image_prompts'"),
            encoder.deep_image_prompts([]),
        ):
            pass
        return
    plain = encoder.forward_images(pixels)
    width = 64 if encoder.family == "open_clip" else 32
    prompts = [torch.randn(3, width, requires_grad=True) for _ in encoder.image_layers()]
    with encoder.deep_image_prompts(prompts):
        prompted = encoder.forward_images(pixels)
    assert not torch.allclose(prompted, plain, atol=1e-4)
    prompted[:, 0].sum().backward()
    assert all(prompt.grad.abs().sum() > 0 for prompt in prompts)
    torch.testing.assert_close(encoder.forward_images(pixels), plain)


def test_tokens_inserted_into_the_last_layers_of_texts(encoder):
    tokens = encoder.tokenize(WORDS)
    plain = encoder.forward_texts(tokens)
    width = encoder.embed_tokens(tokens).shape[-1]
    layers = len(encoder.text_layers())
    rows = [torch.randn(2, width, requires_grad=True) for _ in range(layers - 1)]
    with encoder.inserted_tokens("text", rows) as seen:
        found = encoder.forward_texts(tokens)
        alone = encoder.forward_texts(encoder.tokenize(WORDS[:1]))
    assert not torch.allclose(found, plain, atol=1e-4)
    # Padding is still seen by nobody, and the rows behind the last layer are where they were.
    torch.testing.assert_close(found[:1], alone, atol=1e-5, rtol=1e-4)
    found[:, 0].sum().backward()
    assert all(row.grad.abs().sum() > 0 for row in rows)
    torch.testing.assert_close(encoder.forward_texts(tokens), plain)
    if (
        encoder.family == "clip"
    ):  # they see the start mark and each other, not the words behind them
        torch.testing.assert_close(seen[0][0], seen[0][1], atol=1e-5, rtol=1e-4)
    with pytest.raises(EncoderError, match="at most one group a layer"):
        encoder.inserted_tokens("text", rows * 9).__enter__()


def test_tokens_inserted_into_images_stand_anywhere(encoder, images):
    if "deep_image_prompts" not in encoder.capabilities:
        return
    pixels = torch.stack([encoder.preprocess(image) for image in images])
    width = 64 if encoder.family == "open_clip" else 32
    rows = [torch.randn(3, width) for _ in encoder.image_layers()[1:]]
    with encoder.deep_image_prompts([None, *rows]):
        expected = encoder.forward_images(pixels)
    with encoder.inserted_tokens("image", rows) as seen:
        found = encoder.forward_images(pixels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert seen[0].shape == (len(pixels), 3, width)
    norm = encoder.image_output_norm()
    assert isinstance(norm, torch.nn.LayerNorm) and norm(seen[0]).shape == seen[0].shape


def test_too_long_a_context_is_refused(encoder):
    with pytest.raises(EncoderError, match="do not fit into"):
        encoder.tokenize_with_context(["a dog"], 40)
    with pytest.raises(EncoderError, match="at least 1"):
        encoder.tokenize_with_context(["a dog"], 0)


def test_embeddings_of_the_wrong_shape_are_refused(encoder):
    tokens = encoder.tokenize(WORDS)
    embeddings = encoder.embed_tokens(tokens)
    for bad in (embeddings[:1], embeddings[:, :-1], embeddings[0]):
        with pytest.raises(EncoderError, match="do not fit tokens"):
            encoder.encode_texts_from_embeddings(bad, tokens)


def test_embedded_model_takes_context(embedded_encoder):
    encoder = embedded_encoder
    vectors = encoder.embed_tokens(encoder.tokenize(["a photo of a"]))[:, 1:5]
    tokens = encoder.tokenize_with_context(["dog.", "guitar."], 4)
    embeddings = encoder.embed_tokens(tokens).detach().clone()
    embeddings[:, 1:5] = vectors
    found = encoder.encode_texts_from_embeddings(embeddings, tokens)
    torch.testing.assert_close(found.detach(), encoder.encode_classes(["dog", "guitar"]))
