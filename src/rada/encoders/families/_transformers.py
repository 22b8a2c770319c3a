"""What all families of transformers share: loading that refuses missing weights, one protocol."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from rada.core.errors import EncoderError, one_line
from rada.core.extras import needed_for
from rada.encoders.families._hf_text import slow_settings, tokenize, tokenizer_key
from rada.encoders.registry import EncoderFamily, LoadOptions, ModelInfo
from rada.encoders.spec import ModelSpec, model_type
from rada.encoders.tokens import Tokens

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["TransformersEncoder", "load_module", "quiet"]

TRAINABLE = frozenset({"image_gradients", "text_gradients", "text_attention", "save"})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' own bars and reports while the block runs; rada reports itself."""
    with needed_for("a model of transformers"):
        from huggingface_hub import utils
        from transformers.utils import logging as hf_logging

    reports: Any = hf_logging
    bars, level = reports.is_progress_bar_enabled(), reports.get_verbosity()
    hub: Any = utils
    hub_bars = not hub.are_progress_bars_disabled()
    hub.disable_progress_bars()
    reports.disable_progress_bar()
    reports.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        reports.set_verbosity(level)
        if bars:
            reports.enable_progress_bar()
        if hub_bars:
            hub.enable_progress_bars()


def load_module(cls: Any, directory: Path) -> Any:
    """Load a transformers model from files and refuse it unless every weight was there.

    Args:
        cls: The model's class.
        directory: With `config.json` and weights; nothing is downloaded, nothing is unpickled.

    Raises:
        EncoderError: Naming the weights that are missing or have the wrong shape, or the damage.
    """
    with quiet():
        try:
            model, report = cls.from_pretrained(
                directory,
                output_loading_info=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # so that they are reported, by name
                weights_only=True,
                dtype="float32",
            )
        except Exception as error:
            raise EncoderError(
                f"{cls.__name__} cannot be loaded from {str(directory)!r}: {one_line(error)}"
            ) from error
    _refuse_missing(cls.__name__, directory, report)
    return model.eval()


def _refuse_missing(name: str, directory: Path, report: dict[str, Any]) -> None:
    mismatched = [key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]]
    missing = sorted({*report["missing_keys"], *mismatched})
    if missing:
        shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if missing[8:] else "")
        raise EncoderError(
            f"{str(directory)!r} does not hold the weights of {name}: {shown} "
            f"{'are' if len(missing) > 1 else 'is'} missing or of another shape and would be random; "
            "choose a checkpoint of this architecture"
        )


