"""`rada encode`: images to features in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rada.cli.options import Extracting, JsonFlag, Model, Names, grouped, print_json
from rada.core.terminal import echo

if TYPE_CHECKING:
    from rada.encoders import DualEncoder
    from rada.features import Features


@grouped
def encode(
    data: Annotated[str, typer.Argument(help="Labelled images, as for fit.")],
    out: Annotated[Path, typer.Option(help="The features file, .safetensors.")],
    model: Model = "embedded",
    split: Annotated[
        str | None, typer.Option(help="Split to encode; needed where there are several.")
    ] = None,
    views: Annotated[int, typer.Option(min=1, help="Views: the plain image and random ones.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the random views.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    json: JsonFlag = False,
    *,
    names: Names,
    reading: Extracting,
) -> None:
    """Write the features of images and of their classes to a safetensors file.

    `rada fit` and `rada evaluate` accept the file instead of images. With several processes
    (`accelerate launch --num_processes 4 -m rada encode ...`, or torchrun), each encodes a part.
    """
    import dataclasses

    from rada.core.values import check_seed
    from rada.data import announce, load_class_names, open_dataset
    from rada.encoders import load_encoder
    from rada.features import extract_features
    from rada.features.processes import OtherProcessError, ProcessGroup, extract_in_group

    check_seed(seed)  # before anything is loaded
    group = ProcessGroup()
    try:
        with group.main_first():
            _check_out(out, overwrite, data)
            dataset = open_dataset(
                data,
                class_names=None
                if names.class_names is None
                else load_class_names(names.class_names),
                templates=names.template,
                skip_bad=reading.skip_bad,
            )
            part = next(iter(dataset.splits)) if split is None else split
            images = dataset.split(part)
            if group.rank == 0:
                announce(dataset.name, part, images)
            encoder = load_encoder(model, device=group.device(reading.device), dtype=reading.dtype)
        options: dict[str, Any] = reading.options() | {"views": views, "seed": seed}
        del options["device"], options["dtype"]
        features: Features | None
        if group.count == 1:
            features = extract_features(encoder, images, **options)
        else:
            features = extract_in_group(group, encoder, images, out, **options)
        with group.together():
            if features is not None:
                features = dataclasses.replace(
                    features,
                    text_features=encoder.encode_classes(dataset.classes, dataset.templates),
                    scale=float(encoder.scale),
                    templates=dataset.templates,
                )
                features.save(out, overwrite=overwrite)
    except OtherProcessError:
        raise typer.Exit(2) from None  # the process that failed says why
    if features is not None:
        _print(features, out, encoder, json)


def _check_out(out: Path, overwrite: bool, data: str) -> None:
    from rada.core.errors import StorageError
    from rada.core.output import check_file

    if out.suffix != ".safetensors":
        raise StorageError(f"a features file ends in .safetensors, not {out.name!r}")
    check_file(out, overwrite=overwrite, inputs=[data])


def _print(features: Features, out: Path, encoder: DualEncoder, json: bool) -> None:
    if not json:
        echo(f"Wrote {len(features)} x {features.num_views} x {features.dim} features to {out}")
        return
    print_json(
        {
            "file": str(out),
            "images": len(features),
            "views": features.num_views,
            "dim": features.dim,
            "classes": list(features.classes),
            "encoder": {"name": encoder.name, "fingerprint": encoder.fingerprint},
            "fingerprint": features.fingerprint,
            "skipped": [list(entry) for entry in features.skipped],
        }
    )
