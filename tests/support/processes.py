"""Two processes as torchrun starts them, for strategies that Lightning cannot fork or spawn itself."""

import os
import socket
import sys
import traceback
from multiprocessing import get_context

import torch


def in_processes(function, folder, *arguments, world=2, nodes=1):
    """Call `function(folder, *arguments)` in each process of a group, over one node or more; what each call returned."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    # Forking saves the time of the imports; where there is CUDA, forked processes could use neither it nor autograd.
    context = get_context("spawn" if torch.cuda.is_available() else "fork")
    processes = [
        context.Process(target=_run, args=(rank, world, nodes, port, function, folder, arguments)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=1800)
    errors = [path.read_text() for path in sorted(folder.glob("error-*.txt"))]
    for process in processes:
        process.kill()
    assert not errors, "\n".join(errors)
    assert [process.exitcode for process in processes] == [0] * world
    return [torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in range(world)]


def _run(rank, world, nodes, port, function, folder, arguments):
    node, local = divmod(rank, world // nodes)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world // nodes}
    environment |= {"RANK": rank, "LOCAL_RANK": local, "GROUP_RANK": node, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    try:
        torch.save(function(folder, *arguments), folder / f"result-{rank}.pt")
    except BaseException:
        (folder / f"error-{rank}.txt").write_text(traceback.format_exc())
        # Not by raising: the other rank may wait in a collective, and this one's clean-up would wait for it.
        os._exit(1)
    finally:
        sys.stdout.flush()
