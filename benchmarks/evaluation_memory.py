"""Peak memory and time of the numbers of two large sets (docs/evaluation.md), from random features on disk.

python benchmarks/evaluation_memory.py --films 100000 --width 2048
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from cxrl.image_sets.measure import measure
from cxrl.image_sets.scan import THUMBNAIL, Scanned
from cxrl.image_sets.sets import ImageSet

BLOCK = 4096


def write(path: Path, shape: tuple[int, ...], dtype: type, seed: int) -> np.ndarray:
    """Random numbers as a memory map, as a scan leaves them."""
    generator = np.random.default_rng(seed)
    whole = np.lib.format.open_memmap(path, "w+", dtype, shape)
    for start in range(0, shape[0], BLOCK):
        size = whole[start : start + BLOCK].shape
        whole[start : start + BLOCK] = (
            generator.integers(0, 256, size, dtype=np.uint8)
            if dtype == np.uint8
            else generator.standard_normal(size, dtype=np.float32) + 0.05 * seed
        )
        whole.flush()
    del whole
    return np.load(path, mmap_mode="r")


def made(folder: Path, number: int, width: int, seed: int) -> Scanned:
    """A set of films of which two have a prompt in common."""
    generator, paths = np.random.default_rng(seed), tuple(Path(f"{n}.png") for n in range(number))
    return Scanned(
        source=ImageSet("random", paths, ("",) * number, ("",) * number),
        rows=np.arange(number),
        paths=paths,
        features={"random": write(folder / f"{seed}.npy", (number, width), np.float32, seed)},
        thumbnails=write(folder / f"t{seed}.npy", (number, THUMBNAIL, THUMBNAIL), np.uint8, seed),
        labels=np.zeros((number, 0), dtype=np.float32),
        findings=(),
        prompt_of=np.arange(number) // 2,
        psi=generator.normal(size=(number, 5)).astype(np.float32),
        probability=np.zeros((number, 0), dtype=np.float32),
        consistency=np.full(number, np.nan, dtype=np.float32),
        digests=np.arange(number),
        unreadable={},
        sizes={},
        num_colour=0,
    )


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("films", 100_000), ("width", 2048), ("bootstrap", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sets = [made(Path(folder), args.films, args.width, seed) for seed in (1, 2)]
        rows, start = np.arange(args.films), time.perf_counter()
        found = measure(sets[0], rows, sets[1], rows, seed=0, bootstrap=args.bootstrap)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{args.films} films a side, {args.width} wide: peak {peak:.2f} GiB resident, {seconds:.0f} s; "
        f"fid {found['values']['fid']:.6g}, kid {found['values']['kid']:.6g}"
    )


if __name__ == "__main__":
    main()
