"""`rada app`: teach a model in the browser."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rada.cli.options import EncoderOption, configured
from rada.core.errors import ConfigError
from rada.core.terminal import echo


def app(
    model_folder: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="Folder of a saved model to begin with; zero-shot without one."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The dual encoder to begin with; `rada models` lists them.  [default: embedded]"
        ),
    ] = None,
    encoder: EncoderOption = None,
    host: Annotated[
        str, typer.Option(help="Address to answer at; any but this machine's needs a password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to answer at.")] = 7860,
    password: Annotated[
        str | None,
        typer.Option(
            envvar="RADA_APP_PASSWORD",
            help="Asked of every browser; better given by the variable, which no list of processes shows.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Bounds: max_images, max_file_megabytes, max_total_megabytes, max_megapixels, max_classes, "
            "max_sessions, keep_minutes; and method, folds, seed; repeat.",
        ),
    ] = None,
) -> None:
    """Teach a model in the browser: drop images, label a few, train, ask why, take the model away."""
    if model_folder is not None and model is not None:
        raise ConfigError(
            f"name the folder of a model, or an encoder with --model, not both {model_folder!r} and {model!r}"
        )
    if model_folder is None and encoder is not None:
        raise ConfigError(
            f"--encoder {encoder!r} belongs to a saved model, and none is named: name its folder, or give "
            "the encoder with --model"
        )
    from rada.app.config import AppConfig
    from rada.app.server import check_binding
    from rada.core.extras import check_extra

    check_binding(host, password)
    check_extra("app", "rada app")
    config = configured(AppConfig, None, settings)
    echo("Loading the model ...", err=True)  # before torch, which takes a second or two to import
    from rada.app.brain import Brain
    from rada.app.hall import Hall
    from rada.app.server import serve
    from rada.classifier import Classifier
    from rada.methods import get_method

    get_method(config.method)
    options: dict[str, Any] = {"cache": False, "workers": 0}
    if model_folder is None:
        start = Classifier(model or "embedded", **options)
    else:
        start = Classifier.from_pretrained(model_folder, encoder=encoder, **options)
    brain = Brain(start)
    brain.warm()
    serve(Hall(brain, config), host=host, port=port, password=password, say=echo)
