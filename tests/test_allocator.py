"""Freed memory is kept while an iteration runs, and given back after one of large images."""

import os
import subprocess
import sys

import pytest
import torch

from retune._torch import allocator

PROGRAM = """
import os, resource
import torch
from retune._torch.allocator import LARGE, keep_freed_memory, return_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.empty(12_000_000).fill_(1)  # 48 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

plain = faults()
keep_freed_memory(torch.device("cpu"))
for _ in range(3):  # the first blocks come to new places
    faults()
kept = faults()
before = resident()
return_freed_memory(torch.empty(8))
small = before - resident()
return_freed_memory(torch.empty(LARGE // 4))
print(plain, kept, small, before - resident())
"""
PAGES = 48_000_000 // 4096


def run(**environment):
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | environment, check=True, capture_output=True, text=True
    )
    return map(int, found.stdout.split())


@pytest.mark.skipif(allocator._function("mallopt") is None, reason="only glibc has these settings")
def test_large_blocks_are_kept_and_returned_after_large_images():
    plain, kept, small, large = run()
    assert plain > 4 * PAGES
    assert kept < PAGES / 10
    assert abs(small) < 5e6
    assert large > 40e6


@pytest.mark.skipif(allocator._function("mallopt") is None, reason="only glibc has these settings")
@pytest.mark.parametrize(
    "told", [{"MALLOC_MMAP_MAX_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2:glibc.malloc.mmap_max=65536"}]
)
def test_what_the_user_has_set_is_kept(told):
    _, kept, *_ = run(**told)
    assert kept > 4 * PAGES


def test_a_program_that_cannot_load_itself_has_no_such_settings(monkeypatch):
    def refuse(name):
        raise OSError("Dynamic loading not supported")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", refuse)
    assert allocator._function("mallopt") is None


def test_other_systems_have_no_such_settings(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(allocator, "_called", False)
    allocator.keep_freed_memory(torch.device("cpu"))
    allocator.return_freed_memory(torch.empty(allocator.LARGE // 4))
    assert allocator._function("mallopt") is None
