"""The wiring: options to a ready engine and codec. The only module that knows every part."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ranvier.cli.adapters import load_modules, open_adapters
from ranvier.cli.media import open_reader
from ranvier.cli.neuron import explain_nxdi_root, refuse_nxdi_model
from ranvier.cli.options.settings import (
    Options,
    artifact_roots,
    binary_homes,
    cache_artifacts,
    cache_folder,
    given_fields,
    is_writable,
    machine_variables,
    nearest,
    parse_options,
    say,
)
from ranvier.cli.options.speculative import read_speculative
from ranvier.cli.quantisation import neuron_weights, with_scheme
from ranvier.core.config import EngineConfig
from ranvier.core.errors import CheckpointError, ConfigError, DamagedArtifact, TargetError
from ranvier.core.step import Runner, RunnerInfo
from ranvier.core.structured import Matcher, MatcherSource, StructuredOutputsParams
from ranvier.engine.loop import Engine
from ranvier.offline.llm import Offline
from ranvier.text.codec import DEFAULTS, TextCodec
from ranvier.weights.checkpoint import Checkpoint, open_checkpoint
from ranvier.weights.folder import ModelFolder
from ranvier.weights.hub import fetch_hub, is_hub_id
from ranvier.weights.override import OverriddenCheckpoint, TextSource

if TYPE_CHECKING:
    from ranvier.artifact.manifest import ArtifactKey, Manifest
    from ranvier.cli.sizes import Plan
    from ranvier.runtime.runner import DeviceRunner

__all__ = [
    "LLM",
    "binary_flags",
    "ensure_artifact",
    "key_of",
    "load_engine",
    "locate",
    "make_engine",
    "open_codec",
    "open_engine",
    "open_model",
    "open_runner",
    "plan",
]

FLAGS = "--xla_cpu_experimental_ynn_fusion_type="
"""YNN's fusions have given wrong results on CPU in jax 0.10 and 0.11: off, in tests and here."""
TEMPLATE_BYTES_MAX = 2**20
PICTURE_IDS = ("image_token_id", "image_token_index", "boi_token_index")
"""Fields of config.json that name ids of pictures."""

Phases = list[tuple[str, float]]


class LLM(Offline):
    """A model in this process, by vLLM's names: LLM("smollm2-135m", max_model_len=2048)."""

    def __init__(self, model: str, **options: Any) -> None:
        parsed = parse_options({"model": model, **options})
        folder = ensure_artifact(parsed)
        engine, codec = _open(folder, parsed, [])
        pictures = open_reader(folder, codec, engine.runner.info.vision, parsed)
        super().__init__(engine, codec, seed=parsed.seed, pictures=pictures)
        load_modules(self, parsed)

    @classmethod
    def from_engine_args(cls, engine_args: Any) -> LLM:
        """From a dataclass or a mapping of options; fields at their defaults count as not given."""
        return cls(**given_fields(engine_args))


def open_engine(options: Options, phases: Phases) -> tuple[Engine, TextCodec]:
    """Build what is missing, load it, warm it. Appends (phase, seconds) to `phases`."""
    start = time.perf_counter()
    folder = ensure_artifact(options)
    phases.append(("find or build artifact", time.perf_counter() - start))
    return _open(folder, options, phases)


def _grammars(folder: Path, info: RunnerInfo, options: Options) -> MatcherSource:
    """Grammars over the model's tokens; library and tokenizer are loaded at first use."""
    found: list[MatcherSource] = []

    def matcher(params: StructuredOutputsParams) -> Matcher:
        if not found:
            from ranvier.text.grammar import Grammars

            codec = open_codec(folder, info.vocab_size, info.model_len_max, options)
            found.append(Grammars(codec).matcher)
        return found[0](params)

    return matcher


def _open(folder: Path, options: Options, phases: Phases) -> tuple[Engine, TextCodec]:
    engine = load_engine(folder, options, phases)
    start, info = time.perf_counter(), engine.runner.info
    codec = open_codec(folder, info.vocab_size, info.model_len_max, options)
    phases.append(("load tokenizer", time.perf_counter() - start))
    return engine, codec


def load_engine(folder: Path, options: Options, phases: Phases) -> Engine:
    """A warm engine on an artifact. Appends (phase, seconds) to `phases`."""
    return make_engine(open_runner(folder, options, phases), options, folder)


def make_engine(runner: Runner, options: Options, folder: Path) -> Engine:
    """The engine over a warm runner of the artifact in `folder`."""
    is_caching = options.enable_prefix_caching
    if is_caching and runner.info.kv_layout == "contiguous":
        say("prefix caching is off: regions of the contiguous KV layout can't be shared")
        is_caching = False
    asked = read_speculative(options.speculative_config)
    config = EngineConfig(
        max_num_batched_tokens=runner.info.tokens_max,
        enable_prefix_caching=is_caching,
        order="overlapped" if options.async_scheduling else "plain",
        speculation=asked.engine_config() if asked else None,
        adapter_eviction=options.eviction,
        adapter_decay_uses=options.lora_lfu_decay_period,
    )
    engine = Engine(runner, config, adapters=open_adapters(folder, options))
    engine.grammars = _grammars(folder, runner.info, options)
    return engine


