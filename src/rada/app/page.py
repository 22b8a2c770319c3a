"""The page, with Gradio: every function finds the session by the browser's cookie and asks it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

from rada.app import views
from rada.app.album import Role
from rada.app.hall import Hall, read_cookie
from rada.app.session import Session
from rada.core.errors import RadaError
from rada.core.extras import needed_for
from rada.core.notebook import text

with needed_for("the app"):
    import gradio as gr

__all__ = ["SLOTS", "build_page", "page_options"]

SLOTS = 12
"""Images on a page of them."""
SHOWN = 24
"""Small images below the upload."""
METHODS = {
    "prior_probe": "quick: the prior probe, a second or two",
    "rada_probe": "RAda + probe, as rada fit does, minutes",
}
NEXT, LABELLED, ALL = "most useful next", "labelled", "all"
_NO_LABEL = "no label"
# One at a time: two that ran beside each other would show the images of one and the labels of the other.
_QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "concurrency_id": "rada",
    "concurrency_limit": 1,
}
# The answer to "Why?" stands below all images: on a phone that is some screens away.
_SHOW = """(...given) => {
  const place = document.getElementById('PLACE');
  place.tabIndex = -1;
  place.focus({ preventScroll: true });
  place.scrollIntoView();
  return given;
}"""


def page_options() -> dict[str, Any]:
    """Return what `gradio.mount_gradio_app` is to know of the page: theme, styles, no footer."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif"]
    theme = gr.themes.Default(
        font=fonts, font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"]
    )
    css = files("rada.app").joinpath("page.css").read_text("utf-8")
    return {"theme": theme, "css": css, "footer_links": [], "mcp_server": False, "pwa": False}


def build_page(hall: Hall, cookie: str) -> gr.Blocks:
    """Return the page.

    Args:
        hall: The sessions.
        cookie: Name of the cookie that holds the session's token.
    """
    page: gr.Blocks = _Page(hall, cookie).blocks
    return page


