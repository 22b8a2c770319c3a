"""Everything that open_clip can build: ViT, ResNet, ConvNeXt, CoCa, SigLIP, MobileCLIP, EVA."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rada.core.errors import EncoderError, one_line
from rada.core.extras import needed_for
from rada.encoders.attention import Part, has_projections
from rada.encoders.families._headers import count_parameters
from rada.encoders.families._open_clip_files import (
    checkpoint,
    directory_checkpoint,
    is_local,
    tag_settings,
)
from rada.encoders.families._open_clip_text import (
    TextParts,
    embed_rows,
    read_places,
    stops_at_end_mark,
    tokenize_open_clip,
    tokenizer_state,
)
from rada.encoders.registry import EncoderFamily, LoadOptions, ModelInfo, register_family
from rada.encoders.spec import ModelSpec
from rada.encoders.suggest import did_you_mean
from rada.encoders.tokens import Tokens
from rada.encoders.transforms import TrainTransform, height_width

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["OpenClipEncoder"]


@dataclass(frozen=True)
class OpenClipTransform:
    """open_clip's own evaluation transform, from the settings that the checkpoint came with.

    Attributes:
        settings: The fields of open_clip's `PreprocessCfg` as sorted JSON.
    """

    settings: str

    @cached_property
    def _transform(self) -> Any:
        with needed_for("a model of open_clip"):
            from open_clip.transform import PreprocessCfg, image_transform_v2

        return image_transform_v2(PreprocessCfg(**json.loads(self.settings)), is_train=False)

    @property
    def shorter_side(self) -> int:
        """What the shorter side is resized to, or more."""
        return max(height_width(json.loads(self.settings)["size"]))

    def __call__(self, image: Image) -> Tensor:
        """Turn a PIL image into float32 pixels `(3, H, W)`."""
        pixels: Tensor = self._transform(image.convert("RGB"))
        return pixels


@register_family
class OpenClipEncoder(EncoderFamily):
    """A model of open_clip."""

    family = "open_clip"
    spelling = "open_clip:MODEL/PRETRAINED, hf-hub:ORG/NAME or a directory"
    summary = "everything open_clip can build"
    capabilities = frozenset(
        {
            "image_gradients",
            "text_gradients",
            "learned_scale",
            "logit_bias",
            "token_embeddings",
            "deep_text_prompts",
            "deep_image_prompts",
            "residual_branches",
            "text_attention",
            "image_attention",
            "image_projection",
            "save",
        }
    )
    conditional = frozenset(
        {
            "logit_bias",
            "deep_text_prompts",
            "deep_image_prompts",
            "residual_branches",
            "text_attention",
            "image_attention",
            "image_projection",
            "save",
        }
    )
    model: Any

    def __init__(
        self, model: Any, tokenizer: Any, *, config: dict[str, Any] | None, **options: Any
    ) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.settings = _preprocessing(model)
        settings = self.settings
        preprocess = options.pop("preprocess", None)
        size = height_width(settings["size"])
        mean, std = tuple(settings["mean"]), tuple(settings["std"])
        super().__init__(
            model,
            dim=_width(model, config),
            preprocess=preprocess or OpenClipTransform(json.dumps(settings, sort_keys=True)),
            train_transform=TrainTransform(size, mean, std, interpolation="bicubic"),
            **options,
        )
        self.capabilities = frozenset(self._offers())

    def _offers(self) -> Iterator[str]:
        """Yield what this architecture can do."""
        yield from ("image_gradients", "text_gradients", "learned_scale", "token_embeddings")
        if self.model.logit_bias is not None:
            yield "logit_bias"
        if self.text_layers():
            yield "deep_text_prompts"
        if self.image_layers():
            yield "deep_image_prompts"
        if self.attention_layers("text") and self.attention_layers("image"):
            yield "residual_branches"
        if has_projections(self.attention_layers("text")):
            yield "text_attention"
        if has_projections(self.attention_layers("image")):
            yield "image_attention"
        if _projection_slot(self.model.visual) is not None:
            yield "image_projection"
        if self.config is not None:
            yield "save"

    @classmethod
    def claims(cls, spec: ModelSpec) -> bool:
        """Claim open_clip's spellings and directories."""
        return spec.scheme in ("open_clip", "hf-hub")

    @classmethod
    def load(cls, spec: ModelSpec, options: LoadOptions) -> OpenClipEncoder:
        """Load architecture, weights, preprocessing and tokenizer."""
        if spec.scheme == "hf-hub":
            return _load_directory(cls, spec, options)
        name, _, pretrained = spec.target.partition("/")
        config = _architecture(name, spec)
        path, overrides = checkpoint(name, pretrained)
        if overrides.get("force_quick_gelu"):
            config["quick_gelu"] = True  # the tag's word, which `save` must pass on
        model = _create(name, pretrained=str(path), spec=spec, **overrides)
        tokenizer = _tokenizer(name, spec)
        return cls(model, tokenizer, config=config, name=spec.text, scale=options.scale)

    @classmethod
    def claims_object(cls, model: object) -> bool:
        """Claim open_clip's three classes of models."""
        kinds = ("CLIP", "CustomTextCLIP", "CoCa")
        module = type(model).__module__
        return module.startswith("open_clip") and type(model).__name__ in kinds

    @classmethod
    def wrap(cls, model: Any, options: LoadOptions) -> OpenClipEncoder:
        """Wrap a built model with its tokenizer and, if it is not the usual, its transform."""
        if options.tokenizer is None:
            raise EncoderError(
                "a built open_clip model needs its tokenizer: "
                "give tokenizer=open_clip.get_tokenizer(...)"
            )
        return cls(
            model,
            options.tokenizer,
            config=None,
            name=options.name or f"open_clip {type(model).__name__}",
            scale=options.scale,
            preprocess=options.processor,
        )

    @classmethod
    def known_models(cls) -> list[ModelInfo]:
        """Return all pairs of architecture and weights that open_clip knows."""
        with needed_for("a model of open_clip"):
            import open_clip

        parts = tuple(sorted(cls.capabilities))
        return [
            ModelInfo(
                f"open_clip:{name}/{tag}",
                cls.family,
                *_profile(name),
                is_local(name, tag),
                parts,
                f"{name}, weights {tag}",
            )
            for name, tag in open_clip.list_pretrained()
        ]

    @classmethod
    def describe(cls, spec: ModelSpec) -> ModelInfo:
        """Describe a directory from its configuration, a name from open_clip's tables."""
        parts = tuple(sorted(cls.capabilities))
        if spec.directory is not None:
            dim = int(_read_config(spec.directory)["model_cfg"]["embed_dim"])
            count = count_parameters(spec.directory)
            return ModelInfo(spec.text, cls.family, dim, count, True, parts, cls.summary)
        if spec.scheme == "hf-hub":
            return super().describe(spec)
        name, _, pretrained = spec.target.partition("/")
        _architecture(name, spec)
        if tag_settings(name, pretrained) is None:
            return ModelInfo(spec.text, cls.family, *_profile(name), True, parts, cls.summary)
        return super().describe(spec)

    @property
    def image_module(self) -> nn.Module:
        """The image encoder."""
        found: nn.Module = self.model.visual
        return found

    @cached_property
    def text_module(self) -> nn.Module:
        """The text encoder, which plain CLIP keeps in pieces."""
        text = getattr(self.model, "text", None)
        return text if isinstance(text, nn.Module) else TextParts(self.model)

    @cached_property
    def _stops_at_end_mark(self) -> bool:
        return stops_at_end_mark(self.model)

    def image_embeddings(self, pixels: Tensor) -> Tensor:
        """Embed pixels by `encode_image`."""
        embeddings: Tensor = self.model.encode_image(pixels, normalize=False)
        return embeddings

    def text_embeddings(self, tokens: Tokens) -> Tensor:
        """Embed tokens as `encode_text` does, which wants rows of full length."""
        if self._stops_at_end_mark:
            return embed_rows(self.model, tokens["input_ids"])
        embeddings: Tensor = self.model.encode_text(tokens["input_ids"], normalize=False)
        return embeddings

    def learned_scale(self) -> Tensor | None:
        """The exponential of the learned logarithm."""
        scale: Tensor = self.model.logit_scale.exp()
        return scale

    def learned_bias(self) -> Tensor | None:
        """The bias of SigLIP's models."""
        bias: Tensor | None = self.model.logit_bias
        return bias

    def scale_parameters(self) -> list[nn.Parameter]:
        """The logarithm of the scale, and the bias if there is one."""
        found = (self.model.logit_scale, self.model.logit_bias)
        return [parameter for parameter in found if parameter is not None]

    def token_embedding_module(self) -> nn.Module:
        """The layer of plain CLIP, of its text transformer, or of a transformers encoder."""
        encoder: Any = self.text_module
        if hasattr(encoder, "token_embedding"):
            found: nn.Module = encoder.token_embedding
        else:
            found = encoder.transformer.get_input_embeddings()
        return found

    def text_layers(self) -> list[nn.Module]:
        """Blocks of the text transformer."""
        from rada.encoders.families._transformers import transformer_layers

        encoder: Any = self.text_module
        blocks = getattr(encoder.transformer, "resblocks", None)
        if blocks is None:
            return transformer_layers(encoder.transformer)
        return list(blocks) if encoder.transformer.batch_first else []

    def image_layers(self) -> list[nn.Module]:
        """Blocks of a vision transformer that reads its result from the class token."""
        with needed_for("a model of open_clip"):
            from open_clip.transformer import VisionTransformer

        visual = self.model.visual
        if not isinstance(visual, VisionTransformer) or not visual.transformer.batch_first:
            return []
        reads_class_token = visual.pool_type == "tok" and visual.attn_pool is None
        return list(visual.transformer.resblocks) if reads_class_token else []

    def image_token_norm(self) -> nn.Module:
        """The norm before the blocks of a vision transformer."""
        found: nn.Module = getattr(self.model.visual, "ln_pre", None) or nn.Identity()
        return found

    def image_output_norm(self) -> nn.Module:
        """The norm behind the blocks of a vision transformer."""
        found: nn.Module = getattr(self.model.visual, "ln_post", None) or nn.Identity()
        return found

    def attention_layers(self, part: Part) -> list[nn.Module]:
        """Blocks of the text transformer, of a vision transformer, or of a network of timm."""
        encoder: Any = self.text_module if part == "text" else self.model.visual
        blocks = getattr(getattr(encoder, "transformer", None), "resblocks", None)
        if blocks is None:
            blocks = getattr(getattr(encoder, "trunk", None), "blocks", None)
        return super().attention_layers(part) if blocks is None else list(blocks)

    def image_projection_slot(self) -> tuple[nn.Module, str]:
        """The projection of a vision transformer, a ResNet or a network of timm."""
        found = _projection_slot(self.model.visual)
        if found is None:
            raise EncoderError(f"the image encoder of {self.name!r} ends in no linear projection")
        return found

    @property
    def context_start(self) -> int:
        """1 where the tokenizer sets a start mark, otherwise 0."""
        inner = getattr(self.tokenizer, "tokenizer", None)
        if inner is None:
            return 1
        marks = {inner.bos_token_id, inner.cls_token_id}
        return int(int(self.tokenizer(["a"])[0, 0]) in marks)

    @property
    def max_tokens(self) -> int:
        """The length of the tokenizer's rows."""
        return int(self.tokenizer.context_length)

    def tokenize_checked(self, prompts: list[str]) -> tuple[Tokens, list[int]]:
        """Tokenize with the model's own tokenizer; rows end with the longest prompt where that is exact."""
        tokens, cut = tokenize_open_clip(self.tokenizer, prompts)
        if self._stops_at_end_mark:
            ends = (
                tokens["attention_mask"].sum(1),
                read_places(self.model, tokens["input_ids"]) + 1,
            )
            width = max(int(end.max()) for end in ends)
            tokens = {name: rows[:, :width] for name, rows in tokens.items()}
        return tokens, cut

    def tokenizer_key(self) -> str:
        """Return the tokenizer's vocabulary and settings."""
        return tokenizer_state(self.tokenizer)

    def write(self, directory: Path) -> None:
        """Write what `local-dir:` and `hf-hub:` of open_clip read."""
        from safetensors.torch import save_model

        config = {"model_cfg": self.config, "preprocess_cfg": self.settings}
        save_model(self.model, str(directory / "open_clip_model.safetensors"))
        if hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(str(directory))
        (directory / "open_clip_config.json").write_text(json.dumps(config, indent=2))


