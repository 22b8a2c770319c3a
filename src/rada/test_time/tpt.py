"""TPT: a prompt that adapts to each image from its confident views."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from rada.core.errors import ConfigError
from rada.core.progress import track
from rada.features import ClassSet
from rada.methods import AdaptedModel, list_methods
from rada.methods.prompts import PromptModel, PromptTexts, context_vectors
from rada.test_time.base import TestTimeMethod, ViewPredictor, check_views
from rada.test_time.config import ViewConfig
from rada.test_time.registry import register_test_time_method
from rada.test_time.selection import entropy, keep_confident, mean_log_probability, view_entropies

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["TPT", "TPTConfig", "prompt_methods", "tpt_logits"]

WORDS = "a photo of a"
"""The context at zero-shot, unless the configuration or a template says another one."""


@dataclass(frozen=True)
class TPTConfig(ViewConfig):
    """Configuration of TPT, with the published values.

    Attributes:
        steps: AdamW steps on an image.
        learning_rate: Its rate.
        weight_decay: Its decay.
        context: Words before the class name, whose token vectors are learned, where the start is
            zero-shot; None for those of the chosen template, or "a photo of a". A model with learned
            prompts has its own.
    """

    steps: int = 1
    learning_rate: float = 5e-3
    weight_decay: float = 0.01
    context: str | None = None

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(self.steps >= 1, "steps", "a positive integer")
        self.require(self.learning_rate > 0, "learning_rate", "above 0")
        self.require(self.weight_decay >= 0, "weight_decay", "0 or more")
        self.require(
            self.context is None or bool(self.context.strip()), "context", "at least one word"
        )


@dataclass(frozen=True)
class TPT(TestTimeMethod):
    """Learns the token vectors of the context, anew for every image.

    Starts from zero-shot, or from the prompts of a method that learned them ("CoOp + TPT"). Of CoCoOp, whose
    prompts every image moves, it goes on from those of the original view.
    """

    config: ClassVar[type[ViewConfig]] = TPTConfig

    def check(self, model: AdaptedModel) -> None:
        """Check that the model is zero-shot or has prompts that predict by themselves."""
        if model.method.learns and not _has_prompts(type(model)):
            raise ConfigError(
                f"{self.title} goes on from zero-shot or from learned prompts that predict by themselves "
                f"({', '.join(prompt_methods())}), not from {model.method.title}: what that learned would "
                "be lost; take one of these, or another test-time method"
            )
        super().check(model)

    def from_templates(self, config: TPTConfig, templates: Sequence[str] | None) -> TPTConfig:
        """Return the configuration with the words in front of the class name, if those are all."""
        if config.context is not None:
            return config
        words = WORDS if templates is None else _words_of(templates)
        if words is None:
            raise ConfigError(
                f"{self.title} learns the words in front of the class name, so it starts from one template "
                f"that ends with it, as '{WORDS} {{}}.', and not from {list(templates or ())}: leave the "
                "templates out, or name the words themselves (--test-time-set context=WORDS, "
                "TPTConfig(context=...))"
            )
        return dataclasses.replace(config, context=words)

    def predictor(
        self,
        model: AdaptedModel,
        classes: ClassSet,
        config: TPTConfig,
        *,
        batch_size: int | None = None,
        progress: bool | None = False,
    ) -> ViewPredictor:
        """Return what adapts to one image at a time."""
        share, temperature = 1.0, 1.0
        contexts: Callable[[Tensor], Tensor]
        if isinstance(model, PromptModel):
            if config.context is not None:
                raise ConfigError(
                    f"the context {config.context!r} is that of TPT from zero-shot: {model.method.title} has "
                    "its own, so leave it out"
                )
            texts, contexts = model.texts(classes), model.contexts
            share = model.strength.for_classes(classes.names)
            temperature = model.strength.temperature_for(classes.names)
        else:
            assert model.encoder is not None  # `check` has seen to it
            texts, contexts = _from_words(model.encoder, classes.names, config)

        def mixed(images: Tensor, adapted: Tensor) -> Tensor:
            if share < 1:
                zero_shot = model.zero_shot_logits(images, classes)
                adapted = zero_shot + share * (adapted - zero_shot)
            return adapted / temperature

        return _Adapter(texts, contexts, model.facts.scale, config, mixed, progress).predict


def _words_of(templates: Sequence[str]) -> str | None:
    """Return the words in front of the class name; None where a template has more, or there are several.

    The full stop behind the name is TPT's own.

    Example:
        >>> _words_of(["a sketch of a {}."]), _words_of(["a {} in a box"]), _words_of(["{}"])
        ('a sketch of a', None, None)
    """
    words, name, behind = templates[0].partition("{}")
    alone = len(templates) == 1 and name + behind.strip() in ("{}", "{}.")
    return words.strip() or None if alone else None


def prompt_methods() -> tuple[str, ...]:
    """Return the names of the methods from whose prompts TPT can go on.

    Example:
        >>> prompt_methods()[:2]
        ('coop', 'cocoop')
    """
    return tuple(method.name for method in list_methods() if _has_prompts(method.model))


def _has_prompts(kind: object) -> bool:
    """Whether a model is zero-shot with a context, its own or an image's, and no more."""
    if not (isinstance(kind, type) and issubclass(kind, PromptModel)):
        return False
    usual = kind.prepare is PromptModel.prepare and kind.score is PromptModel.score
    own = kind.contexts is not PromptModel.contexts
    # A score that was written without knowing of these contexts has more to say than they do.
    return usual or (own and issubclass(_origin(kind, "contexts"), _origin(kind, "score")))


