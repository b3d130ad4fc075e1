"""One thread per process: the problems are tiny, and threads that wait for each other cost more than they save."""

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):  # not a keyword, which the name of a folder is too
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
