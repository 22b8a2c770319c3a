"""The fingerprint: one for each function from images and texts to features."""

from __future__ import annotations

import json
import shutil
import warnings
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from encoders.tiny_models import OPEN_CLIP
from rada import EFTConfig, Features, RAdaClassifier
from rada.core.errors import CheckpointError, FeatureError
from rada.encoders import CustomEncoder, load_encoder
from rada.encoders.fingerprint import digest, module_digest

PLACES = {
    "clip": ("vision_config", "text_config"),
    "siglip": ("vision_config", "text_config"),
    "siglip2": ("vision_config", "text_config"),
    "align": ("text_config",),
    "blip": ("vision_config", "text_config"),
    "altclip": ("vision_config", "text_config"),
    "chinese_clip": ("vision_config", "text_config"),
    "vision_text": ("vision_config", "text_config"),
}
OTHERS = {"hidden_act": "relu", "num_attention_heads": 8, "layer_norm_eps": 0.3}
OPEN_CLIP_OTHERS = {
    "activation": ({"quick_gelu": True}, {}, {}),
    "heads": ({}, {}, {"heads": 8}),
    "head width": ({}, {"head_width": 16}, {}),
    "epsilon": ({}, {}, {"norm_kwargs": {"eps": 0.3}}),
    "pooling": ({}, {"pool_type": "avg"}, {}),
    "mask": ({}, {}, {"no_causal_mask": True}),
    "text pooling": ({}, {}, {"pool_type": "first"}),
}


def other_features(first, second, images, prompts):
    """Whether two models give different features: otherwise a test of theirs would show nothing."""
    pairs = (
        (first.encode_images(images), second.encode_images(images)),
        (first.encode_texts(prompts), second.encode_texts(prompts)),
    )
    return any(not torch.allclose(a, b, atol=1e-6, rtol=0) for a, b in pairs)


@pytest.mark.parametrize("setting", OTHERS)
@pytest.mark.parametrize("family", PLACES)
def test_settings_of_transformers(saved, tmp_path, images, prompts, family, setting):
    first = load_encoder(saved(family))
    folder = shutil.copytree(saved(family), tmp_path / family)
    for place in PLACES[family]:
        config = json.loads((folder / "config.json").read_text())
        config[place][setting] = OTHERS[setting]
        (folder / "config.json").write_text(json.dumps(config))
        second = load_encoder(folder)
        assert other_features(first, second, images, prompts)
        assert second.fingerprint != first.fingerprint
        shutil.copy(saved(family) / "config.json", folder)
    assert load_encoder(folder).fingerprint == first.fingerprint


@pytest.mark.parametrize("setting", OPEN_CLIP_OTHERS)
def test_settings_of_open_clip(saved, tmp_path, images, prompts, setting):
    first = load_encoder(saved("open_clip"))
    folder = shutil.copytree(saved("open_clip"), tmp_path / "other")
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    whole, vision, text = OPEN_CLIP_OTHERS[setting]
    config["model_cfg"] |= whole
    config["model_cfg"]["vision_cfg"] |= vision
    config["model_cfg"]["text_cfg"] |= text
    path.write_text(json.dumps(config))
    second = load_encoder(folder)
    assert other_features(first, second, images, prompts)
    assert second.fingerprint != first.fingerprint


def test_settings_without_effect(saved, tmp_path):
    folder = shutil.copytree(saved("clip"), tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"attention_dropout": 0.3, "initializer_range": 0.5}
    config |= {"transformers_version": "5.99", "some_new_option": None}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_encoder(folder).fingerprint == load_encoder(saved("clip")).fingerprint


