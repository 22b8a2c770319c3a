"""Templates chosen on the labelled images, and what the rest of the library makes of the choice."""

from __future__ import annotations

import dataclasses
import logging
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from features.tiny import DIM, TinyEncoder, write_images
from rada import Classifier, Features
from rada.core.errors import ConfigError, DataError
from rada.data import DEFAULT_TEMPLATE, ImageDataset, load_templates
from rada.data.templates import ENSEMBLE, IMAGENET_TEMPLATES
from rada.features import template_choice
from rada.features.template_choice import FEW, MOST_CLASSES, MOST_IMAGES, choose_templates

NAMES = ("cat", "dog", "eel", "fox")
DOODLE = "a doodle of a {}."


class WordEncoder(TinyEncoder):
    """Gives every prompt a direction of its own, and counts the prompts."""

    asked = 0

    def text_embeddings(self, tokens):
        rows = []
        for (seed,) in tokens["input_ids"].tolist():
            rows.append(torch.randn(DIM, generator=torch.Generator().manual_seed(seed)))
        return torch.stack(rows)

    def tokenize_checked(self, prompts):
        self.asked += len(prompts)
        return {"input_ids": torch.tensor([[zlib.crc32(text.encode())] for text in prompts])}, []


@pytest.fixture
def encoder() -> WordEncoder:
    return WordEncoder()