class _Page:
    """Components and what happens when they are used."""

    def __init__(self, hall: Hall, cookie: str) -> None:
        self.hall, self.cookie = hall, cookie
        with gr.Blocks(title="rada", analytics_enabled=False, fill_width=True) as self.blocks:
            gr.HTML(
                "<h1>Teach a model your own classes</h1><p>Everything stays on this machine.</p>"
            )
            self.version = gr.State(-1)
            with gr.Tabs():
                with gr.Tab("1 Images"):
                    self._images_tab()
                with gr.Tab("2 Label"):
                    self.label_line = gr.HTML(elem_id="rada-labels")
                    self.labelling = _Slots(self, "learn")
                with gr.Tab("3 Train"):
                    self._train_tab()
                with gr.Tab("4 Try"):
                    self._zone("try")
                    self.trying = _Slots(self, "try")
                with gr.Tab("5 Save"):
                    self.links = gr.HTML(elem_id="rada-links")
                    with gr.Accordion("Forget everything of mine", open=False):
                        forget = gr.Button("Delete images, labels and model", variant="stop")
            self._wire(forget)

    # -- the parts -------------------------------------------------------------------------------

    def _zone(self, role: Role) -> None:
        script = files("rada.app").joinpath("upload.js").read_text("utf-8")
        gr.HTML(views.ZONE, js_on_load=script, elem_id=f"rada-upload-{role}", role=role)

    def _images_tab(self) -> None:
        self._zone("learn")
        self.names = gr.Textbox(
            label="Classes, one a line", lines=4, placeholder="cat\ndog", elem_id="rada-names"
        )
        self.use_names = gr.Button("Use these names", variant="primary", elem_id="rada-use-names")
        self.said = gr.HTML(elem_id="rada-said")
        self.overview = gr.HTML(elem_id="rada-overview")
        self.strip = gr.HTML(elem_id="rada-strip")

    def _train_tab(self) -> None:
        chosen = self.hall.config.method
        methods = {chosen: chosen} | METHODS
        self.method = gr.Radio(
            [(said, name) for name, said in methods.items()], value=chosen, label="How"
        )
        with gr.Row():
            self.train = gr.Button("Train", variant="primary", elem_id="rada-train")
            self.stop = gr.Button("Stop", elem_id="rada-stop")
        self.progress = gr.HTML(elem_id="rada-progress")
        self.results = gr.HTML(elem_id="rada-results")

    def _wire(self, forget: Any) -> None:
        self.status = [
            self.overview, self.strip, self.label_line, self.progress, self.results, self.links
        ]  # fmt: skip
        self.use_names.click(
            self._use_names,
            [self.names],
            [self.said, self.names, *self.labelling.all, *self.status],
            **_QUIET,
        )
        self.train.click(self._train, [self.method], [self.progress], **_QUIET)
        self.stop.click(self._stop, None, [self.progress], **_QUIET)
        everything = [
            self.version, self.names, *self.labelling.all, *self.trying.all, *self.status
        ]  # fmt: skip
        self.blocks.load(self._load, None, everything, **_QUIET)
        forget.click(self._forget, None, everything, **_QUIET)
        # A tick costs little; only when something is new the whole page is asked for.
        gr.Timer(1.0).tick(self._tick, None, [self.version, self.progress], **_QUIET)
        shown = [self.labelling.numbers, self.trying.numbers]
        outputs = [*self.labelling.all, *self.trying.all, *self.status]
        self.version.change(self._refresh, shown, outputs, **_QUIET)

    # -- what happens ----------------------------------------------------------------------------

    def session(self, request: Any) -> Session:
        """Return the session of the browser that asks."""
        token = read_cookie(request.headers.get("cookie", ""), self.cookie)
        try:
            return self.hall.session(token)
        except PermissionError as error:
            raise gr.Error(str(error)) from error

    def _statuses(self, session: Session) -> list[str]:
        shown = session.album.numbers("learn")[:SHOWN]
        return [
            views.overview(session),
            views.strip(session, shown),
            views.label_line(session),
            views.progress(session),
            views.results(session),
            views.downloads(session),
        ]

    def _load(self, request: gr.Request) -> list[Any]:
        session = self.session(request)
        return [
            session.version,
            "\n".join(session.classes),
            *self.labelling.fresh(session),
            *self.trying.fresh(session),
            *self._statuses(session),
        ]

    def _tick(self, request: gr.Request) -> list[Any]:
        session = self.session(request)
        return [session.version, gr.skip() if session.job is None else views.progress(session)]

    def _refresh(self, labelling: list[int], trying: list[int], request: gr.Request) -> list[Any]:
        session = self.session(request)
        return [
            *self.labelling.again(session, labelling),
            *self.trying.again(session, trying),
            *self._statuses(session),
        ]

    def _use_names(self, names: str, request: gr.Request) -> list[Any]:
        session = self.session(request)
        try:
            session.name_classes(names)
        except RadaError as error:
            said = f'<p class="rada-bad" role="alert">{text(error)}</p>'
            skips = [gr.skip()] * (1 + len(self.labelling.all) + len(self.status))
            return [said, *skips]
        said = f'<p role="status">{len(session.classes)} classes.</p>'
        names = "\n".join(session.classes)
        return [said, names, *self.labelling.fresh(session), *self._statuses(session)]

    def _train(self, method: str, request: gr.Request) -> str:
        session = self.session(request)
        with contextlib.suppress(RadaError):  # the session keeps what it says
            session.teach(method)
        return views.progress(session)

    def _stop(self, request: gr.Request) -> str:
        session = self.session(request)
        if session.job is not None:
            session.job.stop()
        return views.progress(session)

    def _forget(self, request: gr.Request) -> list[Any]:
        token = read_cookie(request.headers.get("cookie", ""), self.cookie)
        if token is not None and self.hall.is_token(token):
            self.hall.forget(token)
        return self._load(request)