def test_other_settings_find_nothing_in_the_cache(saved, tmp_path, images):
    from rada.data import ImageSplit
    from rada.features import FeatureCache, extract_features

    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
    split = ImageSplit.from_files(
        tmp_path, [f"{i}.png" for i in range(4)], labels=[0, 1, 0, 1], classes=("a", "b")
    )
    folder = shutil.copytree(saved("clip"), tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "gelu"
    (folder / "config.json").write_text(json.dumps(config))
    cache = FeatureCache(tmp_path / "cache")
    for place in (saved("clip"), folder):
        encoder = load_encoder(place)
        found = extract_features(encoder, split, cache=cache, workers=0, progress=False)
        torch.testing.assert_close(found.plain(), encoder.encode_images(images))


@pytest.fixture
def tagged(saved, monkeypatch):
    """Register the tiny model as architecture "rada-tiny" whose tag "quick" forces QuickGELU."""
    from open_clip import factory, pretrained

    weights = str(saved("open_clip") / "open_clip_model.safetensors")
    tiny = OPEN_CLIP["open_clip"]
    monkeypatch.setitem(factory._MODEL_CONFIGS, "rada-tiny", tiny)
    monkeypatch.setitem(
        factory._MODEL_CONFIGS,
        "rada-tiny-quickgelu",
        json.loads(json.dumps(tiny)) | {"quick_gelu": True},
    )
    plain, quick = ({"file": weights}, {"file": weights, "quick_gelu": True})
    monkeypatch.setitem(pretrained._PRETRAINED, "rada-tiny", {"plain": plain, "quick": quick})
    monkeypatch.setitem(pretrained._PRETRAINED, "rada-tiny-quickgelu", {"quick": quick})
    return weights


def test_one_function_has_one_fingerprint(tagged, tmp_path):
    forced = load_encoder("open_clip:rada-tiny/quick")
    assert "QuickGELU" in repr(forced.model)
    named = load_encoder("open_clip:rada-tiny-quickgelu/quick")
    built = load_encoder(forced.model, tokenizer=forced.tokenizer)
    forced.save(tmp_path / "saved")
    again = load_encoder(tmp_path / "saved")
    assert {e.fingerprint for e in (named, built, again)} == {forced.fingerprint}
    assert load_encoder("open_clip:rada-tiny/plain").fingerprint != forced.fingerprint


def test_quick_gelu_of_a_tag_is_saved(tagged, tmp_path, images, prompts):
    forced = load_encoder("open_clip:rada-tiny/quick")
    assert other_features(forced, load_encoder("open_clip:rada-tiny/plain"), images, prompts)
    forced.save(tmp_path / "saved")
    again = load_encoder(tmp_path / "saved")
    torch.testing.assert_close(again.encode_images(images), forced.encode_images(images))
    torch.testing.assert_close(again.encode_texts(prompts), forced.encode_texts(prompts))


def test_quick_gelu_of_a_tag_survives_fine_tuning(tagged, tmp_path, images):
    from finetune.conftest import write_pictures
    from rada import FineTuner, get_method

    data = write_pictures(tmp_path / "photos", 3, 0)
    encoder = load_encoder("open_clip:rada-tiny/quick")
    config = get_method("ft").config(epochs=1, batch_size=4)
    tuner = FineTuner(encoder, "ft", config, workers=0, progress=False)
    tuner.fit(data, output_dir=tmp_path / "tuned")
    again = load_encoder(tmp_path / "tuned" / "encoder")
    assert "QuickGELU" in repr(again.model)
    saved = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert again.fingerprint == saved["tuned"]


def custom(image_fn, **options):
    layer = nn.Linear(3, 4)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    table = nn.Embedding(10, 4)
    nn.init.ones_(table.weight)
    return CustomEncoder(
        partial(image_fn, layer),
        lambda tokens: table(tokens["numbers"]),
        scale=5.0,
        dim=4,
        tokenize=lambda texts: {"numbers": torch.tensor([len(text) % 10 for text in texts])},
        **{"image_module": layer, "text_module": table} | options,
    )


def closure(factor):
    return lambda layer, pixels: layer(pixels.mean((2, 3)) * factor)


def test_functions_of_a_custom_encoder():
    functions = [
        lambda layer, pixels: layer(2 * pixels.mean((2, 3))),
        lambda layer, pixels: layer(3 * pixels.mean((2, 3))),
        lambda layer, pixels: layer(pixels.mean((2, 3)).sin()),
        lambda layer, pixels: layer(pixels.mean((2, 3)).cos()),
        closure(2.0),
        closure(3.0),
    ]
    found = [custom(function).fingerprint for function in functions]
    assert len(set(found)) == len(found)
    assert [custom(function).fingerprint for function in functions] == found


def test_settings_of_a_custom_module():
    def make(heads):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, heads, 8, batch_first=True)
        return custom(
            lambda _, pixels: layer(pixels.mean((2, 3))[:, None].repeat(1, 1, 3)[..., :8])[:, 0],
            image_module=layer,
        )

    assert make(2).fingerprint == make(2).fingerprint != make(4).fingerprint


