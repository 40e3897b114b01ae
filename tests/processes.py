"""Functions run in several processes that join in one group, on the CPU."""

import os
import socket

import torch


def run_processes(function, count, folder, *arguments, join=True):
    """Run ``function(rank, folder, *arguments)`` as `torchrun` would.

    What each of them returns is given back in a list. Without `join` they
    have to join in a group themselves, as recipes do.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    context = torch.multiprocessing.get_context("forkserver")
    # Imported once for all the processes: it takes most of their time.
    context.set_forkserver_preload(["ssast_lobes.training"])
    torch.multiprocessing.start_processes(
        _work,
        (function, count, str(folder), arguments, port, join),
        nprocs=count,
        start_method="forkserver",
    )
    return [
        torch.load(folder / f"result{rank}.pt", weights_only=False)
        for rank in range(count)
    ]


def _work(rank, function, count, folder, arguments, port, join):
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if join:
        torch.distributed.init_process_group("gloo")
    result = function(rank, folder, *arguments)
    torch.save(result, f"{folder}/result{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