class _Slots:
    """A page of images to label or to correct, each with its classes and a button that asks why.

    Args:
        page: The page.
        role: Which images.
    """

    def __init__(self, page: _Page, role: Role) -> None:
        self.page, self.role = page, role
        self.numbers = gr.State([])
        self.start = gr.State(0)
        self.choice = gr.Radio(
            [NEXT, LABELLED, ALL] if role == "learn" else [ALL],
            value=NEXT if role == "learn" else ALL,
            label="Which images",
            visible=role == "learn",
            elem_id=f"rada-which-{role}",
        )
        self.cards: list[Any] = []
        self.labels: list[Any] = []
        self.whys: list[Any] = []
        with gr.Row(elem_classes="rada-grid"):
            for slot in range(SLOTS):
                with gr.Column(min_width=120):
                    self.cards.append(gr.HTML(visible=False))
                    self.labels.append(
                        gr.Radio([], visible=False, label="Label", elem_id=f"rada-{role}-{slot}")
                    )
                    self.whys.append(
                        gr.Button(
                            "Why?", size="sm", visible=False, elem_id=f"rada-why-{role}-{slot}"
                        )
                    )
        with gr.Row():
            back = gr.Button("Back", elem_id=f"rada-back-{role}")
            onward = gr.Button("Next images", elem_id=f"rada-next-{role}")
        self.why = gr.HTML(elem_id=f"rada-because-{role}", elem_classes="rada-why")
        self.all = [self.numbers, self.start, *self.cards, *self.labels, *self.whys]
        show = _SHOW.replace("PLACE", f"rada-because-{role}")
        for slot in range(SLOTS):
            self.labels[slot].input(
                self._label(slot),
                [self.numbers, self.labels[slot]],
                [page.label_line],
                **_QUIET,
            )
            self.whys[slot].click(
                self._because(slot),
                [self.numbers],
                [self.why],
                js=show,
                api_visibility="private",
            ).then(None, js=show)  # there was not room enough below to scroll to it before
        self.choice.input(self._turn(0), [self.choice, self.start], self.all, **_QUIET)
        back.click(self._turn(-SLOTS), [self.choice, self.start], self.all, **_QUIET)
        onward.click(self._turn(SLOTS), [self.choice, self.start], self.all, **_QUIET)

    # -- which images ----------------------------------------------------------------------------

    def fresh(self, session: Session, choice: str | None = None, start: int = 0) -> list[Any]:
        """Return all components for a page of images."""
        if choice is None:
            choice = NEXT if self.role == "learn" else ALL
        if choice == NEXT:
            return self._filled(session, session.to_label(SLOTS), 0)
        numbers = session.album.numbers(self.role)
        if choice == LABELLED:
            numbers = [number for number in numbers if number in session.labels]
        last = max(0, (len(numbers) - 1) // SLOTS * SLOTS)
        start = min(max(start, 0), last)
        return self._filled(session, numbers[start : start + SLOTS], start)

    def again(self, session: Session, numbers: Sequence[int]) -> list[Any]:
        """Return all components for the images that are shown; new ones where there is room.

        Labels that are there stay as they are: somebody may be choosing one just now.
        """
        known = [number for number in numbers if number < len(session.album)]
        if not known:
            return self.fresh(session)
        if len(known) < SLOTS:
            found = self._filled(session, self._more(session, known))
        else:
            found = self._filled(session, known)
        first = 2 + SLOTS
        found[first : first + len(known)] = [gr.skip()] * len(known)
        return found

    def _more(self, session: Session, known: Sequence[int]) -> list[int]:
        others = (
            session.to_label(2 * SLOTS) if self.role == "learn" else session.album.numbers("try")
        )
        return list(dict.fromkeys((*known, *others)))[:SLOTS]

    def _filled(
        self, session: Session, numbers: Sequence[int], start: int | None = None
    ) -> list[Any]:
        cards, labels, whys, named = [], [], [], bool(session.classes)
        for slot in range(SLOTS):
            if slot >= len(numbers):
                cards.append(gr.HTML("", visible=False))
                labels.append(gr.Radio([], value=None, visible=False))
                whys.append(gr.Button(visible=False))
                continue
            number = numbers[slot]
            choices = [*session.classes, *([_NO_LABEL] if number in session.labels else [])]
            label = f"Label of image {number + 1}"
            value = session.labels.get(number)
            cards.append(gr.HTML(views.card(session, number), visible=True))
            labels.append(gr.Radio(choices, value=value, label=label, visible=named))
            whys.append(gr.Button(f"Why? (image {number + 1})", visible=named))
        place = gr.skip() if start is None else start
        return [list(numbers), place, *cards, *labels, *whys]

    # -- what happens ----------------------------------------------------------------------------

    def _turn(self, by: int) -> Callable[..., list[Any]]:
        def turned(choice: str, start: int, request: gr.Request) -> list[Any]:
            return self.fresh(self.page.session(request), choice, start + by if by else 0)

        return turned

    def _label(self, slot: int) -> Callable[..., str]:
        def labelled(numbers: list[int], name: str | None, request: gr.Request) -> str:
            session = self.page.session(request)
            try:
                session.label(numbers[slot], None if name == _NO_LABEL else name)
            except RadaError as error:
                raise gr.Error(str(error)) from error
            return views.label_line(session)

        return labelled

    def _because(self, slot: int) -> Callable[..., str]:
        def told(numbers: list[int], request: gr.Request) -> str:
            session = self.page.session(request)
            try:
                found = session.explain(numbers[slot])
            except RadaError as error:
                return f'<p class="rada-bad" role="alert">{text(error)}</p>'
            return f"<h3>Why? Image {numbers[slot] + 1}</h3>{found._repr_html_()}"

        return told
