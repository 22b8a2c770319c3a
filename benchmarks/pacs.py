"""Zero-shot against RAda with 16 shots on every domain of a PACS-like folder.

    python benchmarks/pacs.py DATA [--shots 16] [--seeds 3]

DATA holds one folder for each domain, each with train/ and test/ and class folders below. Nothing is chosen
on the test pictures. Prints a Markdown table and writes benchmarks/results/pacs.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rada import RAdaClassifier, load_encoder
from rada.evaluation import environment, mean_std
from rada.storage import write_json

RESULTS = Path(__file__).parent / "results" / "pacs.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    encoder = load_encoder("embedded")
    rows = {}
    print("| domain | zero-shot | RAda | difference | strength |\n|---|---|---|---|---|")
    for domain in sorted(path for path in options.data.iterdir() if path.is_dir()):
        scores, strengths, zero_shot = [], [], 0.0
        for seed in range(1, options.seeds + 1):
            classifier = RAdaClassifier(encoder, progress=False)
            classifier.fit(domain, shots=options.shots, seed=seed)
            scores.append(classifier.score(domain))
            strengths.append(classifier.strength)
            zero_shot = classifier.zero_shot_score(domain)
        spread = mean_std(scores)
        rows[domain.name] = {
            "zero_shot": zero_shot,
            "rada": scores,
            "strength": strengths,
            "shots": options.shots,
        }
        print(
            f"| {domain.name} | {100 * zero_shot:.1f} | {100 * spread.mean:.1f} ± "
            f"{100 * (spread.std or 0):.1f} | {100 * (spread.mean - zero_shot):+.1f} | "
            f"{', '.join(f'{value:g}' for value in strengths)} |",
            flush=True,
        )
    write_json(RESULTS, {"rows": rows, "environment": environment()})


if __name__ == "__main__":
    main()
