"""The image side of a server and of an LLM, from an artifact and options; never imports jax."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ranvier.cli.options.media import MediaOptions
from ranvier.core.errors import ConfigError, RequestError
from ranvier.core.media import VisionInfo
from ranvier.media.fetch import Fetcher
from ranvier.media.process.prepared import Configs
from ranvier.media.vision import Vision
from ranvier.offline.pictures import PictureReader
from ranvier.server.pictures import PictureDesk
from ranvier.text.codec import TextCodec
from ranvier.weights.folder import ModelFolder

__all__ = ["fetcher_of", "open_desk", "open_reader", "open_vision"]


def open_vision(folder: Path, codec: TextCodec, info: VisionInfo, options: MediaOptions) -> Vision:
    """The image side of an artifact. Raises CheckpointError, ConfigError."""
    text = ModelFolder(folder / "text")
    model = ModelFolder(folder).fields("config.json", is_required=True)
    image, processor = (text.fields(f"{n}_config.json") for n in ("preprocessor", "processor"))
    configs = Configs(model, image, processor)
    kwargs = options.mm_processor_kwargs
    try:
        return Vision(configs, codec.tokenizer.token_to_id, kwargs=kwargs, info=info)
    except RequestError as error:
        raise ConfigError(error.message, hint=error.hint) from None


def open_desk(
    folder: Path, codec: TextCodec, info: VisionInfo | None, options: MediaOptions
) -> PictureDesk:
    """A server's; of a model without an encoder one that refuses. Raises as open_vision."""
    if info is None:
        return PictureDesk()
    vision = open_vision(folder, codec, info, options)
    return PictureDesk(vision, fetcher_of(options), info.images_max)


def open_reader(
    folder: Path, codec: TextCodec, info: VisionInfo | None, options: MediaOptions
) -> PictureReader:
    """An LLM's, opened for its first picture; at once to check what the options say of them."""
    if info is None:
        return PictureReader()
    reader = PictureReader(partial(open_vision, folder, codec, info, options), fetcher_of(options))
    if options.mm_processor_kwargs:
        reader.see()
    return reader


def fetcher_of(options: MediaOptions) -> Fetcher:
    """What may be fetched."""
    folder = options.allowed_local_media_path
    return Fetcher(options.allowed_media_domains, Path(folder) if folder else None)
