"""From images to an evaluated head: `Classifier` against a loop that encodes every image every epoch.

    python benchmarks/end_to_end.py [--shots 16] [--epochs 150] [--test 200] [--out result.json]

Both train the same head with the same steps (those of the default recipe, unless `--epochs` says otherwise) on the built-in textiles set and are evaluated on the same test images.
The loop does what the released research code does: the frozen encoder runs on each batch of each epoch, and on each
test picture. `rada` encodes each picture once, from an empty cache. Measured in turns, `--rounds` times; of the clock
and of processor time (workers included) the medians are printed, since on a shared machine the clock says little.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.nn.functional import cross_entropy

from rada import Classifier, EFTConfig, FeatureCache, RAdaHead, load_encoder, open_dataset
from rada.core.storage import write_json
from rada.data import ImageSplit, few_shot
from rada.evaluation import environment
from rada.training.feature_loop import learning_rate, seeded


def timed(work: Callable[[], float]) -> dict[str, float]:
    """Return the accuracy that `work` gives, and the seconds it took."""
    clock, processor = time.perf_counter(), sum(os.times()[:4])
    accuracy = work()
    return {
        "accuracy": accuracy,
        "seconds": time.perf_counter() - clock,
        "processor_seconds": sum(os.times()[:4]) - processor,
    }


def released_loop(
    encoder, train: ImageSplit, test: ImageSplit, text: torch.Tensor, config: EFTConfig, seed: int
) -> float:  # type: ignore[no-untyped-def]
    """Train with the encoder in the loop; return the accuracy."""

    def encode(rows: list[int], split: ImageSplit) -> torch.Tensor:
        pixels = torch.stack([encoder.preprocess(split.load(row)) for row in rows])
        with torch.no_grad():
            return encoder.forward_images(pixels)

    labels = torch.from_numpy(train.labels.copy())
    with seeded(seed):
        head = RAdaHead(text.shape[1], config.num_heads, config.temperature)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    step, steps = 0, config.steps(len(train))
    per_epoch = -(-len(train) // config.batch_size)
    for epoch in range(steps // per_epoch):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed + epoch))
        for batch in order.split(config.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config.recipe(), step, per_epoch, steps)
            output = head(encode(batch.tolist(), train), text, encoder.scale)
            loss = cross_entropy(output.logits, labels[batch])
            loss = loss + config.alpha * output.max_deviation.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    right = 0
    for rows in torch.arange(len(test)).split(config.batch_size):
        with torch.no_grad():
            logits = head(encode(rows.tolist(), test), text, encoder.scale).logits
        right += int((logits.argmax(1) == torch.from_numpy(test.labels[rows.numpy()])).sum())
    return right / len(test)


def with_rada(
    encoder, dataset, train: ImageSplit, test: ImageSplit, config: EFTConfig, seed: int
) -> float:  # type: ignore[no-untyped-def]
    """Fit and score from an empty cache; return the accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        classifier = Classifier(
            encoder,
            classes=dataset.classes,
            templates=dataset.templates,
            config=config,
            cache=FeatureCache(folder),
            progress=False,
        )
        return classifier.fit(train, seed=seed).score(test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--epochs", type=int, help="default: as many as the default recipe takes")
    parser.add_argument("--test", type=int, default=200, help="test pictures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="JSON file for the result")
    options = parser.parse_args()
    config = EFTConfig(strength=1.0, classes_per_step=0)
    if options.epochs is not None:
        config = replace(config, epochs=options.epochs, min_steps=0)
    dataset = open_dataset("textiles")
    train = few_shot(dataset.split("train"), options.shots, 1)
    every = max(1, len(dataset.split("test")) // options.test)
    test = dataset.split("test").subset(range(0, len(dataset.split("test")), every))
    encoder = load_encoder("embedded")
    text = encoder.encode_classes(dataset.classes, dataset.templates)
    ways = {
        "rada, cold cache": lambda seed: with_rada(encoder, dataset, train, test, config, seed),
        "encoder in the loop": lambda seed: released_loop(encoder, train, test, text, config, seed),
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for seed in range(1, options.rounds + 1):
        for name, work in ways.items():
            runs[name].append(timed(lambda work=work, seed=seed: work(seed)))
    medians = {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]}
        for name, found in runs.items()
    }
    steps = config.steps(len(train))
    print(f"{len(train)} training pictures, {steps} steps, {len(test)} test pictures")
    for name, found in medians.items():
        print(f"{name}: {', '.join(f'{key} {value:.3f}' for key, value in found.items())}")
    ours, theirs = medians.values()
    ratios = {key: theirs[key] / ours[key] for key in ("seconds", "processor_seconds")}
    print(f"ratios: {', '.join(f'{key} {value:.1f}' for key, value in ratios.items())}")
    if options.out:
        facts = vars(options) | {"steps": steps, "train": len(train), "tested": len(test)}
        result = {"settings": facts, "runs": runs, "medians": medians, "ratios": ratios}
        write_json(options.out, result | {"environment": environment()})


if __name__ == "__main__":
    main()
