"""What one accelerator chip can do at best, as its maker publishes it: for utilisation, rooflines and plans.

A fraction of these peaks is what a program reaches; none of them is measured here. Sources: Cloud TPU documentation, pages
v4, v5e, v5p and v6e ("System architecture"), Jouppi et al. 2023 for the links of v4 (6 x 50 GB/s each way), and
NVIDIA's data sheets of A100 (80 GB and 40 GB), H100 and H200, the figures without sparsity.
"""

from __future__ import annotations

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """One chip, as JAX sees one device.

    flops: FLOP/s of bfloat16 products. float32_flops: of float32 ones at JAX's default precision, which on a TPU is one
    pass in bfloat16, and on these GPUs TF32. memory: bytes of HBM. bandwidth: bytes/s between it and the cores. links:
    bytes/s that leave the chip over all its links to other chips at once, one way (half of a "bidirectional" figure).
    source: where the figures are published.
    """

    name: str
    flops: float
    float32_flops: float
    memory: int
    bandwidth: float
    links: float
    source: str

    def peak(self, dtype: str) -> float:
        """FLOP/s of products of `dtype`, "bfloat16" (or "float16") or "float32"."""
        return self.float32_flops if dtype == "float32" else self.flops


def _tpu(name: str, flops: float, memory: int, bandwidth: float, links: float, page: str) -> Chip:
    return Chip(name, flops, flops, memory * GIB, bandwidth, links, f"Cloud TPU documentation, {page}")


V4 = _tpu("TPU v4", 275e12, 32, 1200e9, 300e9, "v4; links: Jouppi et al. 2023")
V5E = _tpu("TPU v5e", 197e12, 16, 819e9, 200e9, "v5e")
V5P = _tpu("TPU v5p", 459e12, 95, 2765e9, 600e9, "v5p")
V6E = _tpu("TPU v6e", 918e12, 32, 1640e9, 400e9, "v6e")
A100 = Chip("A100 SXM 80 GB", 312e12, 156e12, 80 * 10**9, 2039e9, 300e9, "NVIDIA A100 data sheet")
A100_40 = Chip("A100 SXM 40 GB", 312e12, 156e12, 40 * 10**9, 1555e9, 300e9, "NVIDIA A100 data sheet")
H100 = Chip("H100 SXM", 989e12, 495e12, 80 * 10**9, 3350e9, 450e9, "NVIDIA H100 data sheet")
H200 = Chip("H200 SXM", 989e12, 495e12, 141 * 10**9, 4800e9, 450e9, "NVIDIA H200 data sheet")

# by the words that JAX's `device.device_kind` holds, the longer ones first: "TPU v5" is v5p
_KINDS = {
    "TPU v4": V4, "TPU v5 lite": V5E, "TPU v5e": V5E, "TPU v5p": V5P, "TPU v5": V5P, "TPU v6 lite": V6E, "TPU v6e": V6E,
    "A100-SXM4-80GB": A100, "A100-SXM4-40GB": A100_40, "H100 80GB HBM3": H100, "H200": H200,
}  # fmt: skip


def chip(device_kind: str) -> Chip | None:
    """The chip of a `device.device_kind`, such as "TPU v5 lite" or "NVIDIA H100 80GB HBM3"; None for any other (a CPU).

    >>> chip("TPU v5 lite").name, chip("TPU v5").name, chip("NVIDIA H200").name, chip("cpu")
    ('TPU v5e', 'TPU v5p', 'H200 SXM', None)
    """
    return next((found for words, found in _KINDS.items() if words in device_kind), None)
