"""Explanations as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rada.core.output import claim
from rada.evaluation.sharing import shareable, shown_name
from rada.explain.explanation import ImageExplanation, Nearest, Words
from rada.explain.figures import evidence_bars
from rada.explain.where import HeatMap
from rada.report.blocks import (
    Block,
    Card,
    Details,
    Gallery,
    Page,
    Row,
    Section,
    Table,
    Text,
    Tone,
    render_page,
    thumbnail,
)
from rada.report.text import MINUS, count, percent

if TYPE_CHECKING:
    from rada.explain.evidence import Contribution, Evidence
    from rada.explain.neighbours import Neighbour
    from rada.explain.words import InWords

__all__ = ["explanation_page", "write_explanations"]

_READING = (
    "Every logit is a sum over the dimensions of the features: image feature times class weight. The bars "
    "show the largest of the differences between two classes and, in groups, all the others; they add up "
    "to the difference of the logits."
)
_DIVIDED = (
    "All logits here are divided by the model's temperature, {:.2f}, which makes its probabilities fit how "
    "often it is right; the probability of {} is of logits that are not."
)
_BY_WORDS = (
    "The same difference by words: the class weights of the two classes differ by a vector, and this "
    "vector is a sum of words, as far as words go. The last bars are what is left over."
)
_WORDS = (
    "Each vector as a sum of a few of 3,000 plain words, embedded by the model's own text encoder. "
    "“Explained” is the part of the vector that the sum makes up; “by chance” is what as many words make up "
    "of the same numbers in random order: where both are alike, the words say nothing."
)


def write_explanations(
    directory: str | Path, explanations: Sequence[ImageExplanation], **facts: Any
) -> Path:
    """Write `index.html`, which needs no network and no other file, and `explanations.json`.

    Args:
        directory: Where to; made if need be.
        explanations: The explanations.
        facts: What else the JSON file is to tell, such as the command.

    Returns:
        The path of the page.

    Raises:
        OutputError: If the folder holds what rada did not write as explanations.
        StorageError: If the place cannot be written.
    """
    content = render_page(explanation_page(explanations)).encode()
    told = shareable(facts) | {"explanations": [_told(entry) for entry in explanations]}
    with claim(directory, "explanation") as out:
        out.take("index.html", "explanations.json")
        out.write_json("explanations.json", told)
        return out.write_bytes("index.html", content)


def explanation_page(explanations: Sequence[ImageExplanation]) -> Page:
    """Return the page, with a section for each image."""
    methods = dict.fromkeys(entry.method for entry in explanations)
    return Page(
        title=f"Why: {count(len(explanations), 'image')} explained",
        lead=f"What {', '.join(methods)} made of {'it' if len(explanations) == 1 else 'them'}, and why.",
        sections=[Section(shown_name(entry.name), _blocks(entry)) for entry in explanations],
        eyebrow="rada explanation",
        footer="Written by rada. This page needs no network and no other file.",
    )


def _told(entry: ImageExplanation) -> dict[str, Any]:
    """Return plain JSON values, names of images without the folders above them."""
    told = entry.to_dict()
    told["name"] = shown_name(told["name"])
    return told


def _blocks(entry: ImageExplanation) -> list[Block]:
    blocks: list[Block] = [Text(_verdict(entry))]
    if entry.image is not None:
        cards = [_image_card(entry), *(_map_card(entry, one) for one in entry.maps)]
        blocks.append(Gallery("The image, and where the evidence lies", cards, large=True))
    blocks.append(_scores(entry))
    if entry.temperature != 1:
        blocks.append(Text(_DIVIDED.format(entry.temperature, entry.before), note=True))
    one = entry.evidence[0]
    blocks += [Text(_READING), evidence_bars(one, one.parts, entry.before, entry.method)]
    if one.words is not None:
        blocks += [Text(_BY_WORDS), evidence_bars(one, one.words, entry.before, entry.method)]
    sums = [
        _sum(entry, one, part) for one in entry.evidence for part in (one.parts, one.words) if part
    ]
    blocks.append(Details("The sums in numbers", sums))
    if entry.words is not None:
        blocks += [_word_table(entry.words), Text(_WORDS, note=True)]
    if entry.nearest is not None:
        blocks += _galleries(entry.nearest)
    return [*blocks, *(Text(note.capitalize() + ".", note=True) for note in entry.notes)]


def _verdict(entry: ImageExplanation) -> str:
    best, first = entry.classes[0], max(entry.classes, key=lambda one: one.zero_shot)
    before = entry.before.capitalize()
    same = "says the same" if first == best else f"says “{first.name}”"
    text = (
        f"{entry.method}: “{best.name}”, {percent(best.probability)}. {before} {same}, "
        f"{percent(first.zero_shot_probability)}."
    )
    one = entry.evidence[0]
    change = one.adapted - one.zero_shot
    return (
        f"{text} Its logit is {_number(one.adapted)} above that of “{one.against}”; of this, "
        f"{_number(one.zero_shot)} was there before and {_number(change)} is the adaptation."
    )


def _image_card(entry: ImageExplanation) -> Card:
    assert entry.image is not None
    best = entry.classes[0]
    name, chance = shown_name(entry.name), percent(best.probability)
    line: tuple[str, str, str, Tone] = ("Explained", best.name, chance, "accent")
    return Card(thumbnail(entry.image), f"Image {name}", [line], name)


def _map_card(entry: ImageExplanation, one: HeatMap) -> Card:
    assert entry.image is not None
    what = one.target if one.against is None else f"{one.target} against {one.against}"
    lines: list[tuple[str, str, str, Tone]] = [(f"By {one.method}", what, "", "")]
    if one.method == "gradients":
        total, wanted = _number(float(one.values.sum())), _number(one.score - one.blank)
        lines.append(("Adds up to", total, f"of {wanted}", ""))
    return Card(
        thumbnail(one.over(entry.image)),
        f"Heat map by {one.method} over the image: {what}",
        lines,
        "Blue speaks for it, red against it.",
    )


def _scores(entry: ImageExplanation) -> Table:
    rows = [
        Row(
            one.name,
            [
                _number(one.zero_shot, sign=False),
                _number(one.adapted, sign=False),
                percent(one.zero_shot_probability),
                percent(one.probability),
            ],
        )
        for one in entry.classes
    ]
    before = entry.before
    columns = ["Class", f"Logit, {before}", "Logit", f"Probability, {before}", "Probability"]
    return Table("Logits and probabilities among all candidates", columns, rows)


def _sum(entry: ImageExplanation, one: Evidence, parts: Sequence[Contribution]) -> Table:
    rows = [
        Row(part.name, [_number(part.zero_shot), _number(part.change), _number(part.total)])
        for part in parts
    ]
    total = [_number(value) for value in (one.zero_shot, one.adapted - one.zero_shot, one.adapted)]
    rows.append(Row("Sum: difference of the logits", total, "accent"))
    columns = ["Part", entry.before.capitalize(), "Change", entry.method]
    return Table(f"“{one.target}” against “{one.against}”", columns, rows)


def _word_table(words: Words) -> Table:
    rows = [_word_row(words.title.capitalize(), words.image)]
    for name, found in words.classes.items():
        rows.append(_word_row(f"“{name}”", found))
        if name in words.changes:
            rows.append(_word_row(f"“{name}”, what changed", words.changes[name]))
    columns = ["Vector", "More", "Less", "Explained", "By chance"]
    return Table("In plain words", columns, rows, words=(1, 2))


def _word_row(name: str, found: InWords) -> Row:
    more, less = ", ".join(found.more), ", ".join(found.less)
    if not found.concepts:
        more = "no words fit"
    return Row(name, [more, less, percent(found.share), percent(found.by_chance)])


def _galleries(found: Nearest) -> list[Block]:
    return [
        _similar("The most similar training images", found.all),
        _similar(f"The most similar training images of “{found.other_class}”", found.other),
    ]


def _similar(heading: str, images: Sequence[Neighbour]) -> Block:
    if any(one.image is None for one in images):
        rows = [Row(shown_name(one.id), [one.label, f"{one.similarity:.3f}"]) for one in images]
        return Table(heading, ["Image", "Class", "Cosine"], rows, words=(1,))
    cards = [
        Card(
            thumbnail(one.image),
            f"Training image {shown_name(one.id)}, a {one.label}",
            [("Class", one.label, "", ""), ("Cosine", f"{one.similarity:.3f}", "", "")],
            shown_name(one.id),
        )
        for one in images
        if one.image is not None
    ]
    return Gallery(heading, cards)


def _number(value: float, *, sign: bool = True) -> str:
    text = f"{value:+.2f}" if sign else f"{value:.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", MINUS)