def open_runner(folder: Path, options: Options, phases: Phases) -> DeviceRunner:
    """A warm runner, damaged binaries mended. Appends (phase, seconds) to `phases`."""
    from ranvier.artifact.binaries import comes_without_binaries
    from ranvier.artifact.read import read_manifest
    from ranvier.runtime.device import ask_for_cpus
    from ranvier.runtime.load import load_runner

    manifest = read_manifest(folder)
    if manifest.key.target == "cpu":
        ask_for_cpus(manifest.key.ranks)
    _check_cores(manifest.key)
    if comes_without_binaries(manifest):
        return _open_bare(folder, manifest, options, phases)
    try:
        return load_runner(folder, phases)
    except DamagedArtifact as damage:
        if options.require_artifacts:
            raise
        return load_runner(_mend(options, folder, damage), phases)


def _open_bare(folder: Path, manifest: Manifest, options: Options, phases: Phases) -> DeviceRunner:
    """A runner of an artifact without binaries: this device's own are found, or made of StableHLO.

    Binaries that the runtime refuses are made once more. Raises ArtifactError when required.
    """
    from ranvier.build.neuron.binaries import OwnBinaries
    from ranvier.runtime.load import check_missing, load_runner

    check_missing(folder, manifest)
    own = OwnBinaries(folder, manifest, binary_homes(folder), binary_flags())
    start = time.perf_counter()
    unsaved = {} if options.require_artifacts else own.make(say)
    phases.append(("find or compile programs", time.perf_counter() - start))
    try:
        return load_runner(folder, phases, own.store, unsaved)
    except DamagedArtifact as damage:
        if options.require_artifacts or not own.forget(damage.names, say):
            raise
        say(damage.message)
        return load_runner(folder, phases, own.store, own.make(say))


def binary_flags() -> str:
    """The flags that a binary made by this process depends on."""
    return " ".join([FLAGS, machine_variables().get("NEURON_CC_FLAGS", "")]).strip()


def _check_cores(key: ArtifactKey) -> None:
    """Refuse Neuron's variables under which an artifact for it cannot run."""
    from ranvier.targets.neuron.cores import check_cores
    from ranvier.targets.table import find_target

    if find_target(key.target).is_neuron:
        check_cores(
            machine_variables(),
            ranks=key.ranks,
            logical_core_config=key.logical_cores,
        )


