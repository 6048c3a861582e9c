"""Environment variables of every job of the workflow. Set in its command itself, since a container passes none on."""

VARIABLES = {
    # Only the download rules may use the network.
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads that wait spin for some 50 microseconds, then sleep: at once would make a training on cores of its own a
    # tenth slower, never would slow down all that share cores. docs/benchmarks.md has what this and the next save.
    "GOMP_SPINCOUNT": "3000",
    # glibc's malloc hands freed memory back to the system, and every training step on a CPU pays for getting it again:
    # kept up to 4 GiB, in huge pages.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),  # the largest that it takes
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
