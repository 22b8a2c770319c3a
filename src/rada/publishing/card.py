"""The card of a model: what it is, what it learned from, how good it is, what it is not for, how it loads."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from rada._version import __version__
from rada.core.errors import DataError
from rada.encoders.loading import encoder_extra
from rada.pretrained import Fitted
from rada.report.text import count, percent, shorten
from rada.training.held_out import held_out

__all__ = ["MARK", "model_card", "needs_own_encoder"]

MARK = "<!-- This card is written by rada push; remove this line to keep it from being written again. -->"
_MOST_CLASSES = 100


def model_card(
    fitted: Fitted,
    repository: str,
    *,
    result: Mapping[str, Any] | None = None,
    license: str | None = None,
) -> str:
    """Return the card of a model, in Markdown with the hub's metadata.

    Args:
        fitted: The model.
        repository: `owner/name` on the hub.
        result: What `rada evaluate --json` prints, or `Evaluation.to_dict()`, for the accuracy on test
            images.
        license: The model's license by the hub's name, such as "apache-2.0"; None names none.

    Raises:
        DataError: If the result is none of an evaluation, or of another model.
    """
    if result is not None:
        check_result(result, fitted)
    parts = (
        _metadata(fitted, license),
        MARK,
        f"# {_safe(repository.partition('/')[2])}",
        _summary(fitted),
        _usage(fitted, repository),
        _classes(fitted),
        _accuracy(fitted, result),
        _not_for(fitted),
        _making(fitted),
    )
    return "\n\n".join(parts) + "\n"


def check_result(result: Any, fitted: Fitted) -> None:
    """Check that a result is an evaluation of a model.

    Raises:
        DataError: If it is not; the message says why.
    """
    rows = result.get("rows") if isinstance(result, Mapping) else None
    good = isinstance(rows, list) and bool(rows) and isinstance(result.get("images"), int)
    for row in rows if good and rows else ():
        entry = result.get(row)
        good = good and isinstance(entry, Mapping) and _is_share(entry.get("accuracy"))
        interval = entry.get("interval") if isinstance(entry, Mapping) else None
        good = good and isinstance(interval, list) and len(interval) == 2
        good = good and all(map(_is_share, interval or ()))
    if not good:
        raise DataError(
            "the result is not one of `rada evaluate MODEL DATA --json`: give the JSON that it printed"
        )
    training = result.get("training")
    key = training.get("key") if isinstance(training, Mapping) else None
    if key and fitted.record.key and key != fitted.record.key:
        raise DataError(
            "the result is an evaluation of another model (their runs differ): evaluate this one with "
            "`rada evaluate MODEL DATA --json`"
        )


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def _safe(text: str, length: int = 60) -> str:
    """Return a text of somebody else that is text in Markdown, too."""
    plain = html.escape(shorten(text, length), quote=False)
    for mark in "\\`*_[]|#":
        plain = plain.replace(mark, f"\\{mark}")
    return plain


def _metadata(fitted: Fitted, license: str | None) -> str:
    """Return what the hub reads, as YAML; JSON is YAML."""
    fields: dict[str, Any] = {
        "library_name": "rada",
        "pipeline_tag": "image-classification",
        "tags": ["rada", "few-shot", "vision-language", fitted.model.method.name],
    }
    if license is not None:
        fields["license"] = license
    name = "" if fitted.encoder is None else fitted.encoder.name
    if name.startswith("hf:") and name.count("/") == 1:
        fields["base_model"] = name.removeprefix("hf:")
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _summary(fitted: Fitted) -> str:
    method, record = fitted.model.method, fitted.record
    shots = "" if record.shots is None else f", {count(record.shots, 'image')} a class"
    encoder = "features of an encoder that is not named"
    if fitted.encoder is not None:
        encoder = f"the encoder {_safe(_encoder_name(fitted), 100)}"
    tuned = ", which was tuned" if method.train_encoder else ""
    data = "" if record.data is None else f" of the data set {_safe(record.data)}"
    others = " or others that a request names" if method.new_classes else ""
    return (
        f"Names the class of images, among {count(len(fitted.classes), 'class', 'classes')}{others}. "
        f"{_safe(method.title)} on {encoder}{tuned}, learned from {count(record.images, 'image')}{data}"
        f"{shots}, with [rada](https://arxiv.org/abs/2507.15480)."
    )


def needs_own_encoder(fitted: Fitted) -> bool:
    """Whether a model needs an encoder that only the machine has where it was made."""
    if fitted.encoder is None or fitted.model.method.saves_encoder:
        return False  # there is none, or it is one of the model's files
    return encoder_extra(fitted.encoder.name) is None


def _encoder_name(fitted: Fitted) -> str:
    """Return the name of a model's encoder; of a folder the last part alone."""
    name = "" if fitted.encoder is None else fitted.encoder.name
    return PurePath(name).name if needs_own_encoder(fitted) else name


