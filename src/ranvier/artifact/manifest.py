"""The manifest: what an artifact is, in canonical JSON, and the key that names its folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import msgspec

from ranvier.core.buckets import BucketSet
from ranvier.core.media import VisionInfo
from ranvier.core.program import Family, KvLayout, ProgramShape

__all__ = [
    "FORMAT",
    "PART_BYTES",
    "ArrayEntry",
    "ArtifactKey",
    "FileEntry",
    "Manifest",
    "ProgramEntry",
    "canonical",
    "differing",
    "join_hashes",
    "weights_file",
]

FORMAT = 4
PART_BYTES = 64 * 2**20
"""Files are hashed in parts of this size, so that many threads can check one file."""


class ArtifactKey(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Everything that a compiled program depends on; equal keys may share an artifact."""

    format: int = FORMAT
    model: str
    """Hash of the resolved config."""
    weights: str
    """Revision of the checkpoint."""
    draft: str = ""
    """The drafter: method, hash of its config, revision, how its weights are kept."""
    target: str
    target_fingerprint: str
    """Compiler and runtime versions, CPU features, flags."""
    sources: str
    """Hash of the sources that shape programs, and of the kernel library."""
    dtype: str
    quantization: str
    kv_cache_dtype: str = "auto"
    """Of the KV cache: auto (that of dtype), fp8 or int8."""
    max_model_len: int
    max_num_seqs: int
    block_tokens: int
    block_count: int
    kernels: str
    kv_layout: KvLayout
    buckets: BucketSet
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    sequence_parallel: bool = False
    """Norms are cut along the tokens."""
    logical_cores: int = 1
    """Neuron: physical cores of a logical one."""
    adapter_slots: int = 0
    """LoRA adapters on the device at a time, the largest rank, and the linears they may change."""
    adapter_rank_max: int = 0
    adapter_modules: tuple[str, ...] = ()

    vision: VisionInfo | None = None
    """The encoder's buckets and bounds, of a model that sees pictures."""

    @property
    def ranks(self) -> int:
        """How many devices run the programs together."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def name(self) -> str:
        """The folder's name: 20 hex digits of the key's hash."""
        return hashlib.sha256(canonical(self)).hexdigest()[:20]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size in bytes and sha256 of one file; of a file above PART_BYTES, of its parts' digests."""

    size: int
    sha256: str


class ArrayEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One packed weight in a rank's file: in that of every rank at the same place."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class ProgramEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One program: its shape; files are programs/<name>.{stablehlo,bin}.

    For Neuron they are programs/<name>.{stablehlo,hlo.pb,neff}, and what a device's own compiler
    makes of the StableHLO lies outside of the manifest (artifact/binaries.py).
    """

    name: str
    family: Family
    tokens: int
    rows: int
    context: int
    samples: int = 0
    draft: int = 0
    lookahead: int = 0

    @classmethod
    def of(cls, shape: ProgramShape) -> ProgramEntry:
        return cls(shape.name, **dataclasses.asdict(shape))

    @property
    def shape(self) -> ProgramShape:
        fields = msgspec.structs.asdict(self)
        del fields["name"]
        return ProgramShape(**fields)


class Manifest(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The whole artifact; every file but the manifest itself is in `files`."""

    key: ArtifactKey
    programs: list[ProgramEntry]
    arrays: dict[str, ArrayEntry]
    files: dict[str, FileEntry]
    model: dict[str, Any]
    """Numbers that the runtime needs: vocab_size, cache shapes and dtype, limits."""
    missing: dict[str, str] = {}
    """Files that could not be made where the artifact was built, and why; empty: it can run."""
    completed_by: str = ""
    """The command that makes what is missing."""
    digest: str = ""
    """sha256 of this manifest in canonical JSON with an empty digest."""

    def signed(self) -> Manifest:
        """The same manifest with its digest filled in."""
        bare = msgspec.structs.replace(self, digest="")
        return msgspec.structs.replace(bare, digest=hashlib.sha256(canonical(bare)).hexdigest())


def weights_file(rank: int, ranks: int) -> str:
    """The file of a rank's packed weights."""
    return "weights.bin" if ranks == 1 else f"weights.r{rank}.bin"


def join_hashes(parts: list[bytes]) -> str:
    """The sha256 of FileEntry, from the digests of a file's parts."""
    return (parts[0] if len(parts) == 1 else hashlib.sha256(b"".join(parts)).digest()).hex()


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    plain = msgspec.to_builtins(value)
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def differing(a: ArtifactKey, b: ArtifactKey) -> dict[str, tuple[Any, Any]]:
    """The fields in which two keys differ."""
    pairs = ((name, getattr(a, name), getattr(b, name)) for name in a.__struct_fields__)
    return {name: (x, y) for name, x, y in pairs if x != y}
