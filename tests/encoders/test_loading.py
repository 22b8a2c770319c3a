"""Models that cannot be loaded: a typed error that names the cause, never random weights."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from encoders.tiny_models import OPEN_CLIP, blip_captioning
from rada.core.errors import EncoderError
from rada.encoders import describe_model, load_encoder
from rada.encoders.slot import EncoderSlot


@pytest.fixture
def copied(saved, tmp_path):
    """Return a function that gives a copy of a tiny model's directory, to be damaged."""

    def directory(name):
        return Path(shutil.copytree(saved(name), tmp_path / name))

    return directory


def weights_file(folder):
    return next(folder.glob("*.safetensors"))


def drop_weight(folder, part):
    path = weights_file(folder)
    weights = load_file(path)
    name = next(key for key in weights if part in key)
    del weights[name]
    save_file(weights, path, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("name", ["clip", "siglip", "align", "altclip", "open_clip"])
def test_missing_weight_is_named(copied, name):
    folder = copied(name)
    missing = drop_weight(folder, "token_embedding" if name == "open_clip" else "embeddings")
    with pytest.raises(EncoderError, match=missing.rpartition(".")[2]):
        load_encoder(folder)


def test_weight_of_another_shape_is_named(copied):
    folder = copied("clip")
    path = weights_file(folder)
    weights = load_file(path)
    weights["visual_projection.weight"] = torch.zeros(3, 32)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=r"visual_projection\.weight"):
        load_encoder(folder)


def test_blip_captioning_has_no_retrieval_encoders(tmp_path):
    blip_captioning(tmp_path / "captioning")
    with pytest.raises(EncoderError, match=r"text_encoder.*missing"):
        load_encoder(tmp_path / "captioning")


@pytest.mark.parametrize("name", ["clip", "open_clip"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "absent"])
def test_damaged_weights(copied, name, damage):
    folder = copied(name)
    path = weights_file(folder)
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 1000 if damage == "truncated" else 0])
    with pytest.raises(EncoderError):
        load_encoder(folder)


class Explosive:
    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle was run')",)


@pytest.mark.parametrize("name", ["clip", "open_clip"])
def test_hostile_pickle_is_not_run(copied, name):
    folder = copied(name)
    weights_file(folder).unlink()
    target = "pytorch_model.bin" if name == "clip" else "open_clip_pytorch_model.bin"
    torch.save({"logit_scale": Explosive()}, folder / target, pickle_module=pickle)
    with pytest.raises(EncoderError):
        load_encoder(folder)


@pytest.mark.parametrize("name", ["clip", "open_clip"])
def test_damaged_configuration(copied, name):
    folder = copied(name)
    path = folder / ("config.json" if name == "clip" else "open_clip_config.json")
    for content in ("{", "[]", "{}", '{"model_type": 3}', '{"model_cfg": {}}'):
        path.write_text(content)
        with pytest.raises(EncoderError, match=r"config\.json"):
            load_encoder(folder)


def test_unknown_architecture_names_itself(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clap"}))
    with pytest.raises(EncoderError, match=r"model_type 'clap'.*families are"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("gone", ["preprocessor_config.json", "tokenizer.json"])
def test_missing_processor(copied, gone):
    folder = copied("siglip")
    for path in (folder / gone, folder / "tokenizer_config.json"):
        path.unlink()
    with pytest.raises(EncoderError, match="cannot be loaded"):
        load_encoder(folder)


@pytest.mark.parametrize(
    "name",
    [
        "hf:openai/clip-vit-base-patch32",
        "hf-hub:timm/ViT-B-16-SigLIP",
        "open_clip:ViT-B-32/laion2b_s34b_b79k",
    ],
)
def test_no_hub_in_reach(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    start = time.monotonic()
    with pytest.raises(EncoderError, match=r"not on this machine.*give its directory"):
        load_encoder(name)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "empty"),
        ("hf:", "nothing after the colon"),
        ("hf:a/b/c", "neither a directory"),
        ("/no/such/place", "no such directory"),
        ("open_clip:ViT-B-32", "one of: openai, "),
        ("open_clip:ViT-B-32/nonsense", "'nonsense' is neither a tag"),
        ("something", "unknown model 'something'; A model is"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(EncoderError, match=message):
        load_encoder(name)


SLIPS = {
    "ViT-B-32": "open_clip:ViT-B-32/openai",
    "ViT-B/32": "open_clip:ViT-B-32/openai",
    "vit-b-32/openai": "open_clip:ViT-B-32/openai",
    "openai/ViT-B-32": "open_clip:ViT-B-32/openai",
    "open_clip:ViT-B/32": "open_clip:ViT-B-32/openai",
    "open_clip:ViT-B-33/openai": "open_clip:ViT-B-32/openai",
    "openclip:ViT-L-14/openai": "open_clip:ViT-L-14/openai",
    "hf:ViT-B-32": "open_clip:ViT-B-32/openai",
    "open_clip:hf-hub:timm/ViT-B-16-SigLIP": "hf-hub:timm/ViT-B-16-SigLIP",
    "hf:hf-hub:timm/ViT-B-16-SigLIP": "hf-hub:timm/ViT-B-16-SigLIP",
    "open_clip:local-dir:models/mine": "models/mine",
    "local-dir:/models/mine": "/models/mine",
    "facebook/metaclip-b32-400m": "hf:facebook/metaclip-b32-400m",
    "timm/ViT-B-16-SigLIP-of-mine": "hf-hub:timm/ViT-B-16-SigLIP-of-mine",
    "openai/clip-vit-base-patch32": "hf:openai/clip-vit-base-patch32",
    "hf:clip-vit-base-patch32": "hf:openai/clip-vit-base-patch32",
    "https://huggingface.co/openai/clip-vit-base-patch32": "hf:openai/clip-vit-base-patch32",
    "embeded": "embedded",
}


@pytest.mark.parametrize("name", SLIPS)
def test_slips_are_answered_with_the_spelling_that_works(name):
    for function in (load_encoder, describe_model):
        with pytest.raises(EncoderError) as caught:
            function(name)
        message, meant = str(caught.value), repr(SLIPS[name])
        assert f"did you mean {meant}" in message or f" or {meant}?" in message


def test_slips_in_names_of_the_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EncoderError, match="did you mean 'hf:openai/clip-vit-base-patch32'"):
        load_encoder("hf:openai/clip-vit-base-patch23")


def test_a_tag_comes_before_a_folder_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "openai").mkdir()
    monkeypatch.chdir(tmp_path)
    assert describe_model("open_clip:ViT-B-32/openai").summary == "ViT-B-32, weights openai"


def test_directory_that_is_no_model(tmp_path):
    with pytest.raises(EncoderError, match=r"neither config\.json"):
        load_encoder(tmp_path)


def test_other_objects_are_refused():
    for thing in (3, None, torch.nn.Linear(2, 2)):
        with pytest.raises(EncoderError, match="cannot make an encoder of"):
            load_encoder(thing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype"),
        ({"dtype": "nonsense"}, "dtype .*'float64' or 'auto'.* 'nonsense'"),
        ({"device": "nonsense"}, "device 'nonsense'"),
        ({"device": "cuda:99"}, "device 'cuda:99'"),
        ({"scale": float("nan")}, "scale"),
    ],
)
def test_bad_options(saved, options, message):
    with pytest.raises(EncoderError, match=message):
        load_encoder(saved("clip"), **options)


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [("cuda:99", None, r"device 'cuda:99'.*such as 'cpu'"), (None, "int8", "dtype should be")],
)
def test_a_device_that_is_not_there_is_no_moved_encoder(saved, device, dtype, message):
    """Of the encoder of a saved model, it was said to name its folder."""
    with pytest.raises(EncoderError, match=message) as caught:
        EncoderSlot(saved("clip"), device, dtype, saved=True).get()
    assert "--encoder" not in str(caught.value)
    assert EncoderSlot(saved("clip"), dtype="auto", saved=True).get()
    with pytest.raises(EncoderError, match=r"there is no such directory.*--encoder"):
        EncoderSlot("./gone", saved=True).get()