def _usage(fitted: Fitted, repository: str) -> str:
    method, own = fitted.model.method, needs_own_encoder(fitted)
    extras = {"models", *([method.extra] if method.extra else [])}
    if fitted.encoder is not None and not method.saves_encoder:
        extras.add(encoder_extra(fitted.encoder.name) or "models")
    if "embedded" in extras:
        extras.remove("models")  # it brings them
    option, argument, where = "", "", ""
    if own:
        option, argument = " --encoder ENCODER", ', encoder="ENCODER"'
        where = (
            f"ENCODER is the encoder {_safe(_encoder_name(fitted), 100)}, which is not in this repository: "
            "get it from whoever made the model, and name its folder, or where it is on the hub.\n\n"
        )
    return f"""## Use

```
pip install 'rada-vlm[{",".join(sorted(extras))}]=={__version__}'
rada predict {repository} image.jpg{option}
```

```python
from rada import Classifier

classifier = Classifier.from_pretrained("{repository}"{argument})
print(classifier.predict(["image.jpg"], top_k=3))
```

{where}Loading executes nothing of this repository: the weights are safetensors, the configuration is JSON."""


def _classes(fitted: Fitted) -> str:
    named = ", ".join(_safe(name) for name in fitted.classes[:_MOST_CLASSES])
    more = len(fitted.classes) - _MOST_CLASSES
    return f"## Classes\n\n{named}" + (f", and {more} more (`config.json`)" if more > 0 else "")


def _accuracy(fitted: Fitted, result: Mapping[str, Any] | None) -> str:
    """Return what was measured, and on what; with 95 % intervals."""
    title, parts = fitted.model.method.title, ["## Accuracy"]
    if result is not None:
        parts.append(_test_table(result, title))
    held = held_out(fitted.record.details.get("strength_choice"))
    for entry in held:
        names = {"zero_shot": "Zero-shot", "linear_probe": "Linear probe", "adapted": title}
        rows = [
            f"| {_safe(name)} | {percent(entry[row])} | {_interval(entry['intervals'][row])} |"
            for row, name in names.items()
            if entry.get(row) is not None
        ]
        parts.append(
            f"On training images that were held out while the strength was chosen ({entry['part']}; "
            f"{count(entry['images'], 'image')} of held-out {entry['what']}). That chose the strength, "
            "so it is a little too good; images of another camera, place or time may be harder.\n\n"
            "| model | accuracy | 95 % interval |\n|---|--:|--:|\n" + "\n".join(rows)
        )
    if len(parts) == 1:
        parts.append("Not measured: there was no test, and nothing was held out.")
    return "\n\n".join(parts)


def _test_table(result: Mapping[str, Any], title: str) -> str:
    names = {"zero_shot": "Zero-shot", "linear_probe": "Linear probe", "adapted": title}
    lines = ["| model | accuracy | 95 % interval | mean over classes | calibration error |"]
    lines.append("|---|--:|--:|--:|--:|")
    for row in result["rows"]:
        entry = result[row]
        cells = [names.get(row, row), percent(entry["accuracy"]), _interval(entry["interval"])]
        for key in ("balanced_accuracy", "ece"):
            cells.append(percent(entry[key]) if _is_share(entry.get(key)) else "")
        lines.append("| " + " | ".join(_safe(cell) for cell in cells) + " |")
    data = result.get("data")
    where = f" of {_safe(data)}" if isinstance(data, str) else ""
    seen = result.get("seen_in_training")
    told = f" {count(seen, 'of them was', 'of them were')} in training." if seen else ""
    return f"On {count(result['images'], 'test image')}{where}.{told}\n\n" + "\n".join(lines)


def _interval(pair: Any) -> str:
    return f"{percent(pair[0])} to {percent(pair[1])}"


def _not_for(fitted: Fitted) -> str:
    lines = [
        "Images of none of the classes: the probabilities of the classes always add up to 1, so that any "
        "image is given one of them.",
        "Images unlike the training images (another camera, place, time or group of people) before its "
        "accuracy on some of them was measured.",
        "Decisions about people, their health or their rights without a human who looks at each.",
        "Fairness between groups: it has whatever bias its encoder and "
        f"{count(fitted.record.images, 'training image')} have, which was not measured.",
    ]
    if fitted.model.method.new_classes:
        lines.insert(
            1,
            "Classes that it was not trained on, beyond a first try: there it is close to zero-shot.",
        )
    else:
        lines.insert(1, "Classes that it was not trained on, which it refuses.")
    return "## What it is not for\n\n" + "\n".join(f"- {line}" for line in lines)


def _making(fitted: Fitted) -> str:
    model, record = fitted.model, fitted.record
    config = json.dumps(model.config.to_dict(), ensure_ascii=True, sort_keys=True).replace("`", "'")
    facts = {
        "Method": f"{_safe(model.method.title)} (`{model.method.name}`)",
        "Configuration": f"`{config}`",
        "Seed": str(record.seed),
        "Training images": str(record.images),
        "Shots": "all" if record.shots is None else str(record.shots),
        "Prompt templates": ", ".join(_safe(text) for text in fitted.templates[:5]) or "none",
        "Images left out as unreadable": str(len(record.skipped)),
        "rada": __version__,
    }
    return "## How it was made\n\n| | |\n|---|---|\n" + "\n".join(
        f"| {name} | {value} |" for name, value in facts.items()
    )
