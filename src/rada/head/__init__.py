"""The RAda head: one attention layer over the rational matrix, after both encoders."""

from __future__ import annotations

from rada.head.head import HeadOutput, RAdaHead, rational_matrix, shortlist_size

__all__ = ["HeadOutput", "RAdaHead", "rational_matrix", "shortlist_size"]
