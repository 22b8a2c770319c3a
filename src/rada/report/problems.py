"""What is still wrong: the images of a report that somebody should look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rada.core.errors import DataError, FeatureError
from rada.core.extras import is_installed
from rada.evaluation import Evaluation
from rada.evaluation.sharing import shown_name
from rada.evaluation.unlike import FEWEST, unlike_images
from rada.features import Features
from rada.report.blocks import Block, Card, Gallery, Row, Table, Text, thumbnail
from rada.report.examples import error_examples
from rada.report.rows import main_row, name_of
from rada.report.text import count, percent

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["find_problems", "problem_blocks"]

MOST_SHOWN = 12
"""So many images of a kind are shown; the number of all is said."""
MOST_CHECKED = 20_000
"""With more training images their labels are not checked for a report: it would take minutes."""


def find_problems(found: Evaluation, *, limit: int = MOST_SHOWN, seed: int = 0) -> dict[str, Any]:
    """Collect what is still wrong, for `write_report`.

    Args:
        found: What `Classifier.evaluate` returned.
        limit: Most images of each kind.
        seed: Chooses the folds of the search for wrong labels.

    Returns:
        "errors" (the most confident ones), "unlike" (images that look like none of the classes), "labels"
        (training images whose label is likely wrong) and "duplicates" (test images that are training
        images), each `{"total", "shown"}`, and "notes", what could not be looked for and why.
    """
    notes: list[str] = []
    return {
        "errors": _errors(found, limit),
        "unlike": _unlike(found, limit),
        "labels": _labels(found, limit, seed, notes),
        "duplicates": _duplicates(found, limit),
        "notes": notes,
    }


def problem_blocks(problems: Mapping[str, Any], result: Mapping[str, Any]) -> list[Block]:
    """Return the blocks of the report's part on what is still wrong."""
    model = name_of(result, main_row(result))
    errors, unlike, labels, doubled = (
        problems[key] for key in ("errors", "unlike", "labels", "duplicates")
    )
    blocks: list[Block] = []
    if errors is not None:
        said = f"{model} errs on {count(errors['total'], 'image')} of {result['images']:,}."
        blocks += [
            Text(said),
            _shown("The most confident errors", errors["shown"], _error_lines, "No errors."),
        ]
    if labels is not None:
        lead = "By the other training images, these look like another class than their label says."
        blocks += [
            _shown(
                f"Training labels that may be wrong: {labels['total']:,}",
                labels["shown"],
                _label_lines,
                "No label looks wrong.",
            ),
            Text(
                f"{lead} Look before you change one: a rare but right image looks the same.",
                note=True,
            )
            if labels["total"]
            else Text("Looked for by cross-validation on the training images.", note=True),
        ]
    if unlike is not None and unlike["total"]:
        blocks += [
            _shown(
                f"Test images that look like none of the classes: {unlike['total']:,}",
                unlike["shown"],
                _unlike_lines,
                "None.",
            ),
            Text(
                "No training image is nearly as similar to them as training images are to one another: "
                "something else may be in the picture, or a kind of it that was not trained.",
                note=True,
            ),
        ]
    if doubled["total"]:
        blocks += [
            _shown(
                f"Test images that are training images: {doubled.get('least', '')}{doubled['total']:,}",
                doubled["shown"],
                _duplicate_lines,
                "None.",
            ),
            Text(
                "Left the test image, right the training image. Leave them out of the test.",
                note=True,
            ),
        ]
    return [
        *blocks,
        *(Text(f"{note[:1].upper()}{note[1:]}.", note=True) for note in problems["notes"]),
    ]


# -- looking -------------------------------------------------------------------------------------


def _errors(found: Evaluation, limit: int) -> dict[str, Any] | None:
    images, key = found.images, main_row(found.result)
    if found.features is None or images is None:
        return None
    labels = found.features.labels
    wrong = found.logits[key].argmax(dim=1).cpu() != labels.cpu()
    total = int(wrong.sum())
    shown = error_examples(
        images.rename(found.classes),
        found.logits["zero_shot"],
        None if key == "zero_shot" else found.logits[key],
        limit=limit,
    )
    return {"total": total, "shown": shown}


