"""WebDataset shards: tar files of images and labels, local or at URLs, as one data set.

Shards are read at random through an index, so all that works on folders works on them.
"""

from __future__ import annotations

import glob
import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rada.core.errors import DataError
from rada.core.storage import read_lines
from rada.core.warn import warn
from rada.data.dataset import ImageDataset, ImageSplit
from rada.data.prompts import load_templates
from rada.data.registry import register_dataset
from rada.data.scan import has_images, is_folder, list_folders, natural_key
from rada.data.shards.index import Shard, index_shards
from rada.data.shards.labels import find_class_names, label_shards, places_of_shards
from rada.data.shards.tar_scan import ShardIndex
from rada.data.shards.urls import copy_shards, expand_braces, is_url, local_path
from rada.data.splits import SPLITS, split_name

__all__ = ["load_shards"]

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_TEMPLATES = "zeroshot_classification_templates.txt"  # of CLIP_benchmark
_BETWEEN_WORDS = re.compile(r"[-_.\s]+")


def load_shards(spec: str) -> ImageDataset:
    """Open shards, given as a file, a pattern, a folder or URLs.

    Each shard is gone through once to find its samples; the index is kept in the cache.

    Raises:
        DataError: If a shard is missing, damaged, compressed or empty, or its labels cannot be used.
        MissingExtraError: If URLs need the library `webdataset`.
        StorageError: If shards at URLs cannot be copied into the cache.
    """
    spec = local_path(spec) or spec
    path = Path(spec).expanduser()
    if is_url(spec):
        urls = expand_braces(spec)
        copies = copy_shards(urls)
        shards = [Shard.at(copy, key) for copy, key in zip(copies, _url_ids(urls), strict=True)]
        return _open(shard_title(urls[0]), _named_splits(shards), copies=True)
    if is_folder(spec):
        return _open(path.resolve().name, _folder_splits(path), above=path)
    paths = _local(spec)
    root = os.path.commonpath([str(found.absolute().parent) for found in paths])
    shards = [Shard.at(found, found.absolute().relative_to(root).as_posix()) for found in paths]
    return _open(shard_title(spec), _named_splits(shards))


def shard_title(spec: str) -> str:
    """Return what to call the data set of a pattern in tables.

    Example:
        >>> shard_title("/data/pets/train-{000..146}.tar"), shard_title("pipe:cat a")
        ('pets/train', 'shards')
    """
    path = "" if spec.startswith("pipe:") else urlsplit(spec).path if is_url(spec) else spec
    folder, name = posixpath.split(unquote(path).replace(os.sep, "/"))
    start = re.split(r"[{*?\[]|\.tar$", name)[0].rstrip("-_. 0123456789")
    return "/".join(part for part in (posixpath.basename(folder), start) if part) or "shards"


def _open(
    name: str, splits: dict[str, list[Shard]], *, above: Path | None = None, copies: bool = False
) -> ImageDataset:
    shards = [shard for part in splits.values() for shard in part]
    indexes = iter(_index_copies(shards) if copies else index_shards(shards))
    folders = [shard.path.absolute().parent for shard in shards]
    places = folders if above is None else [above.absolute(), *folders]
    found = label_shards(
        {split: (part, [next(indexes) for _ in part]) for split, part in splits.items()},
        find_class_names(places),
    )
    return ImageDataset(
        name,
        found.classes,
        {
            split: ImageSplit(found.classes, labels, source)
            for split, (labels, source) in found.splits.items()
        },
        _templates(places),
        keys=found.keys,
        unnamed=found.unnamed,
    )


def _templates(folders: Iterable[Path]) -> tuple[str, ...]:
    """Return the templates that CLIP_benchmark keeps beside shards, or the default."""
    for place in places_of_shards(folders):
        path = place / _TEMPLATES
        if path.is_file():
            lines = read_lines(path, error=DataError, what="the file of templates")
            return load_templates([line.replace("{c}", "{}") for line in lines])
    return load_templates(None)


def _index_copies(shards: Sequence[Shard]) -> list[ShardIndex]:
    """Index copies of shards; one that is damaged would be found again and again, so it is removed."""
    found: list[ShardIndex] = []
    for shard in shards:
        try:
            found += index_shards([shard], progress=False)
        except DataError as error:
            shard.path.unlink(missing_ok=True)
            raise DataError(
                f"{error} (this copy was removed, and the next run copies the shard anew)"
            ) from error
    return found


def _local(spec: str) -> list[Path]:
    """Return the files that a path or a pattern stands for, in natural order."""
    path = Path(spec).expanduser()
    if spec.lower().endswith(_COMPRESSED):
        raise DataError(
            f"the shard {spec!r} is compressed, so images cannot be read one by one: unpack it to a "
            "plain .tar, images are compressed anyway"
        )
    if path.is_file():  # also one whose name has braces
        return [path]
    patterns = expand_braces(str(path))
    found: list[Path] = []
    missing = []
    for pattern in patterns:
        if glob.has_magic(pattern):
            matches = sorted(glob.glob(pattern, recursive=True), key=natural_key)  # noqa: PTH207
        else:
            matches = [pattern] if os.path.isfile(pattern) else []  # noqa: PTH113
        found += map(Path, matches)
        missing += [] if matches else [pattern]
    if missing and not found:
        raise DataError(f"no shard matches {spec!r}: check the path and the numbers in braces")
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(patterns)} shards of {spec!r} are missing, the first is "
            f"{missing[0]!r}: add them, or name those that are there"
        )
    return list(dict.fromkeys(found))


