"""Write `suite_groups.json`: the groups of ImageNet classes that `suite.py` cuts its problems from.

    python benchmarks/suite_groups.py clip_vitb32_imagenet.npz

The committed file is what counts, so that the problems can never change; this says how it was made. Animals, food and the rest are
ranges of ImageNet's order, which follows WordNet. Artefacts are k-means clusters of their class features, named by hand. Groups are
disjoint and belong to the parts in turn; mixtures are drawn from the classes of one part, so that what tunes shares no class with
what confirms. Classes with the same image twice are left out: it would be learned from and tested on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans

from rada.core.storage import write_json

GROUPS = Path(__file__).with_name("suite_groups.json")
PARTS = ("tune", "confirm")
SMALLEST = 12
SAME_IMAGE = 0.95
# Name -> ranges of ImageNet's order, ends excluded.
RANGES = {
    "fish": [(0, 7), (389, 398)],
    "land birds": [(7, 25), (80, 97)],
    "water birds": [(97, 101), (127, 147)],
    "amphibians, turtles, lizards": [(25, 52)],
    "snakes": [(52, 69)],
    "spiders, molluscs, crabs": [(69, 80), (107, 127), (327, 330)],
    "toy dogs, hounds, terriers": [(151, 205)],
    "sporting and working dogs": [(205, 269)],
    "wolves, cats, bears": [(269, 300)],
    "insects": [(300, 327)],
    "rodents, cattle, weasels": [(330, 365)],
    "primates, elephants, pandas": [(365, 389)],
    "dishes, drinks": [(924, 936), (958, 970)],
    "fruits, vegetables": [(936, 958)],
    "nature, plants": [(970, 1000)],
}
ARTEFACTS = (398, 924)
# Names of the clusters, in the order of their lowest class; the last is too small.
CLUSTERS = (
    "furniture, household",
    "garments, fabrics",
    "electronics",
    "boats, aircraft, sports vehicles",
    "road and rail vehicles",
    "artefacts of many kinds",
    "clocks, poles",
    "buildings",
    "tools, instruments",
    "accessories, bags",
    "shops, machines",
    "balls, round things",
    "small things",
    "pots, tubs",
    "bottles, cups",
    "underwear",
)
# Every n-th class of a part, from an offset on.
MIXTURES = ((12, 0), (12, 4), (12, 8), (5, 2))


def disjoint_groups(text: np.ndarray) -> dict[str, list[int]]:
    """Return the disjoint groups by name."""
    found = {
        name: [label for low, high in ranges for label in range(low, high)]
        for name, ranges in RANGES.items()
    }
    rows = np.arange(*ARTEFACTS)
    cluster = KMeans(len(CLUSTERS), random_state=0, n_init=10).fit_predict(text[rows])
    members = sorted(rows[cluster == k].tolist() for k in range(len(CLUSTERS)))
    found |= dict(zip(CLUSTERS, members, strict=True))
    return {name: labels for name, labels in found.items() if len(labels) >= SMALLEST}


def doubled(images: np.ndarray, labels: np.ndarray) -> set[int]:
    """Return the classes of which two images are nearly the same."""
    found = set()
    for label in np.unique(labels):
        rows = images[labels == label]
        cosines = rows @ rows.T - np.eye(len(rows))
        if cosines.max() > SAME_IMAGE:
            found.add(int(label))
    return found


def main(source: str) -> None:
    with np.load(source, allow_pickle=False) as file:
        arrays = {name: file[name].astype(np.float32) for name in file.files}
    for name in ("text", "one_shot", "two_shot"):
        arrays[name] /= np.linalg.norm(arrays[name], axis=1, keepdims=True)
    images = np.concatenate([arrays["one_shot"], arrays["two_shot"]])
    labels = np.concatenate([arrays["one_shot_labels"], arrays["two_shot_labels"]])
    without = doubled(images, labels)
    groups = [
        {"name": name, "part": PARTS[index % 2], "classes": sorted(set(classes) - without)}
        for index, (name, classes) in enumerate(disjoint_groups(arrays["text"]).items())
    ]
    for part in PARTS:
        own = sorted(label for one in groups if one["part"] == part for label in one["classes"])
        for step, offset in MIXTURES:
            name = f"every {step}th class from {offset}, {part}"
            groups.append({"name": name, "part": part, "classes": own[offset::step]})
    for group in groups:
        group["classes"] = " ".join(map(str, group["classes"]))  # one line a group
    write_json(GROUPS, {"left_out": sorted(without), "groups": groups})


if __name__ == "__main__":
    main(*sys.argv[1:])
