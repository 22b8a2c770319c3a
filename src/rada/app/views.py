"""What the page says of a session, as HTML in which all text is escaped."""

from __future__ import annotations

from collections.abc import Sequence

from rada.app.album import Intake
from rada.app.session import Session
from rada.core.notebook import bar, text

__all__ = [
    "ZONE",
    "card",
    "downloads",
    "intake_lines",
    "label_line",
    "overview",
    "progress",
    "results",
    "strip",
]

ZONE = """<div class="rada-zone"><p>Drop images, folders or a zip here, or</p>
<label>choose images or a zip<input type="file" multiple accept="image/*,.heic,.heif,.avif,.zip"></label>
<label>choose a folder<input type="file" webkitdirectory></label>
<p class="rada-said" role="status" aria-live="polite"></p></div>"""


def overview(session: Session) -> str:
    """Say how many images there are, and what could not be taken."""
    learn, tried = (len(session.album.numbers(role)) for role in ("learn", "try"))
    if not learn + tried:
        return "<p>No images yet.</p>"
    line = f"<p><b>{learn:,} image{'s' * (learn != 1)} to learn from</b>"
    if tried:
        line += f" and {tried:,} to try the model on"
    waiting = len(session.album) - session.encoded
    if waiting > 0:
        line += f"; {waiting:,} still to be looked at"
    return f"{line}.</p>{intake_lines(session.intake)}"


def intake_lines(intake: Intake) -> str:
    """Say which files were refused, and why."""
    said = ""
    if intake.twice:
        what = "image was" if intake.twice == 1 else "images were"
        said += f"<p>{intake.twice:,} {what} there already.</p>"
    if intake.refused_count:
        what = "file" if intake.refused_count == 1 else "files"
        lines = "".join(
            f"<li><bdi>{text(name)}</bdi>: {text(reason)}</li>"
            for name, reason in intake.refused[:10]
        )
        more = intake.refused_count - min(10, len(intake.refused))
        rest = f"<li>and {more:,} more</li>" if more > 0 else ""
        said += (
            f'<div class="rada-bad"><p>{intake.refused_count:,} {what} could not be used:</p>'
            f"<ul>{lines}{rest}</ul></div>"
        )
    return said


def card(session: Session, number: int) -> str:
    """Show an image with its name, and what the model says of it."""
    name = text(session.album.pictures[number].name)
    answer = session.answers([number]).get(number)
    if answer is not None:
        said = f"{text(session.model_name)}: <b>{text(answer.name)}</b> {100 * answer.probability:.0f}&nbsp;%"
    elif session.classes:
        said = "not looked at yet"
    else:
        said = "name the classes first"
    return (
        f'<div class="rada-card"><img src="/rada/images/{number}" alt="image {number + 1}: {name}" '
        f'loading="lazy"><p>{said}</p>'
        f'<p class="rada-name" title="{name}">{number + 1}. <bdi>{name}</bdi></p></div>'
    )


def strip(session: Session, numbers: Sequence[int]) -> str:
    """Show images in a row of small ones, each with what the model says."""
    answers = session.answers(numbers)
    items = []
    for number in numbers:
        answer = answers.get(number)
        said = (
            "…" if answer is None else f"{text(answer.name)} {100 * answer.probability:.0f}&nbsp;%"
        )
        name = text(session.album.pictures[number].name)
        items.append(
            f'<li><img src="/rada/images/{number}" alt="image {number + 1}: {name}" loading="lazy">'
            f"<p>{said if session.classes else name}</p></li>"
        )
    return f'<ul class="rada-strip">{"".join(items)}</ul>' if items else ""


def label_line(session: Session) -> str:
    """Say how many images of each class have labels."""
    counts = session.counts()
    if not counts:
        return "<p>Name the classes first, on the first page.</p>"
    said = ", ".join(f"<bdi>{text(name)}</bdi> {number}" for name, number in counts.items())
    total = len(session.labels)
    return f'<p role="status"><b>{total} label{"s" * (total != 1)}</b>: {said}.</p>'


def progress(session: Session) -> str:
    """Say how far the training is, how it ended, or why it did not begin."""
    job = session.job
    if session.refused is not None:
        return f'<p class="rada-bad" role="alert">{text(session.refused)}</p>'
    if job is None:
        return ""
    if job.running:
        return (
            f'<div role="status"><progress class="rada-bar" max="1" value="{job.part:.3f}" '
            f'aria-label="training"></progress><p>{100 * job.part:.0f} %: {text(job.text)} …</p></div>'
        )
    if job.error is not None:
        return f'<p class="rada-bad" role="alert">{text(job.error)}</p>'
    return '<p role="status">Done.</p>'


def results(session: Session) -> str:
    """Show the accuracy of the model on images that it had not seen, and how it rose."""
    taught = session.taught
    if taught is None:
        return "<p>Nothing is taught yet: the answers are zero-shot.</p>"
    if taught.evaluation is None:
        return f"<p>Taught on {taught.labels} labels. Label two images of a class to see how good it is.</p>"
    rows = []
    for key, name in (("zero_shot", "zero-shot"), ("adapted", taught.method)):
        row = taught.evaluation[key]
        low, high = (100 * bound for bound in row["interval"])
        said = f"{100 * row['accuracy']:.1f} % ({low:.0f} to {high:.0f})"
        rows.append(f"<tr><th>{text(name)}</th><td>{bar(row['accuracy'], 1.0, said)}</td></tr>")
    images = taught.evaluation["images"]
    steps = "".join(
        f"<tr><th>{labels} labels</th><td>{bar(accuracy, 1.0, f'{100 * accuracy:.1f} %')} "
        f"{text(method)}</td></tr>"
        for labels, accuracy, method in session.history
    )
    return (
        f"<p>Accuracy on {images} labelled images, each predicted by a model that had not seen it "
        f"(cross-validation in {taught.folds} parts; 95 % intervals):</p>"
        f'<table class="rada-table" id="rada-accuracy">{"".join(rows)}</table>'
        f"<p>After each training:</p>"
        f'<table class="rada-table" id="rada-history">{steps}</table>'
    )


def downloads(session: Session) -> str:
    """Offer the model and the report, where there are any."""
    offered = (
        (session.taught is not None, "/rada/model.zip", "The model (zip)"),
        (
            session.taught is not None and session.taught.evaluation is not None,
            "/rada/report.html",
            "The report (HTML)",
        ),
    )
    links = "".join(
        f'<a href="{place}" download>{said}</a>' if there else f'<a aria-disabled="true">{said}</a>'
        for there, place, said in offered
    )
    return (
        f'<div class="rada-links">{links}</div><p>Unpack the model and say '
        "<code>rada predict model IMAGE...</code>; <code>rada evaluate</code>, <code>explain</code> and "
        "<code>export</code> take it too.</p>"
    )