def _folder_splits(root: Path) -> dict[str, list[Shard]]:
    """Return the shards of each split of a folder: by sub-folders, or by the names of the files."""
    loose = _tars(root)
    below = {name: _tars(root / name) for name in list_folders(root) if split_name(name)}
    below = {name: tars for name, tars in below.items() if tars}
    if loose and below:
        folder = next(iter(below))
        raise DataError(
            f"{str(root)!r} has the shard {loose[0]!r} beside the folder {folder!r} of a split: move one "
            f"of them away, or open {str(root / folder)!r} itself"
        )
    if not below:
        return _named_splits([Shard.at(root / name, name) for name in loose], fold=False)
    splits: dict[str, list[Shard]] = {}
    for folder, tars in below.items():
        split = split_name(folder) or folder
        if split in splits:
            raise DataError(f"{str(root)!r} has two folders which mean the split {split!r}")
        # Keys are those of the split opened by itself, so that a seed draws the same shots.
        splits[split] = [Shard.at(root / folder / name, name) for name in tars]
    return {split: splits[split] for split in SPLITS if split in splits}


def _named_splits(shards: Sequence[Shard], *, fold: bool = True) -> dict[str, list[Shard]]:
    """Tell splits by the names of shards, such as `pets-train-000.tar`.

    Args:
        shards: The shards.
        fold: Whether a single split is "all" of what the user has named.

    Raises:
        DataError: If some say a split and others do not, or one says two.
    """
    splits: dict[str, list[Shard]] = {}
    for shard in shards:
        splits.setdefault(_split_in(shard.id), []).append(shard)
    if len(splits) > 1 and "" in splits:
        other = next(part[0] for split, part in splits.items() if split)
        raise DataError(
            f"the shard {splits[''][0].id!r} belongs to no split, but {other.id!r} does: put train, val or "
            "test into every name or into none, or name one kind alone"
        )
    if len(splits) == 1 and (fold or "" in splits):
        return {"all": list(shards)}
    return {split: splits[split] for split in SPLITS if split in splits}


def _split_in(name: str) -> str:
    """Return the split that the name of a shard says, "" for none."""
    words = _BETWEEN_WORDS.split(posixpath.basename(name))
    found = {split for split in map(split_name, words) if split}
    return found.pop() if len(found) == 1 else ""


def _url_ids(urls: Sequence[str]) -> list[str]:
    """Return what the keys of each shard's images begin with: the URL behind what all share."""
    paths = [
        f"/{number:06d}" if url.startswith("pipe:") else f"/{unquote(urlsplit(url).path)}"
        for number, url in enumerate(urls)
    ]
    root = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    ids = [posixpath.relpath(path, root) for path in paths]
    # Addresses may differ in their query alone.
    return ids if len(set(ids)) == len(ids) else [f"{n:06d}/{key}" for n, key in enumerate(ids)]


def _tars(folder: Path) -> list[str]:
    found = sorted(_tar_names(folder), key=natural_key)
    left = sorted(_tar_names(folder, _COMPRESSED), key=natural_key)
    if found and left:
        warn(
            f"{len(left)} compressed shards of {str(folder)!r} are left out, such as {left[0]!r}: unpack "
            "them to plain .tar files",
            UserWarning,
            stacklevel=5,
        )
    return found


def _tar_names(folder: str | Path, suffixes: tuple[str, ...] = (".tar",)) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [
                entry.name
                for entry in entries
                if entry.name.lower().endswith(suffixes)
                and entry.name[0] != "."
                and entry.is_file()
            ]
    except OSError:
        return []


def _matches(spec: str) -> bool:
    if not is_url(spec) and is_folder(spec):
        return _holds_shards(Path(spec).expanduser())
    return is_url(spec) or spec.lower().endswith((".tar", *_COMPRESSED))


def _holds_shards(root: Path) -> bool:
    """Whether a folder is one of shards; an archive beside folders of images makes it none."""
    try:
        names = list_folders(root)
        split_folders = [name for name in names if split_name(name)]
        if _tar_names(root):
            return not any(has_images(root / name) for name in names)
        return any(_tar_names(root / name) for name in split_folders) and not any(
            has_images(root / name) for name in split_folders
        )
    except DataError:
        return False


register_dataset(
    # Its name comes before FOLDER's, so a folder that holds shards is asked about here first.
    "FILE.tar",
    "WebDataset shards: a .tar, train-{0000..0146}.tar, 'train-*.tar', a folder of them, or URLs",
    matches=_matches,
    load=load_shards,
    is_path=True,
)
