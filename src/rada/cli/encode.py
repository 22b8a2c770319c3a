"""`rada encode`: images to features in a file."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rada.cli.endings import resumable
from rada.cli.options import Extracting, JsonFlag, Model, Names, grouped, print_json
from rada.core.terminal import echo

if TYPE_CHECKING:
    from rada.data import ImageDataset, ImageSplit
    from rada.encoders import DualEncoder
    from rada.features import Features, FeatureStore
    from rada.features.processes import ProcessGroup


def _keeps(given: Mapping[str, Any]) -> bool:
    """Whether an interrupted command has kept its work: in the cache, or in the shards of a store."""
    return not given["no_cache"] or _names_store(given["out"])


@functools.partial(resumable, keeps=_keeps)
@grouped
def encode(
    data: Annotated[str, typer.Argument(help="Labelled images, as for fit.")],
    out: Annotated[
        Path,
        typer.Option(
            help="The features file, .safetensors; or a folder for a store, which need not fit into memory."
        ),
    ],
    model: Model = "embedded",
    split: Annotated[
        str | None, typer.Option(help="Split to encode; needed where there are several.")
    ] = None,
    views: Annotated[int, typer.Option(min=1, help="Views: the plain image and random ones.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the random views.")] = 0,
    shard_rows: Annotated[
        int | None, typer.Option(min=1, help="Images in a shard of a store; 65,536 if not given.")
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Round the features of a store to float16.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file, or other shards of the store.")
    ] = False,
    json: JsonFlag = False,
    *,
    names: Names,
    reading: Extracting,
) -> None:
    """Write the features of images and of their classes to a safetensors file or a store.

    `rada fit`, `evaluate`, `predict` and `bench` accept it instead of images. With several processes
    (`accelerate launch --num_processes 4 -m rada encode ...`, or torchrun), each encodes a part.
    """
    from rada.core.values import check_seed
    from rada.data import announce, load_class_names, open_dataset
    from rada.data.bad import warn_of_bad
    from rada.encoders import load_encoder
    from rada.features.processes import OtherProcessError, ProcessGroup
    from rada.features.store_writing import SHARD_ROWS, StorePlan, write_store
    from rada.inputs import refuse_features

    check_seed(seed)  # before anything is loaded
    group = ProcessGroup()
    try:
        with group.main_first():
            refuse_features(data, "rada encode")
            as_store = _as_store(out, overwrite, data, half or shard_rows is not None)
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
        if as_store:
            plan = StorePlan(
                images,
                dataset.templates,
                views,
                seed,
                shard_rows=shard_rows or SHARD_ROWS,
                half=half,
                exact_decoding=options.pop("exact_decoding"),
            )
            del options["views"], options["seed"]
            found: FeatureStore | Features | None = write_store(
                group, encoder, plan, out, overwrite=overwrite, inputs=[data], **options
            )
        else:
            found = _one_file(group, encoder, dataset, images, out, overwrite, options)
    except OtherProcessError:
        raise typer.Exit(2) from None  # the process that failed says why
    if found is not None:
        skipped = [*dataset.skipped_of(part), *found.skipped]
        warn_of_bad(skipped)
        _print(found, out, encoder, skipped, json)


def _one_file(
    group: ProcessGroup,
    encoder: DualEncoder,
    dataset: ImageDataset,
    images: ImageSplit,
    out: Path,
    overwrite: bool,
    options: dict[str, Any],
) -> Features | None:
    """Write all features to one file; None in all processes but the main one."""
    import dataclasses

    from rada.encoders.kept_texts import kept_classes
    from rada.features import extract_features
    from rada.features.processes import extract_in_group

    features: Features | None
    if group.count == 1:
        features = extract_features(encoder, images, **options)
    else:
        features = extract_in_group(group, encoder, images, out, **options)
    with group.together():
        if features is not None:
            names, templates, keep = dataset.classes, dataset.templates, options.get("cache")
            features = dataclasses.replace(
                features,
                text_features=kept_classes(encoder, names, templates, keep=keep is not False),
                scale=float(encoder.scale),
                templates=templates,
            )
            features.save(out, overwrite=overwrite)
    return features


def _as_store(out: Path, overwrite: bool, data: str, store_options: bool) -> bool:
    """Return whether a store is to be written; check that a file may be."""
    from rada.core.errors import ConfigError, StorageError
    from rada.core.output import check_file

    if _names_store(out):
        return True
    if out.suffix != ".safetensors":
        raise StorageError(
            f"a features file ends in .safetensors, not {out.name!r}; the folder of a store has no such "
            "ending"
        )
    if store_options:
        raise ConfigError(
            f"--half and --shard-rows are for a store, but {out.name!r} is one file: name a folder"
        )
    check_file(out, overwrite=overwrite, inputs=[data])
    return False


def _names_store(out: Path) -> bool:
    return out.suffix in ("", ".store") or out.is_dir()


def _print(
    features: Features | FeatureStore,
    out: Path,
    encoder: DualEncoder,
    skipped: Sequence[tuple[str, str]],
    json: bool,
) -> None:
    if not json:
        shards = f", {len(features.shards)} shards" if hasattr(features, "shards") else ""
        echo(
            f"Wrote {len(features)} x {features.num_views} x {features.dim} features to {out}{shards}"
        )
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
            "skipped": [list(entry) for entry in skipped],
        }
    )
