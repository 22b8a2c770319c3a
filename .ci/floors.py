"""Print the lowest versions that pyproject.toml allows, as constraints for pip.

The packages of `docs`, `test` and `dev` are tools, which are not rada's to hold back: they stay free. `onnx`
asks for a newer torch than the core, and `app` for a newer huggingface_hub than `models`: the Makefile leaves
them out.
"""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
wanted = project["dependencies"] + [
    text
    for extra, texts in extras.items()
    if extra not in ("onnx", "docs", "test", "dev")
    for text in texts
]
# What `datasets` asks for without naming what it needs itself: newer ones of pyarrow need NumPy 2.
print("pyarrow==21.0.0")
for text in sorted(wanted, key=str.lower):
    floor = re.fullmatch(r"([\w.-]+)>=([\w.]+)(?:;.*)?", text)
    if floor:
        print(f"{floor[1]}=={floor[2]}")
    elif not text.startswith("rada-vlm["):
        raise SystemExit(f"{text!r} has no lower bound of the form NAME>=VERSION")
