"""Write the table of open_clip's architectures: width of the features and number of parameters.

Run it after an update of open_clip: `python benchmarks/profile_open_clip.py`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import open_clip
import torch

TABLE = Path(__file__).parents[1] / "src/rada/encoders/families/open_clip_models.json"


def profile(name: str) -> tuple[int, int | None]:
    """Return width and size; the size is None where a part's configuration is on the hub only."""
    dim = open_clip.get_model_config(name)["embed_dim"]
    try:
        with torch.device("meta"):
            model = open_clip.create_model(name, pretrained_text=False, device="meta")
    except Exception as error:
        print(f"{name}: {str(error)[:80]}", file=sys.stderr)
        return dim, None
    return dim, sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    names = sorted({name for name, _ in open_clip.list_pretrained()})
    rows = [f"  {json.dumps(name)}: {json.dumps(profile(name))}" for name in names]
    TABLE.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
