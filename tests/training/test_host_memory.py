"""Memory that a step frees is there for the next one, while a training on the CPU goes on and no longer."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")

CODE = """
import resource, sys, torch
from rfdetr_hf.training.host_memory import kept_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(40 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

with kept_memory(torch.device(sys.argv[1])):
    for _ in range(5):
        faults()  # small pieces of memory come to lie between the large ones at first
    inside, held = faults(), resident()
print(inside, held - resident(), faults())
"""


@pytest.mark.parametrize(
    ("device", "environment", "kept"),
    [("cpu", {}, True), ("cuda", {}, False), ("cpu", {"MALLOC_ARENA_MAX": "1"}, False)],
)
def test_pages_are_kept_in_the_block_and_given_back_after_it(device, environment, kept):
    call = subprocess.run(
        [sys.executable, "-c", CODE, device], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert not call.returncode, call.stderr
    inside, given_back, after = map(int, call.stdout.split())
    assert (inside < 100) == kept == (given_back > 30), call.stdout
    assert after > 1000
