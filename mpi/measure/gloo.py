# Times all_reduce of PyTorch's gloo between two processes, on as many bytes as an
# exchange of synchronized batch norm has: python3 mpi/measure/gloo.py
import os
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def work(rank, ranks):
    torch.set_num_threads(1)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", "29531"
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    if rank == 0:
        print("PyTorch", torch.__version__, "gloo,", ranks, "processes: microseconds of all_reduce by channels (two float64 each)")
    for channels in (64, 128, 256, 512, 1024, 2048):
        x = torch.ones(2 * channels, dtype=torch.float64)
        times = []
        for _ in range(2000):
            begin = time.perf_counter()
            dist.all_reduce(x)
            times.append(time.perf_counter() - begin)
            x.fill_(1)
        times.sort()
        if rank == 0:
            print("%9d %9.2f" % (channels, 1e6 * times[len(times) // 2]))
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(work, args=(2, ), nprocs=2)
