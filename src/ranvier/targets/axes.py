"""Axes: over how many devices and hosts a model is spread, beside tensor parallelism. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ranvier.core.errors import ConfigError

__all__ = ["ALONE", "Axes"]


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Stages that share the layers, replicas of the whole model, hosts. Raises ConfigError.

    `is_sequence`: norms are cut along the tokens where a program allows it.
    """

    stages: int = 1
    replicas: int = 1
    hosts: int = 1
    is_sequence: bool = False

    def __post_init__(self) -> None:
        named = {
            "pipeline_parallel_size": self.stages, "data_parallel_size": self.replicas,
            "nnodes": self.hosts,
        }  # fmt: skip
        for name, size in named.items():
            if size < 1:
                raise ConfigError(f"{name} must be at least 1, is {size}.")

    def devices(self, tensor_parallel: int) -> int:
        """Devices that all replicas take."""
        return tensor_parallel * self.stages * self.replicas

    def problem(self, tensor_parallel: int, layers: int) -> str:
        """Why a model of so many layers is not spread so, or nothing."""
        if layers % self.stages:
            legal = ", ".join(str(n) for n in range(1, layers + 1) if layers % n == 0)
            return (
                f"pipeline_parallel_size={self.stages} does not divide the model's {layers} "
                f"layers; possible are {legal}"
            )
        if self.replicas > 1 and self.hosts > 1:
            return (
                f"data_parallel_size={self.replicas} with nnodes={self.hosts}: one server has "
                "several engines or one engine over several hosts"
            )
        if self.devices(tensor_parallel) % self.hosts:
            return (
                f"{self.devices(tensor_parallel)} devices (tensor_parallel_size x "
                f"pipeline_parallel_size) are not shared evenly by nnodes={self.hosts}"
            )
        return ""


ALONE = Axes()
