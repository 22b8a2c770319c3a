"""The documents say what is there: names, files, links, commands, rooms, methods; their first lines run."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch.nn.functional import normalize

from rada import Classifier, ExplainConfig, Features
from rada.app.config import AppConfig
from rada.methods.rada import EFTConfig, RAda

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"(?:src/rada|tests|benchmarks|docs)/[\w./*-]+")
NAME = re.compile(r"(?<![\w/])rada(?:\.\w+)+(?!\w*=)")

pages = pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


# -- names, files, links ---------------------------------------------------------------------------


def resolve(name: str) -> Any:
    """Return what a dotted name stands for."""
    parts = name.split(".")
    found: Any = importlib.import_module(parts[0])
    for place, part in enumerate(parts[1:], 1):
        if hasattr(found, "__path__"):
            module = ".".join(parts[: place + 1])
            try:
                found = importlib.import_module(module)
                continue
            except ModuleNotFoundError as error:
                if error.name != module:
                    raise
        found = getattr(found, part)
    return found


@pages
def test_names_and_files_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # tells what there was
    for code in CODE.findall(prose(page)):
        for name in NAME.findall(code):
            resolve(name)
        for path in FILE.findall(code):
            assert list(ROOT.glob(path.rstrip("/."))), f"{page.name}: there is no {path}"


def slug(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        place, _, anchor = target.partition("#")
        found = page if not place else (page.parent / place).resolve()
        assert found.exists(), f"{page.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, titles), f"{page.name}: {target}"


# -- commands --------------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every `rada` command of a page, without those of a pipe after it."""
    text = page.read_text(encoding="utf-8")
    lines = [line for kind, block in BLOCK.findall(text) if not kind for line in joined(block)]
    lines += [code for code in CODE.findall(BLOCK.sub("", text)) if code.startswith("rada ")]
    for line in lines:
        found = re.search(r"(?:^|\s|\| )(?:-m )?rada ((?:[a-z]+|--)\b.*)$", line)
        if found and not line.startswith(("pip", "#", "accelerate test")):
            words = shlex.split(found[1], comments=True)
            end = next((n for n, word in enumerate(words) if word in ("|", ">", "&&")), len(words))
            yield words[:end]


def joined(block: str) -> list[str]:
    return block.replace("\\\n", " ").splitlines()


@pages
def test_commands_and_options_exist(page: Path) -> None:
    from rada.cli.app import app

    root: Any = typer.main.get_command(app)
    for words in commands(page):
        command: Any = root
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert command is not root or not words or words[0].startswith("-"), f"{page.name}: {words}"
        known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
        options = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
        unknown = [name for name in options if name not in {*known, "--help", "-h"}]
        assert not unknown, f"{page.name}: {command.name} has no {unknown}"


def test_commands_are_found() -> None:
    assert len([words for page in PAGES for words in commands(page)]) > 60


@pages
def test_settings_are_fields_of_a_configuration(page: Path) -> None:
    from rada.methods import get_method, list_methods

    every = {key for method in list_methods() for key in method.config().to_dict()}
    for words in commands(page):
        if words[:1] == ["bench"]:
            continue  # METHOD.FIELD, checked by the plan
        method = words[words.index("--method") + 1] if "--method" in words else None
        if (
            f'"{method}"' in page.read_text(encoding="utf-8")
            and "register_method(" in page.read_text()
        ):
            continue  # the page's own
        fields = every
        if words[:1] == ["explain"]:
            fields = set(ExplainConfig().to_dict())
        if words[:1] == ["app"]:
            fields = set(AppConfig().to_dict())
        if method is not None and method.islower():
            fields = set(get_method(method).config().to_dict())
        for word, setting in itertools.pairwise(words):
            if word == "--set" and setting.islower():
                assert setting.partition("=")[0] in fields, f"{page.name}: {words}"


# -- what is generated or equal to something else --------------------------------------------------


def test_the_page_of_methods_is_what_the_command_prints() -> None:
    from rada.cli.methods import markdown_tables

    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    begin, end = (
        "<!-- generated: rada methods --markdown -->\n",
        "\n<!-- end of the generated tables -->",
    )
    assert page.partition(begin)[2].partition(end)[0] == markdown_tables()


