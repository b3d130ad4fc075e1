import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    # Tensors this small gain nothing from threads, and on a busy machine each small LAPACK call waits for the other thread.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