def _origin(kind: type, name: str) -> type:
    """Return the class that a method of a class is written in."""
    return next(one for one in kind.__mro__ if name in vars(one))


def tpt_logits(
    encoder: DualEncoder,
    classes: Sequence[str],
    view_features: Any,
    config: TPTConfig | None = None,
    *,
    progress: bool | None = False,
) -> Tensor:
    """Adapt a text prompt to each image, from zero-shot (TPT, Shu et al., NeurIPS 2022).

    The token vectors of `context` are learned, anew for every image, on the same kept views and
    with the same loss, steps and optimiser as the head. One image at a time: each step runs the
    text encoder on all classes, 64 at once.

    Args:
        encoder: An encoder with the capability `token_embeddings`.
        classes: K class names.
        view_features: Unit-norm `(N, V, D)` of this encoder.
        config: `selection`, the optimiser's values and the context are used.
        progress: Show a bar; None shows it on a terminal only.

    Returns:
        Logits `(N, K)` of the original views.

    Raises:
        EncoderError: If the encoder has no token embeddings.
    """
    config = config or TPTConfig()
    texts, contexts = _from_words(encoder, classes, config)
    adapter = _Adapter(texts, contexts, encoder.scale, config, lambda _, logits: logits, progress)
    return adapter.predict(view_features)


def _from_words(
    encoder: DualEncoder, names: Sequence[str], config: TPTConfig
) -> tuple[PromptTexts, Callable[[Tensor], Tensor]]:
    """Return the class names behind the words of a configuration, and these words' token vectors."""
    encoder.require("token_embeddings")
    context = context_vectors(encoder, config.context or WORDS)
    return PromptTexts(encoder, names, len(context)), lambda _: context


@dataclass(frozen=True)
class _Adapter:
    """What adapts a context to each image.

    Attributes:
        texts: Turns a context `(n, E)` into class features `(K, D)`.
        contexts: Turns original views `(B, D)` into what they start from, `(n, E)` or `(B, n, E)`.
        scale: The exponentiated logit scale.
        config: How to adapt.
        mixed: Turns images `(m, D)` and logits by the prompt `(m, K)` into the model's logits.
        progress: Show a bar.
    """

    texts: PromptTexts
    contexts: Callable[[Tensor], Tensor]
    scale: float
    config: TPTConfig
    mixed: Callable[[Tensor, Tensor], Tensor]
    progress: bool | None

    def predict(self, view_features: Any) -> Tensor:
        """Return logits `(N, K)` of views `(N, V, D)`, one image after the other."""
        views = check_views(view_features, self.texts.encoder.dim)
        count = self.config.kept(views.shape[1])
        start: tuple[Tensor, Tensor] | None = None
        shared = False  # whether every image starts from the same context
        answers = []
        for image in track(views, "TPT", enabled=self.progress, unit="images"):
            if start is None or not shared:
                with torch.no_grad():
                    found = self.contexts(image[:1])
                    shared = found.ndim == 2
                    context = found.reshape(found.shape[-2:])
                    start = context, self.texts(context).to(image)
            answers.append(self._answer(image, *start, count))
        return torch.stack(answers)

    def _answer(self, image: Tensor, start: Tensor, text: Tensor, count: int) -> Tensor:
        """Return logits `(K,)` of one image from its views `(V, D)`, by a context that adapts to them."""
        # In float64: rounding must not choose other views for another batch.
        before = self.mixed(image, self.scale * image.double() @ text.double().T)
        kept = image[keep_confident(view_entropies(before)[None], count)[0]]
        context = start.detach().clone().requires_grad_(True)
        optimizer = torch.optim.AdamW(
            [context], lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        for _ in range(self.config.steps):
            logits = self.mixed(kept, self.scale * kept @ self.texts(context).to(kept).T)
            optimizer.zero_grad()
            entropy(mean_log_probability(logits)).backward(inputs=[context])
            optimizer.step()
        with torch.no_grad():
            logits = self.scale * image[:1] @ self.texts(context).to(image).T
            return self.mixed(image[:1], logits)[0]


register_test_time_method(
    TPT(
        "tpt",
        "TPT",
        "Shu et al., Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models, "
        "NeurIPS 2022",
        needs=frozenset({"token_embeddings"}),
    )
)