def test_a_function_without_its_module_is_probed():
    """The text encoder's module must not hide that the image encoder's weights are others."""

    def make(value):
        hidden = nn.Linear(3, 4)
        nn.init.constant_(hidden.weight, value)
        nn.init.ones_(hidden.bias)
        return custom(lambda _, pixels: hidden(pixels.mean((2, 3))), image_module=None)

    assert make(0.5).fingerprint == make(0.5).fingerprint != make(0.25).fingerprint


def as_written_before(encoder):
    """Compute the fingerprint of rada 0.1.0, which left the architecture out."""
    parts = (encoder.family, module_digest(encoder.model), encoder.transform_key("preprocess"))
    return digest(*parts, digest(encoder.tokenizer_key()))


@pytest.fixture
def old_head(saved, tmp_path, images):
    """Save a head as rada 0.1.0 did."""
    encoder = load_encoder(saved("clip"))
    features = Features(
        encoder.encode_images(images * 2),
        [0, 1, 0, 1] * 2,
        ("a", "b"),
        encoder_fingerprint=encoder.fingerprint,
    )
    config = EFTConfig(epochs=1, min_steps=0, num_heads=1, strength=1.0)
    classifier = RAdaClassifier(encoder, config=config, progress=False).fit(features)
    classifier.save_pretrained(tmp_path / "head")
    path = tmp_path / "head" / "config.json"
    written = json.loads(path.read_text())
    written["encoder"]["fingerprint"] = as_written_before(encoder)
    path.write_text(json.dumps(written))
    return tmp_path / "head", features


def test_old_heads_load_with_a_warning(old_head, tmp_path):
    head, _ = old_head
    classifier = RAdaClassifier.from_pretrained(head)
    with pytest.warns(UserWarning, match="earlier rada, which left the architecture out"):
        assert classifier.encoder_ is not None
    classifier.save_pretrained(tmp_path / "renewed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert RAdaClassifier.from_pretrained(tmp_path / "renewed").encoder_ is not None


def test_old_heads_of_other_weights_are_refused(old_head, saved, tmp_path):
    head, _ = old_head
    folder = shutil.copytree(saved("clip"), tmp_path / "other")
    path = next(folder.glob("*.safetensors"))
    weights = load_file(path)
    weights["visual_projection.weight"] += 1
    from safetensors.torch import save_file

    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"weights, architecture, preprocessing, tokenizer or precision"
    ):
        RAdaClassifier.from_pretrained(head, encoder=folder)


def test_heads_of_another_architecture_are_refused(old_head, saved, tmp_path):
    head, _ = old_head
    classifier = RAdaClassifier.from_pretrained(head)
    with pytest.warns(UserWarning, match="earlier rada"):
        assert classifier.encoder_ is not None
    classifier.save_pretrained(tmp_path / "renewed")
    folder = shutil.copytree(saved("clip"), tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_attention_heads"] = 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="architecture"):
        RAdaClassifier.from_pretrained(tmp_path / "renewed", encoder=folder)


def test_old_features_are_accepted_with_a_warning(old_head):
    from dataclasses import replace

    head, features = old_head
    classifier = RAdaClassifier.from_pretrained(head)
    with pytest.warns(UserWarning, match="earlier rada"):
        encoder = classifier.encoder_
    old = replace(features, encoder_fingerprint=as_written_before(encoder))
    with pytest.warns(UserWarning, match="earlier rada"):
        classifier.score(old)
    with pytest.raises(FeatureError, match="encode them again"):
        classifier.score(replace(features, encoder_fingerprint="0" * 32))