class ProcessorTransform:
    """A checkpoint's own image processor, for one image.

    Args:
        processor: An image processor of transformers.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, image: Image) -> Tensor:
        """Turn a PIL image into float32 pixels `(3, H, W)`."""
        pixels: Tensor = self.processor(images=image.convert("RGB"), return_tensors="pt")[
            "pixel_values"
        ]
        return pixels[0].float()

    @property
    def shorter_side(self) -> int | None:
        """What the shorter side is resized to, or more; None where the processor does not say."""
        size = self.processor.to_dict().get("size")
        if not isinstance(size, dict) or not self.processor.to_dict().get("do_resize"):
            return None
        found = [size.get(key) for key in ("shortest_edge", "height", "width")]
        return max((int(side) for side in found if side), default=None)

    def __repr__(self) -> str:
        settings = json.dumps(self.processor.to_dict(), sort_keys=True, default=str)
        return f"{type(self).__name__}({settings})"


@dataclass(frozen=True)
class ProcessorTrainTransform:
    """A random crop and mirror image, then the processor's own normalisation.

    Attributes:
        preprocess: The evaluation transform, whose processor normalises.
        size: Height and width of the result.
        scale: Smallest and largest part of the image's area in a crop.
        flip: Probability of the mirror image.
    """

    preprocess: ProcessorTransform
    size: tuple[int, int]
    scale: tuple[float, float] = (0.5, 1.0)
    flip: float = 0.5

    @cached_property
    def _crop(self) -> Any:
        with needed_for("a model of transformers"):
            from torchvision import transforms

        bicubic = transforms.InterpolationMode.BICUBIC
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(self.size, scale=self.scale, interpolation=bicubic),
                transforms.RandomHorizontalFlip(self.flip),
            ]
        )

    def __call__(self, image: Image) -> Tensor:
        """Turn a PIL image into float32 pixels `(3, H, W)`."""
        batch = self.preprocess.processor(
            images=self._crop(image.convert("RGB")),
            do_resize=False,
            do_center_crop=False,
            return_tensors="pt",
        )
        pixels: Tensor = batch["pixel_values"]
        return pixels[0].float()


class TransformersEncoder(EncoderFamily):
    """A dual encoder of transformers whose model has `get_image_features` and `get_text_features`.

    Attributes:
        model_type: What `config.json` calls the architecture.
        model_class: Name of the class in transformers.
        padding: How the text encoder was trained: "longest" or "max_length".
        hub_models: Well-known names on the hub with width and number of parameters.
    """

    model_type: ClassVar[str] = ""
    model_class: ClassVar[str] = ""
    padding: ClassVar[str] = "longest"
    hub_models: ClassVar[dict[str, tuple[int, int | None]]] = {}
    spelling = "hf:ORG/NAME or a directory"
    model: Any

    def __init__(self, model: Any, image_processor: Any, tokenizer: Any, **options: Any) -> None:
        self.tokenizer = tokenizer
        preprocess = self.make_preprocess(image_processor)
        super().__init__(
            model,
            dim=self.read_dim(model.config.to_dict()),
            preprocess=preprocess,
            train_transform=self.make_train_transform(preprocess),
            **options,
        )

    # What some families change ---------------------------------------------------------------

    @classmethod
    def read_dim(cls, config: dict[str, Any]) -> int:
        """Read the width of the features from a configuration."""
        return int(config["projection_dim"])

    def make_preprocess(self, processor: Any) -> ProcessorTransform:
        """Wrap the processor."""
        return ProcessorTransform(processor)

    def make_train_transform(self, preprocess: ProcessorTransform) -> Any:
        """Make the random transform; its size is that of the processor's images."""
        from PIL import Image

        height, width = preprocess(Image.new("RGB", (64, 64))).shape[-2:]
        return ProcessorTrainTransform(preprocess, (height, width))

    def image_embeddings(self, pixels: Tensor) -> Tensor:
        """Embed pixels by the model's own image features."""
        embeddings: Tensor = self.model.get_image_features(pixel_values=pixels).pooler_output
        return embeddings

    def text_embeddings(self, tokens: Tokens) -> Tensor:
        """Embed tokens by the model's own text features."""
        embeddings: Tensor = self.model.get_text_features(**tokens).pooler_output
        return embeddings

    def learned_scale(self) -> Tensor | None:
        """The exponential of the learned logarithm."""
        scale: Tensor = self.model.logit_scale.exp()
        return scale

    def scale_parameters(self) -> list[nn.Parameter]:
        """The logarithm of the scale."""
        return [self.model.logit_scale]

    def image_parts(self) -> list[nn.Module]:
        """Modules of the image encoder, its projection included."""
        return [self.model.vision_model, self.model.visual_projection]

    def image_projection_slot(self) -> tuple[nn.Module, str]:
        """The projection of images."""
        return self.model, "visual_projection"

    def text_parts(self) -> list[nn.Module]:
        """Modules of the text encoder, its projection included."""
        return [self.model.text_model, self.model.text_projection]

    # The protocol ----------------------------------------------------------------------------

    @classmethod
    def claims(cls, spec: ModelSpec) -> bool:
        """Claim directories whose configuration is of this type."""
        if spec.scheme != "hf" or spec.directory is None:
            return False
        return model_type(spec.directory) == cls.model_type

    @classmethod
    def load(cls, spec: ModelSpec, options: LoadOptions) -> TransformersEncoder:
        """Load model, processor and tokenizer from a directory."""
        with needed_for("a model of transformers"):
            import transformers

        if spec.directory is None:  # the registry resolves names before it asks a family
            raise EncoderError(f"model {spec.text!r} is not on this machine")
        model = load_module(getattr(transformers, cls.model_class), spec.directory)
        image_processor, tokenizer = _load_processors(spec.directory)
        return cls(model, image_processor, tokenizer, name=spec.text, scale=options.scale)

    @classmethod
    def claims_object(cls, model: object) -> bool:
        """Claim built models of the family's class."""
        return type(model).__name__ == cls.model_class

    @classmethod
    def wrap(cls, model: Any, options: LoadOptions) -> TransformersEncoder:
        """Wrap a built model with its processor, or its image processor and tokenizer."""
        processor = options.processor
        image_processor = getattr(processor, "image_processor", processor)
        tokenizer = options.tokenizer or getattr(processor, "tokenizer", None)
        if image_processor is None or tokenizer is None:
            raise EncoderError(
                f"a built {cls.model_class} needs its processor: give processor=... (and "
                "tokenizer=... if the processor holds none)"
            )
        name = options.name or model.config._name_or_path or cls.model_class
        return cls(model, image_processor, tokenizer, name=name, scale=options.scale)

    @classmethod
    def known_models(cls) -> list[ModelInfo]:
        """Return the well-known names on the hub."""
        from rada.encoders.hub import cached_snapshot

        return [
            ModelInfo(
                f"hf:{name}",
                cls.family,
                dim,
                parameters,
                cached_snapshot(name) is not None,
                tuple(sorted(cls.capabilities)),
                cls.summary,
            )
            for name, (dim, parameters) in cls.hub_models.items()
        ]

    @classmethod
    def describe(cls, spec: ModelSpec) -> ModelInfo:
        """Describe the model in a directory from its configuration and the weights' headers."""
        from rada.encoders.families._headers import count_parameters

        if spec.directory is None:
            return super().describe(spec)
        try:
            dim = cls.read_dim(json.loads((spec.directory / "config.json").read_text("utf-8")))
        except (OSError, KeyError, TypeError, ValueError):
            dim = None
        count = count_parameters(spec.directory)
        parts = tuple(sorted(cls.capabilities))
        return ModelInfo(spec.text, cls.family, dim, count, count is not None, parts, cls.summary)

    @cached_property
    def image_module(self) -> nn.Module:
        """Encoder and projection."""
        return nn.ModuleList(self.image_parts())

    @cached_property
    def text_module(self) -> nn.Module:
        """Encoder and projection."""
        return nn.ModuleList(self.text_parts())

    def token_embedding_module(self) -> nn.Module:
        """The encoder's own layer."""
        text: Any = self.text_parts()[0]
        if not hasattr(text, "get_input_embeddings"):  # in transformers 5.0 CLIP's
            found: nn.Module = text.embeddings.token_embedding
            return found
        found = text.get_input_embeddings()
        return found

    def text_layers(self) -> list[nn.Module]:
        """Layers of the text encoder."""
        return transformer_layers(self.text_parts()[0])

    def image_layers(self) -> list[nn.Module]:
        """Layers of the image encoder."""
        return transformer_layers(self.image_parts()[0])

    def image_token_norm(self) -> nn.Module:
        """The norm of CLIP's image encoders, by the name that their code has; none elsewhere."""
        found: nn.Module = getattr(self.image_parts()[0], "pre_layrnorm", None) or nn.Identity()
        return found

    def image_output_norm(self) -> nn.Module:
        """The norm behind the layers of CLIP's kind of image encoders; none elsewhere."""
        found: nn.Module = getattr(self.image_parts()[0], "post_layernorm", None) or nn.Identity()
        return found

    @cached_property
    def context_start(self) -> int:
        """1 where the tokenizer sets a start mark, otherwise 0."""
        first = self.tokenizer("a")["input_ids"][0]
        marks = {self.tokenizer.bos_token_id, self.tokenizer.cls_token_id}
        return int(first in marks)

    @cached_property
    def max_tokens(self) -> int:
        """What both the encoder's positions and the tokenizer allow."""
        config = self.model.config.text_config
        limit = int(config.max_position_embeddings)
        if "roberta" in config.model_type or config.model_type == "altclip_text_model":
            limit -= int(config.pad_token_id) + 1  # positions start behind the padding's number
        return min(limit, int(self.tokenizer.model_max_length))

    def tokenize_checked(self, prompts: list[str]) -> tuple[Tokens, list[int]]:
        """Tokenize with the checkpoint's own tokenizer."""
        return tokenize(self.tokenizer, prompts, self.max_tokens, padding=self.padding)

    def tokenizer_key(self) -> str:
        """Return the tokenizer's own description."""
        return tokenizer_key(self.tokenizer, self.max_tokens)

    def architecture_key(self) -> str:
        """Return the configuration and, of a tokenizer in pure Python, its settings."""
        return super().architecture_key() + "".join(map(str, slow_settings(self.tokenizer)))

    def write(self, directory: Path) -> None:
        """Write model, processor and tokenizer by their own `save_pretrained`."""
        with quiet():
            self.model.save_pretrained(directory)
            self.preprocess.processor.save_pretrained(directory)  # type: ignore[attr-defined]
            self.tokenizer.save_pretrained(directory)


def transformer_layers(encoder: nn.Module) -> list[nn.Module]:
    """Return the layers of a transformer of transformers, wherever its class keeps them."""
    names = ("layers", "layer")
    for name, module in encoder.named_modules():
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in names:
            return list(module)
    return []


def _load_processors(directory: Path) -> tuple[Any, Any]:
    with needed_for("a model of transformers"):
        import transformers

    image_class: Any = transformers.AutoImageProcessor
    text_class: Any = transformers.AutoTokenizer
    with quiet():
        try:
            processor = image_class.from_pretrained(directory, local_files_only=True)
            tokenizer = text_class.from_pretrained(directory, local_files_only=True)
        except Exception as error:
            raise EncoderError(
                f"the image processor or the tokenizer cannot be loaded from {str(directory)!r}: "
                f"{one_line(error)}; the directory must hold preprocessor_config.json (or "
                "processor_config.json) and the tokenizer's files"
            ) from error
    return processor, tokenizer
