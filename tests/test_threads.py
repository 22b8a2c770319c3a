from __future__ import annotations

import pytest
import torch

from rada.core.threads import one_thread


@pytest.fixture
def three_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


def test_one_thread_inside_and_as_before_after_even_an_error(three_threads: None) -> None:
    with pytest.raises(KeyError), one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 3


def test_nothing_changes_where_it_is_not_wanted(three_threads: None) -> None:
    with one_thread(False):
        assert torch.get_num_threads() == 3
        torch.set_num_threads(2)
    assert torch.get_num_threads() == 2
