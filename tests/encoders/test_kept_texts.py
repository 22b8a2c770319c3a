"""Embeddings of fixed texts are made once, and again where the file is damaged."""

from __future__ import annotations

import pytest
import torch

from rada.encoders.kept_texts import kept_texts


def test_a_damaged_file_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("RADA_CACHE", str(tmp_path))
    texts = torch.randn(3, 4)

    def never():
        pytest.fail("it was there")

    assert torch.equal(kept_texts("key", (3, 4), lambda: texts), texts)
    assert torch.equal(kept_texts("key", (3, 4), never), texts)
    path = tmp_path / "encoders" / "key.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    for bad in (bytes(content), path.read_bytes()[:20], b""):
        path.write_bytes(bad)
        with pytest.warns(UserWarning, match="damaged"):
            assert torch.equal(kept_texts("key", (3, 4), lambda: texts + 1), texts + 1)
        assert torch.equal(kept_texts("key", (3, 4), never), texts + 1)
