"""Adapters: which LoRA adapters are served, by name, and whose weights are in host memory.

A name stands for a content, known by its digest; several names may share one. A content stays for
as long as it has a name or an open request, its weights while they are among those used last, at
most `host_max` and within `bytes_max`: the others are read again from their folder when they are
needed. A content with a pinned name keeps its slot of the device. Used by the engine's thread
alone; files are read by a Loader.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ranvier.adapters.loading import Loaded, Loader
from ranvier.adapters.pins import Pins
from ranvier.core.adapter import AdapterWeights
from ranvier.core.errors import (
    AdapterUnavailable,
    ModelNotFound,
    RanvierError,
    RequestError,
    TooManyRequests,
)
from ranvier.core.limits import LIMITS

__all__ = ["Adapters", "Answer"]


class Answer(NamedTuple):
    """The end of a load that was asked for by `ticket`."""

    ticket: int
    error: RanvierError | None = None


@dataclass
class _Content:
    path: str
    names: set[str] = field(default_factory=set)
    held: int = 0
    """Open requests."""


@dataclass(frozen=True)
class _Naming:
    """A load that gives a name to what it finds."""

    ticket: int
    name: str
    path: str
    is_inplace: bool
    is_pinned: bool | None


class Adapters:
    """The adapters of one engine. `turn` takes what the loader has read."""

    def __init__(
        self,
        loader: Loader,
        *,
        host_max: int,
        bytes_max: int = LIMITS.adapters_bytes,
        names_max: int = LIMITS.adapters_max,
        slots: int = LIMITS.adapter_slots_max,
    ):
        self.pins = Pins(slots)
        self.load_s: list[float] = []
        """How long loads took, of which the statistics have not been told yet."""
        self._loader = loader
        self._host_max = host_max
        self._bytes_max = bytes_max
        self._names_max = names_max
        self._digest_of: dict[str, str] = {}
        self._contents: dict[str, _Content] = {}
        self._weights: OrderedDict[str, AdapterWeights] = OrderedDict()
        self._namings = 0
        self._wanted: set[str] = set()

    @property
    def loading(self) -> int:
        """Loads that are under way."""
        return self._namings + len(self._wanted)

    @property
    def name_count(self) -> int:
        """Adapters that new requests can name."""
        return len(self._digest_of)

    @property
    def host_bytes(self) -> int:
        """Bytes of the weights that are in host memory."""
        return sum(weights.bytes for weights in self._weights.values())

    def wake(self, call: Callable[[], None]) -> None:
        """Have `call` called, maybe by another thread, when `turn` has something to take."""
        self._loader.on_done = call

    def load(
        self,
        ticket: int,
        name: str,
        path: str,
        *,
        is_inplace: bool = False,
        is_pinned: bool | None = None,
    ) -> None:
        """Begin to load; `turn` brings the answer. Raises TooManyRequests or RequestError.

        `is_pinned`: whether the adapter keeps its slot from now on; None: as it is.
        """
        if self._namings >= LIMITS.adapter_loads_max:
            raise TooManyRequests(
                f"{self._namings} adapters are being loaded, the limit is "
                f"{LIMITS.adapter_loads_max}.",
                hint="Try again later.",
            )
        self._check_room(name)
        self._namings += 1
        naming = _Naming(ticket, name, path, is_inplace, is_pinned)
        self._loader.ask(naming, path, is_urgent=False)

    def add(
        self,
        name: str,
        path: str,
        weights: AdapterWeights,
        *,
        is_inplace: bool = False,
        is_pinned: bool | None = None,
    ) -> None:
        """Serve `weights` under a name. Raises RequestError when it stands for other content."""
        self._check_room(name)
        is_pinned = self.pins.has(name) if is_pinned is None else is_pinned
        if is_pinned:
            self.pins.check(name, weights.digest)
        known = self._digest_of.get(name)
        if known is not None and known != weights.digest:
            if not is_inplace:
                raise RequestError(
                    f"The lora adapter {name!r} has already been loaded with other content. If you "
                    "want to load the adapter in place, set 'load_inplace' to True.",
                    param="lora_name",
                )
            self.unload(name)
        self._digest_of[name] = weights.digest
        content = self._contents.setdefault(weights.digest, _Content(path))
        content.path = path
        content.names.add(name)
        self._keep(weights)
        self.pin(name, is_pinned=is_pinned)

    def pin(self, name: str, *, is_pinned: bool = True) -> None:
        """Have an adapter keep its slot, or no longer. Raises ModelNotFound, or RequestError when
        every slot is pinned."""
        if name not in self._digest_of:
            raise _unknown(name)
        if is_pinned:
            self.pins.check(name, self._digest_of[name])
            self.pins.put(name, self._digest_of[name])
        else:
            self.pins.drop(name)

    def unload(self, name: str) -> str:
        """Serve a name no longer; its digest. Open requests keep the content.

        Raises ModelNotFound.
        """
        if name not in self._digest_of:
            raise _unknown(name)
        self.pins.drop(name)
        digest = self._digest_of.pop(name)
        self._contents[digest].names.discard(name)
        self._forget_unused(digest)
        return digest

    def hold(self, name: str) -> str:
        """A request opens with a name: the digest of its content.

        Raises ModelNotFound, or AdapterUnavailable when other adapters are pinned in every slot.
        """
        digest = self._digest_of.get(name)
        if digest is None:
            raise ModelNotFound(f"The model {name[:128]!r} does not exist.", param="model")
        self.pins.check_runs(name, digest)
        self._contents[digest].held += 1
        return digest

    def release(self, digest: str) -> None:
        """A request has ended."""
        self._contents[digest].held -= 1
        self._forget_unused(digest)

    def is_loaded(self, digest: str) -> bool:
        return digest in self._weights

    def weights(self, digest: str) -> AdapterWeights:
        """The weights, used now. Requires: is_loaded."""
        self._weights.move_to_end(digest)
        return self._weights[digest]

    def want(self, digest: str) -> None:
        """Have a content read again, unless it is being read already."""
        if digest not in self._wanted and digest not in self._weights:
            self._wanted.add(digest)
            self._loader.ask(digest, self._contents[digest].path, is_urgent=True)

    def expect(self, digests: list[str]) -> None:
        """Have contents in host memory before they are needed, the first of them surest of all.

        One place is left to whatever else is read, so that they don't drive each other out.
        """
        places = self._host_max
        if self._weights:
            latest = next(reversed(self._weights.values()))
            places = min(places, self._bytes_max // max(latest.bytes, 1))
        soon = digests[: max(places - 1, 1)]
        for digest in reversed(soon):
            if digest in self._weights:
                self._weights.move_to_end(digest)
        for digest in soon:
            self.want(digest)

    def turn(self, lost: dict[str, RanvierError]) -> list[Answer]:
        """Take what was read. To `lost` come digests that cannot be had, with the reason."""
        answers: list[Answer] = []
        for loaded in self._loader.take() if self.loading else ():
            self.load_s = [*self.load_s[-LIMITS.adapter_loads_max :], loaded.seconds]
            if isinstance(loaded.key, _Naming):
                self._namings -= 1
                answers.append(Answer(loaded.key.ticket, self._name(loaded.key, loaded)))
            else:
                self._wanted.discard(loaded.key)
                error = self._reread(loaded.key, loaded)
                if error is not None:
                    lost[loaded.key] = error
                    self.pins.unplaced.discard(loaded.key)
        return answers

    def close(self) -> None:
        self._loader.close()

    def _name(self, naming: _Naming, loaded: Loaded) -> RanvierError | None:
        if isinstance(loaded.found, RanvierError):
            return loaded.found
        try:
            self.add(
                naming.name,
                naming.path,
                loaded.found,
                is_inplace=naming.is_inplace,
                is_pinned=naming.is_pinned,
            )
        except RequestError as error:
            return error
        return None

    def _reread(self, digest: str, loaded: Loaded) -> RanvierError | None:
        """Keep what was read again, or say what is wrong with it."""
        content = self._contents.get(digest)
        if content is None:
            return None  # nobody waits for it any more
        if isinstance(loaded.found, RanvierError):
            return AdapterUnavailable(
                f"The adapter has to be read again, which fails: {loaded.found.message}",
            )
        if loaded.found.digest != digest:
            return AdapterUnavailable(
                f"{content.path}: the adapter has changed since it was loaded. Load it again, with "
                "load_inplace."
            )
        self._keep(loaded.found)
        return None

    def _check_room(self, name: str) -> None:
        if name not in self._digest_of and len(self._digest_of) >= self._names_max:
            raise RequestError(
                f"{len(self._digest_of)} adapters are loaded, the limit is {self._names_max}.",
                param="lora_name",
                hint="Unload some.",
            )

    def _keep(self, weights: AdapterWeights) -> None:
        self._weights[weights.digest] = weights
        self._weights.move_to_end(weights.digest)
        while len(self._weights) > self._host_max or self._is_heavy:
            # What open requests wait for goes last: its folder may hold something else by now.
            unheld = (digest for digest in self._weights if not self._contents[digest].held)
            del self._weights[next(unheld, next(iter(self._weights)))]

    @property
    def _is_heavy(self) -> bool:
        """Whether weights must go, which the last ones never do."""
        return len(self._weights) > 1 and self.host_bytes > self._bytes_max

    def _forget_unused(self, digest: str) -> None:
        content = self._contents[digest]
        if not content.names and not content.held:
            del self._contents[digest]
            self._weights.pop(digest, None)


def _unknown(name: str) -> ModelNotFound:
    return ModelNotFound(f"The lora adapter {name[:128]!r} cannot be found.", param="lora_name")
