"""GPUs and networks by name, from their data sheets."""

from dataclasses import dataclass

CPU = "cpu"
"""Name of the machine that plans."""


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet: GiB, dense bf16 FLOP/s, bytes/s of memory and of the host's links.

    `link` is what one GPU sends to the others of its host, in one direction.
    """

    memory: float
    products: float
    memory_rate: float
    link: float


GPUS = {
    "A100-40": Gpu(40, 312e12, 1.56e12, 300e9),
    "A100-80": Gpu(80, 312e12, 2.04e12, 300e9),
    "H100": Gpu(80, 989e12, 3.35e12, 450e9),
    "H200": Gpu(141, 989e12, 4.8e12, 450e9),
    "B200": Gpu(180, 2250e12, 8.0e12, 900e9),
    "L40S": Gpu(48, 362e12, 0.864e12, 32e9),
    "A10": Gpu(24, 125e12, 0.6e12, 32e9),
    "RTX-4090": Gpu(24, 165e12, 1.01e12, 32e9),
}
"""The last three have no NVLink: their link is PCIe 4.0 x16."""

INTERCONNECTS = {"ib400": 50e9, "ib200": 25e9, "roce100": 12.5e9, "eth25": 3.1e9, "eth10": 1.25e9}
"""Bytes/s that one GPU sends to other hosts, where each has a network card of its own."""
