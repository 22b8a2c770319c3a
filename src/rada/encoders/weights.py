"""The weights of an encoder: which of them train, how they are saved, how they are identified."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Literal

from torch import nn

from rada.core.errors import EncoderError
from rada.core.warn import warn
from rada.encoders.fingerprint import digest, module_digest, weights_version
from rada.encoders.protocol import EncoderProtocol
from rada.encoders.structure import describe_module

__all__ = ["Weights", "Which"]

Which = Literal["both", "image", "text"]


class Weights(EncoderProtocol):
    """Freezes, saves and identifies what an encoder has learned."""

    _fingerprint: tuple[object, tuple[str, str]] | None = None

    def freeze(self, which: Which = "both") -> None:
        """Turn gradients off for one encoder, or for everything, and go to evaluation mode."""
        for parameter in self._parameters(which):
            parameter.requires_grad_(False)
        for module in self._modules(which):
            module.eval()

    def unfreeze(self, which: Which = "both") -> None:
        """Turn gradients on for one encoder, or for everything; the mode stays.

        Raises:
            EncoderError: If the family has no gradients there.
        """
        for part in ("image", "text") if which == "both" else (which,):
            self.require(f"{part}_gradients")
        for parameter in self._parameters(which):
            parameter.requires_grad_(True)

    def trainable_parameters(self, which: Which = "both") -> list[nn.Parameter]:
        """Return the parameters that take gradients; "both" includes those of the scale."""
        return [parameter for parameter in self._parameters(which) if parameter.requires_grad]

    def save(self, directory: str | Path) -> None:
        """Write the model in its own library's format.

        Raises:
            EncoderError: If the family does not offer `save`.
            OutputError: If the folder holds what rada did not write, or another process writes to it.
            StorageError: If the place cannot be written.
        """
        self.require("save")
        from rada.core.output import claim

        with claim(directory, "encoder") as out, out.saving() as stage:
            self.write(stage)

    def write(self, directory: Path) -> None:
        """Family's part of `save`; the folder exists and is empty."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """A hash of weights, architecture, preprocessing and tokenizer, the same in every process.

        It is computed once and again only after the weights have changed.
        """
        return self._fingerprints()[0]

    def has_fingerprint(self, other: str) -> bool:
        """Whether a fingerprint that was saved with a head or with features is this encoder's.

        Fingerprints of rada 0.1.0 left the architecture out. Such a one is accepted, with a warning,
        where everything that it covers is the same.
        """
        now, before = self._fingerprints()
        if other != before:
            return other == now
        warn(
            f"the fingerprint {other} was saved by an earlier rada, which left the architecture out: "
            f"weights, preprocessing and tokenizer of {self.name!r} are the same, but the activation, the "
            "number of heads and other settings cannot be compared. If the model is certainly the same, "
            "save the head or the features again to renew the fingerprint; otherwise fit or encode again. "
            "(An open_clip model with QuickGELU, such as every /openai tag, that an earlier rada finetune "
            "or encoder.save wrote loads with another activation: tune it again.)",
            stacklevel=3,
        )
        return True

    def _fingerprints(self) -> tuple[str, str]:
        """Return the fingerprint, and the one that rada 0.1.0 gave the same encoder."""
        version = self.version
        if self._fingerprint is None or self._fingerprint[0] != version:
            inside = () if self.inserts is None else (module_digest(self.inserts),)
            parts = (
                self.family,
                module_digest(self.model),
                *inside,
                self.transform_key("preprocess"),
                self._tokenizer_digest,
            )
            both = digest(*parts, digest(self.architecture_key())), digest(*parts)
            self._fingerprint = (version, both)
        return self._fingerprint[1]

    @property
    def version(self) -> object:
        """What changes when the weights do, or what a method put into the encoder; cheap to read."""
        found = weights_version(self.model)
        return found if self.inserts is None else (found, weights_version(self.inserts))

    def architecture_key(self) -> str:
        """Return a text that changes with every setting that decides features beside the weights."""
        return describe_module(self.model)

    @cached_property
    def _tokenizer_digest(self) -> str:
        return digest(self.tokenizer_key())

    def transform_key(self, kind: Literal["preprocess", "train_transform"]) -> str:
        """Return a stable text that identifies a transform, for the keys of caches."""
        # Functions print their address, which differs between processes.
        return digest(re.sub(r" at 0x[0-9a-fA-F]+", "", repr(getattr(self, kind))))

    def _modules(self, which: Which) -> list[nn.Module]:
        if which not in ("both", "image", "text"):
            raise EncoderError(f"which should be 'both', 'image' or 'text', not {which!r}")
        encoders = {"image": self.image_module, "text": self.text_module, "both": self.model}
        return [encoders[which]]

    def _parameters(self, which: Which) -> list[nn.Parameter]:
        found = [p for module in self._modules(which) for p in module.parameters()]
        known = {id(parameter) for parameter in found}
        if which == "both":
            found += [p for p in self.scale_parameters() if id(p) not in known]
        return found
