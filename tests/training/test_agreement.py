"""What one process does or fails at, and all of them learn of."""

import time
from datetime import timedelta

import pytest
import torch.multiprocessing
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from rfdetr_hf.training import agreement

TIMEOUT, WORK = 3, 7  # seconds


def process(rank, port, folder):
    import os

    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    agreement.BEAT = 0.5
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=TIMEOUT))])

    def work():
        time.sleep(WORK)
        return "done"

    def broken():
        raise ValueError("a file is broken")

    found = [agreement.patiently_on_main(work, accelerator)]
    with pytest.raises(ValueError, match="a file is broken"):
        agreement.patiently_on_main(broken, accelerator)
    (folder / str(rank)).write_text(found[0])


def test_the_others_wait_longer_than_their_timeout_for_a_busy_main_process(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (port, tmp_path), nprocs=2)
    assert [(tmp_path / name).read_text() for name in "01"] == ["done", "done"]