def open_codec(
    folder: Path, vocab_size: int, model_len_max: int, options: Options | None = None
) -> TextCodec:
    """The text side of an artifact, with what the options put in its place."""
    text = folder / "text"
    tokenizer_config = json.loads((text / "tokenizer_config.json").read_text())
    generation = json.loads((text / "generation_config.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    ends = config.get("eos_token_id")
    if options is not None:
        generation = _generation(options, generation)
        if options.chat_template is not None:
            tokenizer_config["chat_template"] = _template(options.chat_template)
    if generation.get("eos_token_id") is None and ends is not None:
        generation["eos_token_id"] = ends
    codec = TextCodec(
        (text / "tokenizer.json").read_text(encoding="utf-8"),
        tokenizer_config,
        generation,
        vocab_size=vocab_size,
        model_len_max=model_len_max,
    )
    if "vision_config" in config:
        codec.picture_ids = frozenset(config[name] for name in PICTURE_IDS if name in config)
    changed = codec.default_sampling_params()
    fields = msgspec.to_builtins(changed)
    told = ", ".join(f"{name}={value}" for name, value in fields.items()) or "vLLM's own"
    say(f"default sampling parameters: {told}")
    return codec


def ensure_artifact(options: Options, damaged: Path | None = None) -> Path:
    """The artifact's folder for these options, built when missing; never the one `damaged`."""
    checkpoint = open_model(options)
    planned = plan(options, checkpoint)
    from ranvier.artifact.read import describe_miss, find
    from ranvier.build.build import build_artifact

    key = key_of(checkpoint, planned)
    roots = artifact_roots(options, checkpoint.path)
    for root in roots:
        if (found := find(root, key)) not in (None, damaged):
            assert found is not None
            return found
    if planned.target.is_neuron:
        differing = "; ".join(describe_miss(roots, key))
        raise TargetError(
            f"There is no artifact {key.name} for {planned.target.name} in {roots[-1]}."
            + (f" The nearest differs: {differing}." if differing else ""),
            hint="Make it with `ranvier compile`, which needs no device, by the same options.",
        )
    for line in explain_nxdi_root(roots[-1], options.model):
        say(line)
    if len(roots) > 1:
        say(f"{roots[1]} can't be written to: what is missing there goes to {roots[0]}")
    check_text(checkpoint)
    return build_artifact(
        roots, key, planned.source(checkpoint), planned.sizes, say,
        is_required=options.require_artifacts,
    )  # fmt: skip


def check_text(checkpoint: Checkpoint) -> None:
    """Parse the tokenizer before anything is compiled for the model. Raises CheckpointError."""
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_str(checkpoint.tokenizer_json())
    except CheckpointError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(
            f"{checkpoint.path}: tokenizer.json does not parse: {error}"
        ) from None


def key_of(checkpoint: Checkpoint, planned: Plan) -> ArtifactKey:
    """The key of a planned build."""
    from ranvier.build.build import artifact_key

    return artifact_key(planned.source(checkpoint), planned.sizes, planned.target, FLAGS)


def _mend(options: Options, folder: Path, damage: DamagedArtifact) -> Path:
    """Compile damaged binaries again from their StableHLO, or build everything again."""
    say(damage.message)
    from ranvier.artifact.lock import locked
    from ranvier.artifact.read import read_manifest
    from ranvier.artifact.write import set_aside
    from ranvier.build.rebuild import is_mendable, rebuild_programs

    root = folder.parent if is_writable(folder.parent) else cache_artifacts()
    if is_mendable(damage.names):
        return rebuild_programs(folder, damage.names, root, say)
    if root == folder.parent:
        with locked(root, read_manifest(folder).key, say):
            shutil.rmtree(set_aside(folder))
    return ensure_artifact(options, damaged=folder)


def open_model(options: Options) -> Checkpoint:
    """The model's files, downloaded when they are not here. Raises CheckpointError."""
    memo = cache_folder() / "hashes"
    path = locate(options.model, options.revision, options.download_dir)
    checkpoint = open_checkpoint(path, memo)
    stored = neuron_weights(options, checkpoint, memo)
    checkpoint = stored or checkpoint
    text = None
    if options.tokenizer is not None and options.tokenizer != options.model:
        text = _text_source(options)
    if text is not None or options.hf_overrides:
        checkpoint = OverriddenCheckpoint(checkpoint, options.hf_overrides or {}, text)
    return checkpoint if stored else with_scheme(options, checkpoint)


def plan(options: Options, checkpoint: Checkpoint) -> Plan:
    """The sizes of a build, checked against the memory. Imports jax."""
    set_flags()
    from ranvier.cli.drafting import open_drafting
    from ranvier.cli.parallel import prepare_devices
    from ranvier.cli.sizes import plan_sizes
    from ranvier.models.table import resolve

    prepare_devices(options)
    spec = resolve(checkpoint.config)
    drafting = open_drafting(options, checkpoint, spec, locate, cache_folder() / "hashes")
    return plan_sizes(options, spec, checkpoint, drafting)


def locate(model: str, revision: str | None = None, download_dir: str | None = None) -> Path:
    """A folder, a file, a demo model's file or a hub model's folder. Raises CheckpointError."""
    from ranvier.weights.demo import DEMOS, fetch_demo

    path = Path(model).expanduser()
    if path.exists():
        refuse_nxdi_model(path)
        return path
    if model in DEMOS:
        return fetch_demo(model, cache_folder() / "models", say)
    if is_hub_id(model):
        return fetch_hub(model, revision, download_dir)
    raise CheckpointError(
        f"{model}: no such folder or file, and no demo model.{nearest(model, DEMOS)}",
        hint=f"Demo models: {', '.join(DEMOS)}. Hub models have the form org/name.",
    )


def set_flags() -> None:
    """Put FLAGS into XLA_FLAGS; must come before jax makes a client."""
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAGS not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAGS}".strip()


def _text_source(options: Options) -> TextSource:
    """The model that lends its tokenizer."""
    assert options.tokenizer is not None
    path = locate(options.tokenizer, options.tokenizer_revision, options.download_dir)
    if path.name == "tokenizer.json":
        path = path.parent
    return ModelFolder(path) if path.is_dir() else open_checkpoint(path)


def _generation(options: Options, found: dict[str, Any]) -> dict[str, Any]:
    """The generation config that the options choose, their overrides put in."""
    source = options.generation_config
    if source == "vllm":
        found = {"eos_token_id": found.get("eos_token_id")}
    elif source != "auto":
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"generation_config is {source!r}: not auto, vllm or a folder.")
        found = ModelFolder(folder).fields("generation_config.json", is_required=True)
    changes = options.override_generation_config or {}
    for name in changes:
        if name not in (*DEFAULTS, "eos_token_id"):
            raise ConfigError(
                f"override_generation_config: unknown field {name!r}.{nearest(name, DEFAULTS)}"
            )
    return {**found, **changes}


def _template(named: str) -> str:
    """A template from a file, or as it stands when it holds template syntax."""
    if "{%" in named or "{{" in named:
        return named
    path = Path(named).expanduser()
    if not path.is_file():
        raise ConfigError(f"chat_template: {named}: no such file, and no template by itself.")
    if path.stat().st_size > TEMPLATE_BYTES_MAX:
        raise ConfigError(f"chat_template: {named}: larger than {TEMPLATE_BYTES_MAX} bytes.")
    return path.read_text(encoding="utf-8")
