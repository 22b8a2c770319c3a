"""From pictures to a judged head: `RAdaClassifier` against a loop that encodes every picture every epoch.

    python benchmarks/end_to_end.py [--shots 16] [--epochs 20] [--test 200]

Both train the same head with the same steps on the built-in textiles set and are judged on the same test pictures.
The loop does what the released research code does: the frozen encoder runs on each batch of each epoch, and on each
test picture. `rada` encodes each picture once, from an empty cache. Measured one after the other in one process.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import torch
from torch.nn.functional import cross_entropy

from rada import EFTConfig, FeatureCache, RAdaClassifier, load_encoder, open_dataset
from rada.data import ImageSplit, few_shot
from rada.settings.eft import HeadTrainer


def released_loop(
    encoder, train: ImageSplit, test: ImageSplit, text: torch.Tensor, config: EFTConfig, seed: int
) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Train with the encoder in the loop; return accuracy and seconds."""
    start = time.perf_counter()

    def encode(rows: list[int], split: ImageSplit) -> torch.Tensor:
        pixels = torch.stack([encoder.preprocess(split.load(row)) for row in rows])
        with torch.no_grad():
            return encoder.forward_images(pixels)

    labels = torch.from_numpy(train.labels.copy())
    width = text.shape[1]
    # The trainer supplies steps, head and learning rate; its features are placeholders that never are used.
    placeholder = torch.eye(width)[torch.arange(len(train)) % width]
    trainer = HeadTrainer(placeholder, labels, text, encoder.scale, config, seed)
    head = trainer._initial_head()
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    step = 0
    for epoch in range(trainer.epochs):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed + epoch))
        for batch in order.split(config.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = trainer._learning_rate(step)
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
    return right / len(test), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--test", type=int, default=200, help="test pictures")
    options = parser.parse_args()
    config = EFTConfig(epochs=options.epochs, min_steps=0, strength=1.0, classes_per_step=0)
    dataset = open_dataset("textiles")
    train = few_shot(dataset.split("train"), options.shots, 1)
    every = max(1, len(dataset.split("test")) // options.test)
    test = dataset.split("test").subset(range(0, len(dataset.split("test")), every))
    encoder = load_encoder("embedded")
    text = encoder.encode_classes(dataset.classes, dataset.templates)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        classifier = RAdaClassifier(
            encoder,
            dataset.classes,
            templates=dataset.templates,
            config=config,
            cache=FeatureCache(folder),
            progress=False,
        )
        classifier.fit(train, seed=1)
        ours, seconds = classifier.score(test), 0.0
        seconds = time.perf_counter() - start
    theirs, loop_seconds = released_loop(encoder, train, test, text, config, 1)
    print(f"{len(train)} training pictures, {options.epochs} epochs, {len(test)} test pictures")
    print(f"rada, cold cache: accuracy {ours:.3f}, {seconds:.1f} s")
    print(f"encoder in the loop: accuracy {theirs:.3f}, {loop_seconds:.1f} s")
    print(f"ratio: {loop_seconds / seconds:.1f}")


if __name__ == "__main__":
    main()