def layers() -> list[list[str]]:
    """Return the layers that lint-imports checks, highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract, circles = settings["tool"]["importlinter"]["contracts"]
    assert contract["type"] == "layers" and contract["exhaustive"]
    assert circles["type"] == "acyclic_siblings" and circles["ancestors"] == ["rada"]
    return [sorted(re.split(r"\s*\|\s*", layer)) for layer in contract["layers"]]


def test_the_rooms_of_the_architecture_are_the_layers_that_are_checked() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("| room | what is in it |\n|---|---|\n")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()]
    assert [sorted(CODE.findall(row)) for row in rows] == layers()


def test_the_picture_of_the_layout_is_the_layers_that_are_checked() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (picture,) = re.findall(r"`core` <.*?`cli`\.", page, re.DOTALL)
    assert [sorted(CODE.findall(part)) for part in picture.split("<")][::-1] == layers()


def test_the_versions_that_the_documents_name_are_those_that_are_asked_for_and_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    installs, tests = re.findall(
        r"It installs beside (.*?), or newer\. The tests\s+pass on (.*?) Python 3\.14 has ",
        texts,
        re.DOTALL,
    )[0]
    pythons = sorted(set(re.findall(r"3\.\d+", tests)))
    classifiers = [text.rpartition(" ")[2] for text in project["classifiers"] if ":: 3." in text]
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    matrix = re.findall(r'"(3\.\d+)"', re.findall(r"python: \[(.*)\]", workflow)[0])
    assert pythons == classifiers == matrix and project["requires-python"] == f">={pythons[0]}"
    floors = {"Python": project["requires-python"].removeprefix(">=")}
    for text in project["dependencies"] + project["optional-dependencies"]["models"]:
        name, floor = text.split(">=")
        floors[name.removesuffix("_torch")] = floor
    named = re.findall(r"([\w-]+) (\d[\d.]*\d)", installs)
    assert len(named) == 6
    for name, version in named:
        assert floors[name].startswith(version)


# -- the first lines of Python ---------------------------------------------------------------------


@dataclass(frozen=True)
class QuickConfig(EFTConfig):
    """The defaults, but for a few steps."""

    epochs: int = 1
    min_steps: int = 2


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The images that the documents speak of, in the current folder; RAda makes a few steps."""
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 2)):
        for name, colour in (("nominal", 60), ("local", 120), ("global", 180)):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = colour + random.integers(0, 60, (16, 16, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    Image.new("RGB", (16, 16), (90, 90, 90)).save(tmp_path / "one.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RAda, "config", QuickConfig)
    return tmp_path


def run_python(page: str, **names: Any) -> dict[str, Any]:
    """Run the Python of a page; return what it defines."""
    names["__name__"] = "documentation"
    text = (ROOT / page).read_text(encoding="utf-8")
    for number, code in enumerate(code for kind, code in BLOCK.findall(text) if kind == "python"):
        exec(compile(code, f"{page}, block {number}", "exec", dont_inherit=True), names)
    return names


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_first_lines_of_python(
    page: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run_python(page)
    assert names["clf"].is_fitted and len(names["clf"].predict(["one.jpg"], top_k=3)[0]) == 2
    assert names["clf"].candidates() == ("nominal fabric", "stained fabric")
    assert (photos / "my-model" / "config.json").is_file()
    assert "probability" in capsys.readouterr().out


def test_the_python_of_methods_and_features(photos: Path) -> None:
    found = run_python("docs/methods.md")["classifier"]
    assert found.model_.method.name == "tip_adapter_f" and found.is_fitted
    names = run_python(
        "docs/features.md", images=np.eye(4, 8), labels=[0, 1, 0, 1], texts=np.eye(2, 8)
    )
    assert len(names["features"].plain()) == 3 * 16 and names["model"].method.name == "linear_probe"
    assert Features.load("mine.npz").classes == ("cat", "dog")


def test_the_python_of_explanations(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("captum", reason="needs the extra 'explain'")
    names = run_python("docs/explain.md")
    assert sum(part.total for part in names["first"].parts) == pytest.approx(names["first"].adapted)
    assert (photos / "map.png").is_file() and names["learned"].mask.shape == (3, 384)
    assert "most similar training images" in capsys.readouterr().out


def test_the_python_of_test_time(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Classifier("embedded").fit("photos", seed=1, output_dir="my-model")
    views = normalize(torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    names = run_python(
        "docs/test_time.md", view_features=views, text_features=torch.eye(3, 8), scale=20.0
    )
    assert names["logits"].shape == (2, 3)
    assert names["adapter"].predict_proba(["one.jpg"]).sum() == pytest.approx(1.0, abs=1e-5)
    assert capsys.readouterr().out.startswith("kept 6 of 64 views")