def test_checkpoint_file_of_open_clip(saved, tmp_path):
    """`open_clip:MODEL/PATH` takes a file or a directory; a file of another model is refused."""
    wrong = weights_file(saved("open_clip"))
    for place in (wrong, wrong.parent):
        with pytest.raises(EncoderError, match="open_clip cannot load"):
            load_encoder(f"open_clip:ViT-S-32-alt/{place}")


def test_binary_checkpoint_is_read(copied):
    folder = copied("clip")
    path = weights_file(folder)
    torch.save(load_file(path), folder / "pytorch_model.bin")
    expected = load_encoder(folder).fingerprint
    path.unlink()
    assert load_encoder(folder).fingerprint == expected


def test_fingerprint_follows_preprocessing_and_tokenizer(copied):
    folder = copied("clip")
    original = load_encoder(folder).fingerprint
    path = folder / "preprocessor_config.json"
    text = path.read_text()
    path.write_text(text.replace("0.4", "0.45"))
    assert load_encoder(folder).fingerprint != original
    path.write_text(text)
    assert load_encoder(folder).fingerprint == original
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"dog"', '"dig"'))
    assert load_encoder(folder).fingerprint != original


@pytest.mark.parametrize("name", ["clip", "siglip", "align", "blip", "open_clip"])
def test_directories_are_described_without_loading(saved, loaded, name):
    info, encoder = describe_model(str(saved(name))), loaded(name)
    assert (info.dim, info.family, info.local) == (encoder.dim, encoder.family, True)
    assert info.parameters == pytest.approx(encoder.parameter_count, rel=0.02)


def test_a_model_of_open_clip_that_no_factory_has_made(tmp_path):
    """Its images are prepared as CLIP's, and it can be saved; a transform of the user's own goes before."""
    import open_clip
    from PIL import Image

    from rada.encoders.transforms import EvalTransform

    settings = {key: value for key, value in OPEN_CLIP["open_clip"].items() if key != "custom_text"}
    model = open_clip.CLIP(**settings).eval()
    assert not hasattr(model.visual, "preprocess_cfg")
    tokenizer = open_clip.get_tokenizer(
        "ViT-B-32", context_length=settings["text_cfg"]["context_length"]
    )
    encoder = load_encoder(model, tokenizer=tokenizer)
    image = Image.new("RGB", (50, 40), (200, 30, 90))
    pixels = encoder.preprocess(image)
    wanted = (torch.tensor([200, 30, 90]) / 255 - torch.tensor(open_clip.OPENAI_DATASET_MEAN)) / (
        torch.tensor(open_clip.OPENAI_DATASET_STD)
    )
    torch.testing.assert_close(pixels[:, 5, 5], wanted, atol=1e-5, rtol=0)
    own = EvalTransform(
        resize=pixels.shape[-1], size=pixels.shape[1:], mean=(0.0,) * 3, std=(1.0,) * 3
    )
    assert load_encoder(model, tokenizer=tokenizer, processor=own).preprocess is own