def near(
    encoder: WordEncoder,
    template: str,
    *,
    shots: int = 4,
    noise: float = 0.1,
    names: tuple[str, ...] = NAMES,
    own: tuple[str, ...] = (DEFAULT_TEMPLATE,),
) -> Features:
    """Images whose classes look like the prompts of a template, with the class features of others."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(len(names)).repeat(shots)
    text = encoder.encode_classes(names, (template,))
    images = text[labels] + noise * torch.randn(len(labels), DIM, generator=generator)
    return Features(
        normalize(images, dim=-1),
        labels,
        names,
        text_features=encoder.encode_classes(names, own),
        scale=20.0,
        templates=own,
    )


def test_the_bundled_templates_are_those_of_clip() -> None:
    open_clip = pytest.importorskip("open_clip")
    published = tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    assert published == IMAGENET_TEMPLATES
    assert set(ENSEMBLE) < set(IMAGENET_TEMPLATES)
    assert DEFAULT_TEMPLATE in IMAGENET_TEMPLATES
    assert load_templates(IMAGENET_TEMPLATES) == IMAGENET_TEMPLATES


def test_the_template_that_the_images_look_like_is_chosen(encoder: WordEncoder) -> None:
    features = near(encoder, DOODLE)
    found, choice = choose_templates(features, encoder)
    assert choice.changed
    assert choice.templates == found.templates == (DOODLE,)
    assert torch.equal(found.text_features, encoder.encode_classes(NAMES, (DOODLE,)))
    assert choice.gain > choice.standard_error > 0
    assert choice.own == (DEFAULT_TEMPLATE,)
    assert (choice.images, choice.classes) == (16, 4)
    values = list(choice.log_likelihoods.values())
    assert values == sorted(values, reverse=True)
    # own, 79 other templates (one is the data's own), two ensembles of CLIP, and the best few
    assert len(values) == 1 + 79 + 2 + len(FEW)
    best = choice.log_likelihoods[DOODLE]
    assert best - choice.log_likelihoods["the data's own"] == pytest.approx(choice.gain)


def test_the_order_of_the_images_does_not_matter(encoder: WordEncoder) -> None:
    features = near(encoder, DOODLE)
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(1))
    first, second = (
        choose_templates(found, encoder)[1] for found in (features, features.subset(order))
    )
    assert first.templates == second.templates
    assert first.gain == pytest.approx(second.gain, abs=1e-6)


def test_the_data_keep_their_own_where_no_others_are_better_by_more_than_chance(
    encoder: WordEncoder,
) -> None:
    unknown = "a zzz {}."  # in no list
    features = near(encoder, unknown, own=(unknown,))
    found, choice = choose_templates(features, encoder)
    assert not choice.changed
    assert found is features
    assert choice.templates == features.templates
    assert choice.gain <= choice.standard_error
    assert str(choice).startswith("templates: the data's own (the best of 86 others")


def test_one_class_gives_no_standard_error(encoder: WordEncoder) -> None:
    features = near(encoder, DOODLE).select_classes([0], relabel=False)
    assert not choose_templates(features, encoder)[1].changed


def test_the_error_is_that_of_the_classes(encoder: WordEncoder) -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    gains = torch.tensor([1.0, 1.0, 2.0, 2.0, 6.0, 6.0])
    mean, error = template_choice._gain(gains, labels)
    assert mean == 3.0
    # 1.32 is Student's quantile with two degrees of freedom where the normal one is 1
    assert error == pytest.approx(1.3213 * np.std([1, 2, 6], ddof=1) / 3**0.5, rel=1e-3)
    # Twice the images of a class say no more of its prompt.
    doubled = template_choice._gain(gains.repeat(2), labels.repeat(2))
    assert doubled == (pytest.approx(mean), pytest.approx(error))


def test_one_scale_is_fitted_to_the_images(encoder: WordEncoder) -> None:
    features = near(encoder, DEFAULT_TEMPLATE, noise=0.8)
    text = features.text_features
    best = float(template_choice._likelihoods(features, text).mean())
    cosines = features.plain() @ text.T
    rows = torch.arange(len(features))
    others = [
        float((scale * cosines).log_softmax(-1)[rows, features.labels].mean())
        for scale in np.linspace(1.0, 100.0, 200)
    ]
    assert best >= max(others) - 1e-5
    # Another scale of the encoder changes nothing, as long as the best one is within reach.
    other = dataclasses.replace(features, scale=40.0)
    assert float(template_choice._likelihoods(other, text).mean()) == pytest.approx(best, abs=1e-4)


def test_many_classes_and_images_cost_no_more(encoder: WordEncoder) -> None:
    names = tuple(f"class {index}" for index in range(130))
    features = near(encoder, DOODLE, names=names, shots=MOST_IMAGES + 2)
    encoder.asked = 0
    found, choice = choose_templates(features, encoder)
    assert choice.classes == MOST_CLASSES
    assert choice.images == MOST_CLASSES * MOST_IMAGES
    assert encoder.asked == len(IMAGENET_TEMPLATES) * MOST_CLASSES + len(names)
    assert found.templates == (DOODLE,)
    assert found.text_features.shape == (130, DIM)
    assert "mean of CLIP's 80" not in choice.log_likelihoods
    assert "mean of CLIP's 7" in choice.log_likelihoods


# -- in a classifier ---------------------------------------------------------------------------------


def classifier(
    encoder: WordEncoder | None, method: str = "zero_shot", **options: object
) -> Classifier:
    return Classifier(encoder, method, workers=0, progress=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["zero_shot", "rada", "linear_probe", "zero_shot_ensemble"])
def test_a_fit_chooses_keeps_and_uses_them(
    method: str, encoder: WordEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    features, other = near(encoder, DOODLE), near(encoder, DOODLE, names=("gnu", "hen", "ibis"))
    with caplog.at_level(logging.INFO, logger="rada"):
        clf = classifier(encoder, method, templates="auto").fit(features, output_dir=tmp_path / "m")
    assert f"templates: {DOODLE} (log-likelihood +" in caplog.text
    loaded = Classifier.from_pretrained(tmp_path / "m", encoder=encoder, progress=False)
    for found in (clf, loaded):
        assert found.fitted_.templates == (DOODLE,)
        choice = found.fitted_.record.details["template_choice"]
        assert choice["how"] == "likelihood"
        assert choice["log_likelihoods"][DOODLE] > choice["log_likelihoods"]["the data's own"]
        # What names other templates, as most data do, is evaluated with the chosen ones.
        result = found.evaluate(features)
        assert result.result["templates"] == [DOODLE]
        assert result.result["training"]["template_choice"] == choice
        if clf.model_.method.new_classes:
            expected = encoder.encode_classes(other.classes, (DOODLE,))
            assert torch.equal(found.class_set(other.classes).text_features, expected)
            assert found.evaluate(other).result["templates"] == [DOODLE]
    again = classifier(encoder, method, templates=["auto"]).fit(features, output_dir=tmp_path / "m")
    assert again.fitted_.record.key == clf.fitted_.record.key


def test_templates_that_a_user_named_outlive_saving(encoder: WordEncoder, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", count=8)
    data = ImageDataset("pets", images.classes, {"all": images})
    clf = classifier(encoder, templates=DOODLE).fit(data, output_dir=tmp_path / "m")
    loaded = Classifier.from_pretrained(tmp_path / "m", encoder=encoder, workers=0, progress=False)
    results = [found.evaluate(data, split="all").result for found in (clf, loaded)]
    assert results[0]["templates"] == results[1]["templates"] == [DOODLE]
    assert results[0]["zero_shot"] == results[1]["zero_shot"]
    # Other templates can be asked for.
    loaded.templates = ("{}",)
    assert loaded.evaluate(data, split="all").result["templates"] == ["{}"]


def test_images_choose_as_their_features_do(encoder: WordEncoder, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", count=12)
    clf = classifier(encoder, templates="auto").fit(images, shots=4, seed=2)
    assert clf.train_features_ is not None
    features = dataclasses.replace(
        clf.train_features_,
        text_features=encoder.encode_classes(images.classes),
        templates=(DEFAULT_TEMPLATE,),
    )
    choice = choose_templates(features, encoder, seed=2)[1]
    assert clf.fitted_.record.details["template_choice"] == choice.to_dict()


def test_what_cannot_choose_says_so(encoder: WordEncoder) -> None:
    features = near(encoder, DOODLE)
    with pytest.raises(ConfigError, match=r"'auto' need the encoder.*--model"):
        classifier(None, templates="auto").fit(features)
    with pytest.raises(ConfigError, match=r"'auto' need the encoder"):
        classifier(None, templates="auto").fit(np.eye(4), ["a", "b", "a", "b"])
    given = dict(zip(NAMES, features.text_features, strict=True))
    with pytest.raises(ConfigError, match="text_features are given"):
        classifier(encoder, templates="auto", text_features=given).fit(features)
    with pytest.raises(ConfigError, match="call fit first"):
        classifier(encoder, templates="auto", classes=NAMES).predict(features)
    with pytest.raises(DataError, match="rada fit --template auto"):
        load_templates("auto")  # what everything calls that does not learn from labelled images
