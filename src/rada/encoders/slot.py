"""An encoder that is loaded when it is first needed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch

from rada.core.errors import EncoderError, FeatureError
from rada.encoders.base import DualEncoder
from rada.encoders.loading import check_placing, load_encoder

__all__ = ["EncoderSlot"]


class EncoderSlot:
    """Loads the encoder when it is first asked for.

    Args:
        encoder: What `load_encoder` takes, or None for no encoder at all.
        device: Where it runs; the CPU when None.
        dtype: Type that it computes in.
        check: Called with the encoder whenever it is asked for, since weights may change; raises if it is not
            the right one.
        saved: Whether a saved model names the encoder, which may have been moved since.
        missing: What to say where an encoder is needed and there is none.
    """

    def __init__(
        self,
        encoder: str | Path | DualEncoder | None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        *,
        check: Callable[[DualEncoder], None] | None = None,
        saved: bool = False,
        missing: str = "images need an encoder: give one, or features instead of images",
    ) -> None:
        self.encoder, self.device, self.dtype = encoder, device, dtype
        self.check, self.saved, self.missing = check, saved, missing
        self._loaded: list[DualEncoder] = []  # one at most; shared with slots of another check

    def __bool__(self) -> bool:
        return self.encoder is not None

    @property
    def loaded(self) -> DualEncoder | None:
        """The encoder, if it was loaded already or given so."""
        if isinstance(self.encoder, DualEncoder):
            return self.encoder
        return next(iter(self._loaded), None)

    def is_of(
        self,
        encoder: str | Path | DualEncoder | None,
        device: str | torch.device | None,
        dtype: str | torch.dtype | None,
    ) -> bool:
        """Whether it was made with these."""
        return self.encoder is encoder and (self.device, self.dtype) == (device, dtype)

    def checked(self, check: Callable[[DualEncoder], None]) -> EncoderSlot:
        """Return a slot with another check; the encoder is loaded once for both."""
        found = copy.copy(self)
        found.check = check
        return found

    def get(self) -> DualEncoder:
        """Return the encoder.

        Raises:
            EncoderError: If it cannot be loaded.
            FeatureError: If there is none.
        """
        if self.encoder is None:
            raise FeatureError(self.missing)
        if not self._loaded:
            self._loaded.append(self._load(self.encoder))
        if self.check is not None:
            self.check(self._loaded[0])
        return self._loaded[0]

    def _load(self, encoder: str | Path | DualEncoder) -> DualEncoder:
        check_placing(self.device, self.dtype)  # what is wrong there, no other folder mends
        try:
            return load_encoder(encoder, device=self.device, dtype=self.dtype)
        except EncoderError as error:
            if not self.saved:
                raise
            raise EncoderError(
                f"the model's encoder cannot be loaded: {error}. If it was moved, say where it is: "
                "--encoder FOLDER on the command line, encoder=FOLDER in Python"
            ) from error