def _unlike(found: Evaluation, limit: int) -> dict[str, Any] | None:
    train = found.train
    if found.features is None or train is None or len(train) < FEWEST:
        return None
    new = found.result.get("new_classes") or ()
    unlike = unlike_images(found.features, train, but=new)
    rows = found.logits[main_row(found.result)].softmax(dim=1)
    shown = []
    for one in unlike[: limit // 2]:
        best = int(rows[one.row].argmax())
        shown.append(
            _image(found.features, one.row)
            | {
                "true": found.classes[int(found.features.labels[one.row])],
                "predicted": found.classes[best],
                "probability": float(rows[one.row, best]),
                "similarity": one.similarity,
                "usual": one.usual,
            }
        )
    return {"total": len(unlike), "shown": shown}


def _labels(found: Evaluation, limit: int, seed: int, notes: list[str]) -> dict[str, Any] | None:
    from rada.evaluation.label_errors import likely_label_errors

    train, what = found.train, "the training labels were not checked"
    if train is None:
        if not found.result.get("training"):
            return None  # nothing was trained
        notes.append(
            f"{what}, and the test images were not compared with the training images for near duplicates: "
            "the training images are not in the model's folder, so name them with --train"
        )
        return None
    if not is_installed("cleanlab"):
        notes.append(f"{what}: pip install 'rada-vlm[labels]'")
        return None
    if len(train) > MOST_CHECKED:
        notes.append(f"{what}: there are {len(train):,}; rada fit --check-labels does it")
        return None
    try:
        errors = likely_label_errors(train, seed)
    except FeatureError as error:
        notes.append(f"{what}: {error}")
        return None
    shown = [
        _image(train, one.row)
        | {key: value for key, value in one._asdict().items() if key != "row"}
        for one in errors[:limit]
    ]
    return {"total": len(errors), "shown": shown}


def _duplicates(found: Evaluation, limit: int) -> dict[str, Any]:
    pairs, train = found.result.get("near_duplicates") or [], found.train
    shown = []
    for pair in pairs[:limit]:
        entry = {"id": pair["test"], "other": pair["train"], "similarity": pair["similarity"]}
        image = None
        if train is not None and found.features is not None:
            sides = (
                _loaded(found.features, found.features.ids.index(pair["test"])),
                _loaded(train, train.ids.index(pair["train"])),
            )
            image = _beside(*sides)
        shown.append(entry | {"image": image})
    least = "at least " if found.result.get("near_duplicates_unchecked") else ""
    return {"total": len(pairs), "least": least, "shown": shown}


def _image(features: Features, row: int) -> dict[str, Any]:
    return {"id": features.ids[row], "image": _loaded(features, row)}


def _loaded(features: Features, row: int) -> PIL.Image.Image | None:
    if features.images is None:
        return None
    try:
        return features.images.load(row)
    except DataError:  # it is gone since it was encoded
        return None


def _beside(left: PIL.Image.Image | None, right: PIL.Image.Image | None) -> PIL.Image.Image | None:
    """Return two images side by side, each in half of a square."""
    from PIL import Image, ImageOps

    if left is None or right is None:
        return None
    sheet = Image.new("RGB", (320, 320), (128, 128, 128))
    for place, image in enumerate((left, right)):
        half = ImageOps.contain(image, (158, 320))
        sheet.paste(half, (162 * place, (320 - half.height) // 2))
    return sheet


# -- showing -------------------------------------------------------------------------------------


def _shown(heading: str, entries: Sequence[Mapping[str, Any]], lines: Any, empty: str) -> Block:
    if any(entry["image"] is None for entry in entries):
        rows = [
            Row(
                shown_name(str(entry["id"])),
                [f"{text} {remark}".strip() for _, text, remark, _ in lines(entry)],
            )
            for entry in entries
        ]
        columns = ["Image", *(label for label, *_ in lines(entries[0]))]
        return Table(heading, columns, rows, words=range(1, len(columns)))
    cards = [
        Card(
            image=thumbnail(entry["image"]),
            alt=f"Image {shown_name(str(entry['id']))}",
            lines=lines(entry),
            footer=shown_name(str(entry["id"])),
        )
        for entry in entries
    ]
    return Gallery(heading, cards, empty=empty)


def _error_lines(entry: Mapping[str, Any]) -> list[tuple[str, str, str, Any]]:
    said = entry.get("adapted") or entry["zero_shot"]
    lines = [
        ("Predicted", str(said["class"]), percent(said["probability"]), "loss"),
        ("True class", str(entry["true"]), "", ""),
    ]
    if "adapted" in entry:
        before = entry["zero_shot"]
        lines.append(("Zero-shot", str(before["class"]), percent(before["probability"]), ""))
    return lines


def _label_lines(entry: Mapping[str, Any]) -> list[tuple[str, str, str, Any]]:
    return [
        ("Label", str(entry["label"]), percent(entry["own"]), "loss"),
        ("Looks like", str(entry["suggested"]), percent(entry["probability"]), ""),
    ]


def _unlike_lines(entry: Mapping[str, Any]) -> list[tuple[str, str, str, Any]]:
    return [
        ("Predicted", str(entry["predicted"]), percent(entry["probability"]), ""),
        ("True class", str(entry["true"]), "", ""),
        (
            "Nearest training image",
            f"cosine {entry['similarity']:.2f}",
            f"(usual {entry['usual']:.2f})",
            "",
        ),
    ]


def _duplicate_lines(entry: Mapping[str, Any]) -> list[tuple[str, str, str, Any]]:
    return [
        ("Training image", shown_name(str(entry["other"])), "", ""),
        ("Cosine", f"{entry['similarity']:.3f}", "", ""),
    ]
