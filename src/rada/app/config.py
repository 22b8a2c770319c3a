"""What a server of the app allows."""

from __future__ import annotations

from dataclasses import dataclass

from rada.core.config import Config

__all__ = ["AppConfig"]


@dataclass(frozen=True)
class AppConfig(Config):
    """Bounds of the app, and how it trains.

    Attributes:
        method: How it trains unless asked otherwise on the page; `prior_probe` takes a second.
        max_images: Images of one session.
        max_file_megabytes: Size of one image file.
        max_total_megabytes: Size of all files of one session, and of one archive.
        max_megapixels: Pixels of one image.
        max_classes: Class names of one session.
        max_sessions: Sessions at a time; the one that was idle longest makes room.
        keep_minutes: How long a session is kept after it was last used.
        folds: Parts of the cross-validation, at most.
        seed: Seed of everything random.

    Example:
        >>> AppConfig(max_images=100).method
        'prior_probe'
    """

    method: str = "prior_probe"
    max_images: int = 10_000
    max_file_megabytes: int = 32
    max_total_megabytes: int = 4096
    max_megapixels: int = 64
    max_classes: int = 50
    max_sessions: int = 16
    keep_minutes: int = 720
    folds: int = 5
    seed: int = 0

    def validate(self) -> None:
        """Check that every field is in its range."""
        for name in ("max_images", "max_total_megabytes", "keep_minutes"):
            self.require(1 <= getattr(self, name) <= 1 << 20, name, "from 1 to 1048576")
        for name in ("max_file_megabytes", "max_megapixels", "max_sessions"):
            self.require(1 <= getattr(self, name) <= 256, name, "from 1 to 256")
        self.require(2 <= self.max_classes <= 1000, "max_classes", "from 2 to 1000")
        self.require(2 <= self.folds <= 20, "folds", "from 2 to 20")
