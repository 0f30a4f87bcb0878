"""The instance catalogue: what each Inferentia and Trainium machine has, as literal data.

Source: AWS Neuron documentation, about-neuron/arch/neuron-hardware and neuron-features/
logical-neuroncore-config (SDK 2.32); marked "inferred" or "third party" where it says less.
Prices are not here: they differ by region and contract. Nothing was measured on hardware.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from ranvier.core.errors import ConfigError

__all__ = ["CHIPS", "GIB", "INSTANCES", "Chip", "Instance", "find_instance"]

GIB = 2**30
TERA = 10**12


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator chip."""

    name: str
    target: str
    """What programs are compiled for."""
    compiler_target: str
    """The compiler's --target."""
    cores: int
    """Physical cores; a logical core is `logical_core_config` of them."""
    hbm_bytes: int
    bandwidth_bytes_s: float
    """HBM bandwidth of the whole chip."""
    flops: Mapping[str, float]
    """Dense operations per second of the whole chip, by dtype."""
    logical_core_configs: tuple[int, ...]
    """Physical cores that may form one logical core; the last is the default."""
    fp8_max: float | None
    """Largest finite E4M3 value; None where the chip has no E4M3."""
    tensor_parallel: tuple[int, ...]
    """Degrees that AWS documents or that its published examples use."""

    @property
    def logical_core_config(self) -> int:
        """The default number of physical cores in a logical one."""
        return self.logical_core_configs[-1]


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One machine (or UltraServer) of a cloud."""

    name: str
    chip: Chip
    chips: int
    vcpus: int | None
    host_bytes: int | None
    note: str = ""

    def logical_cores(self, logical_core_config: int | None = None) -> int:
        """Cores that a program sees."""
        return self.chips * self.chip.cores // (logical_core_config or self._default)

    def core_bytes(self, logical_core_config: int | None = None) -> int:
        """HBM of one logical core."""
        share = logical_core_config or self._default
        return self.chip.hbm_bytes * share // self.chip.cores

    def core_bandwidth_bytes_s(self, logical_core_config: int | None = None) -> float:
        """HBM bandwidth of one logical core: an equal share of the chip's."""
        share = logical_core_config or self._default
        return self.chip.bandwidth_bytes_s * share / self.chip.cores

    def core_flops(self, dtype: str, logical_core_config: int | None = None) -> float:
        """Dense operations per second of one logical core; unknown dtypes count as bfloat16."""
        share = logical_core_config or self._default
        rate = self.chip.flops.get(dtype, self.chip.flops["bfloat16"])
        return rate * share / self.chip.cores

    @property
    def hbm_bytes(self) -> int:
        return self.chips * self.chip.hbm_bytes

    @property
    def _default(self) -> int:
        return self.chip.logical_core_config


INFERENTIA2 = Chip(
    name="Inferentia2",
    target="neuron-inf2",
    compiler_target="inf2",
    cores=2,
    hbm_bytes=32 * GIB,
    bandwidth_bytes_s=820 * GIB,
    flops={"bfloat16": 190 * TERA, "float16": 190 * TERA, "float32": 47.5 * TERA},
    logical_core_configs=(1,),
    fp8_max=None,
    tensor_parallel=(1, 2, 4, 8, 12, 24),
)
TRAINIUM1 = Chip(
    name="Trainium1",
    target="neuron-trn1",
    compiler_target="trn1",
    cores=2,
    hbm_bytes=32 * GIB,
    bandwidth_bytes_s=820 * GIB,
    flops={"bfloat16": 190 * TERA, "float16": 190 * TERA, "float32": 47.5 * TERA},
    logical_core_configs=(1,),
    fp8_max=None,
    tensor_parallel=(1, 2, 8, 16, 32),
)
TRAINIUM2 = Chip(
    name="Trainium2",
    target="neuron-trn2",
    compiler_target="trn2",
    cores=8,
    hbm_bytes=96 * GIB,
    bandwidth_bytes_s=2.9 * TERA,
    flops={"bfloat16": 667 * TERA, "float8_e4m3": 1299 * TERA, "float32": 181 * TERA},
    logical_core_configs=(1, 2),
    fp8_max=240.0,
    tensor_parallel=(1, 2, 4, 8, 16, 32, 64),  # no list is documented: degrees of AWS's examples
)
TRAINIUM3 = Chip(
    name="Trainium3",
    target="neuron-trn3",
    compiler_target="trn3",
    cores=8,
    hbm_bytes=144 * GIB,
    bandwidth_bytes_s=4.9 * TERA,
    flops={"bfloat16": 671 * TERA, "float8_e4m3": 2517 * TERA, "float32": 183 * TERA},
    logical_core_configs=(1, 2),
    fp8_max=448.0,
    tensor_parallel=(1, 2, 4, 8, 16, 32, 64),  # inferred from Trainium2
)
CHIPS = {chip.target: chip for chip in (INFERENTIA2, TRAINIUM1, TRAINIUM2, TRAINIUM3)}


def _instance(
    name: str, chip: Chip, chips: int, vcpus: int | None, host_gib: int | None, note: str = ""
) -> Instance:
    host = None if host_gib is None else host_gib * GIB
    return Instance(name=name, chip=chip, chips=chips, vcpus=vcpus, host_bytes=host, note=note)


ULTRA = "an UltraServer: several hosts, joined chips"
INSTANCES = {
    instance.name: instance
    for instance in (
        _instance("inf2.xlarge", INFERENTIA2, 1, 4, 16),
        _instance("inf2.8xlarge", INFERENTIA2, 1, 32, 128),
        _instance("inf2.24xlarge", INFERENTIA2, 6, 96, 384),
        _instance("inf2.48xlarge", INFERENTIA2, 12, 192, 768),
        _instance("trn1.2xlarge", TRAINIUM1, 1, 8, 32),
        _instance("trn1.32xlarge", TRAINIUM1, 16, 128, 512),
        _instance("trn1n.32xlarge", TRAINIUM1, 16, 128, 512),
        _instance("trn2.3xlarge", TRAINIUM2, 1, None, None, "from third-party documentation"),
        _instance("trn2.48xlarge", TRAINIUM2, 16, 192, 2048),
        _instance("trn2u.48xlarge", TRAINIUM2, 16, 192, 2048),
        _instance("trn2-ultraserver", TRAINIUM2, 64, 768, 8192, ULTRA),
        _instance("trn3-ultraserver-gen1", TRAINIUM3, 64, 768, 8192, ULTRA),
        _instance("trn3-ultraserver-gen2", TRAINIUM3, 144, 2304, 27648, ULTRA),
    )
}


def find_instance(name: str) -> Instance:
    """The instance of a name. Raises ConfigError that names the nearest known one."""
    if name in INSTANCES:
        return INSTANCES[name]
    found = difflib.get_close_matches(name, list(INSTANCES), 1, 0.5)
    guess = f" Did you mean {found[0]}?" if found else ""
    raise ConfigError(f"Unknown instance {name!r}.{guess}", hint=f"Known: {', '.join(INSTANCES)}.")
