"""What adding in the tensor core costs 8-bit products in accuracy on Hopper, with and without promotion to f32.

    python benchmarks/fp8_accumulation.py

Dot products of e4m3 values by the rule that the virtual GPU follows (docs/virtual-gpu.md; 32 products at a time, sum
and new products cut to the largest one's 14 bits), beside the same added up in f32 every 128 values. Prints relative L2
errors against the exact sums of the rounded values, and what rounding the values themselves costs.
"""

from __future__ import annotations

import numpy as np

ROWS, STEP, PROMOTED, BITS = 300, 32, 128, 14


def e4m3(x: np.ndarray) -> np.ndarray:
    """Rounded to e4m3, of which the largest value is 448."""
    x = np.clip(x, -448, 448)
    exponent = np.maximum(np.frexp(x)[1], -5)
    return np.round(np.ldexp(x, 4 - exponent)) * np.ldexp(1.0, exponent - 4)


def summed(products: np.ndarray, promote: int) -> np.ndarray:
    """Sums of the rows; every `promote` values go to an f32 sum (0: never)."""
    acc, total = np.zeros(len(products)), np.zeros(len(products), np.float32)
    for k in range(0, products.shape[1], STEP):
        parts = np.concatenate([acc[:, None], products[:, k : k + STEP]], 1)
        unit = np.ldexp(1.0, np.frexp(np.abs(parts).max(1))[1] - BITS)[:, None]
        acc = (np.trunc(parts / unit) * unit).sum(1)
        if promote and (k + STEP) % promote == 0:
            total, acc = (total + acc).astype(np.float32), np.zeros(len(products))
    return total + acc


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def main() -> None:
    rng = np.random.default_rng(0)
    print(f"{'mean/deviation':>14} {'K':>6} {'14 bits':>9} {'promoted':>9} {'rounding the values':>20}")
    for mean in (0.0, 0.5):
        for k in (768, 3072, 16384):
            a, b = (80 * (rng.standard_normal((ROWS, k)) + mean) for _ in range(2))
            products = e4m3(a) * e4m3(b)
            exact = products.sum(1)
            found = [distance(summed(products, p), exact) for p in (0, PROMOTED)]
            print(f"{mean:14} {k:6} {found[0]:9.1e} {found[1]:9.1e} {distance(exact, (a * b).sum(1)):20.1e}")


if __name__ == "__main__":
    main()
