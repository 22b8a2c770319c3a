"""The methods of full fine-tuning as methods of the benchmark: they learn from pictures."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from rada.core.config import Config
from rada.core.errors import ConfigError, DataError
from rada.methods.base import ClassSet, Examples, Method, Predictor, Task, UnknownClassError
from rada.methods.finetune import FFTMethod, get_fft_method, list_fft_methods
from rada.methods.finetune.config import FFTConfig
from rada.methods.registry import register_method
from rada.training.strength import StrengthChoice

if TYPE_CHECKING:
    from rada.encoders import DualEncoder
    from rada.methods.finetune.model import TunedModel

__all__ = ["FullFineTuning", "TunedPredictor"]


class TunedPredictor(Predictor):
    """A tuned encoder of its own, and what the method added to it."""

    def __init__(self, model: TunedModel) -> None:
        facts = {
            "config": model.config.to_dict(),
            "classes": list(model.classes),
            "templates": list(model.templates),
        }
        super().__init__(model.method.name, facts)
        self.model = model

    def prepare(self, classes: ClassSet) -> ClassSet:
        """Return the class set with the tuned model's own class features."""
        try:
            return replace(classes, text_features=self.model.candidates(classes.names).text)
        except DataError as error:
            raise UnknownClassError(str(error)) from error

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return logits of features of the tuned encoder."""
        candidates = self.model.candidates(classes.names)
        return self.model.logits(images, candidates._replace(text=classes.text_features))

    def predict(self, queries: Examples, classes: ClassSet, *, batch_size: int = 128) -> Tensor:
        """Return logits `(N, K)` of the pictures; features of the frozen encoder say nothing here.

        Raises:
            ConfigError: If there are features alone.
            UnknownClassError: If the method cannot score one of the classes.
        """
        from rada.features import extract_features

        if queries.pictures is None:
            raise ConfigError(f"{self.method} judges pictures, but there are features alone")
        self.eval()
        prepared = self.prepare(classes)
        features = extract_features(
            self.model.encoder, queries.pictures, cache=False, workers=0, progress=False
        )
        return self.score(features.plain(), prepared)


@dataclass(frozen=True)
class FullFineTuning(Method):
    """A method of `rada.methods.finetune`, on a copy of the task's encoder."""

    settings: ClassVar[type[Config]] = FFTConfig

    @property
    def inner(self) -> FFTMethod:
        """The method of fine-tuning."""
        return get_fft_method(self.name)

    def start(self, task: Task, config: FFTConfig) -> Predictor:
        """Return the zero-shot model, with an encoder of its own."""
        assert task.encoder is not None
        names, text = list(task.classes.names), task.classes.text_features
        templates = self.inner.templates(task.classes.templates)
        if templates != task.classes.templates:
            text = task.encoder.encode_classes(names, templates)
        model = self._model(task.encoder, config, names, templates, text, task.seed)
        return TunedPredictor(model)

    def build(self, facts: dict[str, Any], encoder: DualEncoder | None) -> Predictor:
        """Return a model of the right shapes."""
        if encoder is None:
            raise ConfigError(f"{self.name} needs the encoder that it tuned a copy of")
        names = list(map(str, facts["classes"]))
        text = torch.zeros(len(names), encoder.dim)
        config = FFTConfig.from_dict(facts["config"])
        templates = tuple(map(str, facts["templates"]))
        model = self._model(encoder, config, names, templates, text, 0)
        if "strength" in facts:
            model.strength = StrengthChoice(**facts["strength"])
            model.learned = tuple(map(str, facts["learned"]))
        predictor = TunedPredictor(model)
        predictor.facts = dict(facts)
        return predictor

    def _model(
        self,
        encoder: DualEncoder,
        config: FFTConfig,
        names: list[str],
        templates: tuple[str, ...],
        text: Tensor,
        seed: int,
    ) -> TunedModel:
        from rada.methods.finetune.model import TunedModel

        if encoder.family == "custom":
            raise ConfigError(
                "the benchmark tunes a copy of the encoder, and functions of your own cannot be copied: "
                "use rada.FineTuner"
            )
        own, resolved = copy.deepcopy(encoder), self.inner.resolve(config)
        return TunedModel(own, self.inner, resolved, names, templates, text, seed)

    def train(
        self,
        predictor: Predictor,
        task: Task,
        config: FFTConfig,
        *,
        state_path: Path | None,
        progress: bool | None,
    ) -> Predictor:
        """Train on the task's pictures."""
        from rada.methods.finetune.saving import strength_facts
        from rada.methods.finetune.tuner import FineTuner
        from rada.training.checkpoints import Checkpoints

        assert isinstance(predictor, TunedPredictor) and task.examples.pictures is not None
        pictures = replace(
            task.examples.pictures, classes=task.classes.names, labels=task.labels.numpy()
        )
        checkpoints = None
        if state_path is not None:
            run = {"task": task.fingerprint([self.name, config.to_dict()])}
            checkpoints = Checkpoints(state_path.with_suffix(""), run, config.keep_checkpoints)
            checkpoints.claim(overwrite=True)
        tuner = FineTuner(predictor.model.encoder, self.name, config, progress=progress)
        history = tuner.learn(predictor.model, pictures, task.seed, checkpoints=checkpoints)
        model = predictor.model
        found = strength_facts(model)
        predictor.record |= {"history": history, "effective": model.effective, **found}
        predictor.facts |= {"strength": model.strength.to_dict(), "learned": list(model.learned)}
        predictor.facts = json.loads(json.dumps(predictor.facts))
        return predictor


for _method in list_fft_methods():
    if _method.towers:  # the others learn from features, and have files of their own
        register_method(
            FullFineTuning(
                _method.name,
                _method.title,
                _method.source,
                needs=frozenset({"encoder", "pictures"}),
                open_set=not _method.has_vectors,
            )
        )