def _preprocessing(model: Any) -> dict[str, Any]:
    """Return the settings of the images; those of CLIP for a model that no factory of open_clip has made."""
    found = getattr(model.visual, "preprocess_cfg", None)
    if found is not None:
        return dict(found)
    with needed_for("a model of open_clip"):
        from open_clip.transform import PreprocessCfg

    return dataclasses.asdict(PreprocessCfg(size=model.visual.image_size))


def _projection_slot(visual: Any) -> tuple[nn.Module, str] | None:
    """Return where open_clip keeps the linear projection of images; None where there is none."""
    places = (
        (visual, "proj", nn.Parameter),  # a vision transformer
        (getattr(visual, "attnpool", None), "c_proj", nn.Linear),  # a ResNet
        (getattr(visual, "head", None), "proj", nn.Linear),  # a network of timm
    )
    for owner, name, kind in places:
        if isinstance(owner, nn.Module) and isinstance(getattr(owner, name, None), kind):
            return owner, name
    return None


def _architecture(name: str, spec: ModelSpec) -> dict[str, Any]:
    """Return the configuration of one of open_clip's architectures."""
    with needed_for("a model of open_clip"):
        import open_clip

    config: dict[str, Any] | None = open_clip.get_model_config(name)
    if config is None:
        raise EncoderError(
            f"open_clip has no architecture {name!r}; {did_you_mean(spec.text)} `rada models` lists those "
            "with weights, open_clip.list_models() all"
        )
    return config


