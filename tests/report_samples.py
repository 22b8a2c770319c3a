"""Results with known shapes for the tests of pages: few and many classes, hostile names, all parts."""

import numpy as np
import PIL.Image
import torch

from rada.evaluation import compare, environment

HOSTILE = (
    "<script>alert('x')</script>",
    'a "quoted" & <b>bold</b> $x^2$ name',
    "bell\x07 null\x00 \udce9 and \u202ereversed",
    "an-extraordinarily-long-class-name-without-any-place-to-break-" * 3,
    "日本語の名前 тест עברית",
)


def make_result(classes, images=400, seed=0, skill=(1.0, 2.5), extra=True):
    """Compare random logits; `skill` is how far the true class stands out before and after."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(classes), images)
    logits = generator.normal(size=(images, len(classes)))
    shifts = generator.normal(size=(images, len(classes))) * 0.6
    truth = np.zeros_like(logits)
    truth[np.arange(images), labels] = 1
    rows = {"linear_probe": logits + 0.9 * skill[1] * truth - shifts} if extra else {}
    zero_shot, adapted = logits + skill[0] * truth, logits + skill[1] * truth + shifts
    result = compare(zero_shot, adapted, labels, classes, extra=rows)
    result |= {
        "dataset": "textiles",
        "split": "test",
        "encoder": "embedded",
        "shots": 16,
        "seed": 1,
        "strength": 0.75,
        "config": {
            "epochs": 20,
            "batch_size": 32,
            "learning_rate": 3.5e-3,
            "alpha": 1.0,
            "strength": "auto",
            "classes_per_step": None,
        },
        "environment": environment(),
        "timing": {"seconds": 83.2, "cpu_seconds": 151.0, "peak_memory_bytes": 1_403_000_000},
        "command": "rada evaluate my-head photos/test --model embedded --shots 16 --seed 1 --report out",
    }
    return result, labels, zero_shot, adapted


def make_curve(epochs=20):
    """A training history as `train_head` keeps it."""
    return [
        {
            "loss": 1.1 * 0.9**epoch + 0.3,
            "max_deviation": 0.35 * (1 - 0.8**epoch),
            "accuracy": 0.9 - 0.6 * 0.85**epoch,
            "learning_rate": 3e-3,
        }
        for epoch in range(epochs)
    ]


def make_runs(shots=(1, 2, 4, 8, 16), seeds=(1, 2, 3)):
    """Runs of two methods over shots and seeds."""
    generator = np.random.default_rng(0)
    return [
        {
            "method": method,
            "shots": number,
            "seed": seed,
            "accuracy": level + 0.1 * place + generator.normal() * 0.03,
            "balanced_accuracy": level + 0.06 * place + generator.normal() * 0.02,
        }
        for method, level in (("rada_probe", 0.3), ("linear_probe", 0.24))
        for place, number in enumerate(shots)
        for seed in seeds
    ]


class Photos:
    """A small split of generated images, with what `changed_examples` asks for."""

    def __init__(self, classes, labels):
        self.classes, self.labels = tuple(classes), np.asarray(labels)
        self.ids = tuple(f"test/class {label}/image-{n:04d}.jpg" for n, label in enumerate(labels))

    def load(self, index):
        generator = torch.Generator().manual_seed(index)
        colours = torch.rand(6, 8, 3, generator=generator) * 255
        small = PIL.Image.fromarray(colours.numpy().astype(np.uint8))
        return small.resize((400, 300) if index % 2 else (300, 420), PIL.Image.Resampling.BICUBIC)