def _width(model: Any, config: dict[str, Any] | None) -> int:
    """Return the width of the features, asking the encoder where no configuration is at hand."""
    if config is not None:
        return int(config["embed_dim"])
    import torch

    with torch.no_grad():
        ids = torch.ones(1, int(model.context_length), dtype=torch.long)
        device = model.logit_scale.device
        return int(model.encode_text(ids.to(device)).shape[-1])


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keep open_clip's log lines about missing weights back; rada raises instead."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)


def _create(name: str, *, spec: ModelSpec, **options: Any) -> Any:
    with needed_for("a model of open_clip"):
        import open_clip

    with _silenced():
        try:
            model = open_clip.create_model(
                name, require_pretrained=True, weights_only=True, **options
            )
        except Exception as error:
            raise EncoderError(f"open_clip cannot load {spec.text!r}: {one_line(error)}") from error
    return model.eval()


def _tokenizer(name: str, spec: ModelSpec) -> Any:
    with needed_for("a model of open_clip"):
        import open_clip

    with _silenced():
        try:
            return open_clip.get_tokenizer(name)
        except Exception as error:
            raise EncoderError(
                f"the tokenizer of {spec.text!r} is not on this machine and cannot be fetched: "
                f"{one_line(error)}"
            ) from error


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "open_clip_config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
        int(config["model_cfg"]["embed_dim"])
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise EncoderError(f"{str(path)!r} is no configuration of open_clip: {error!r}") from error
    found: dict[str, Any] = config
    return found


def _load_directory(
    family: type[OpenClipEncoder], spec: ModelSpec, options: LoadOptions
) -> OpenClipEncoder:
    from rada.encoders.hub import open_clip_snapshot

    directory = spec.directory or open_clip_snapshot(spec.target)
    config = copy.deepcopy(_read_config(directory)["model_cfg"])
    directory_checkpoint(directory)
    name = f"local-dir:{directory}"
    model = _create(name, spec=spec)
    return family(model, _tokenizer(name, spec), config=config, name=spec.text, scale=options.scale)


@cache
def _profiles() -> dict[str, list[int | None]]:
    """Read the width and size of open_clip's architectures (benchmarks/profile_open_clip.py)."""
    text = (Path(__file__).parent / "open_clip_models.json").read_text("utf-8")
    found: dict[str, list[int | None]] = json.loads(text)
    return found


def _profile(name: str) -> tuple[int | None, int | None]:
    dim, parameters = _profiles().get(name, (None, None))
    return dim, parameters
