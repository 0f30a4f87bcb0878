"""Which ranks run a model together: legal or not, what it costs, and the devices for it."""

from __future__ import annotations

from ranvier.build.programs import Sizes
from ranvier.build.shard.rank import Parallel, rank_spec
from ranvier.cli.options.settings import Options, say
from ranvier.core.errors import ConfigError
from ranvier.core.limits import LIMITS
from ranvier.models.spec import DecoderSpec
from ranvier.runtime.device import ask_for_cpus
from ranvier.targets.neuron.memory import degree_costs
from ranvier.targets.table import Target

__all__ = ["check_features", "check_parallel", "prepare_devices"]


def prepare_devices(options: Options) -> None:
    """Let this process have a CPU device for each rank; has to come before jax makes devices."""
    parallel = _parallel(options)
    is_cpu = options.device in ("auto", "cpu") and options.target in (None, "cpu")
    if is_cpu:
        ask_for_cpus(parallel.ranks)


def check_parallel(options: Options, spec: DecoderSpec, target: Target) -> Parallel:
    """The ranks that the options ask for; says what they cost. Raises ConfigError."""
    parallel = _parallel(options)
    if parallel.ranks > LIMITS.ranks_max:
        raise ConfigError(
            f"tensor_parallel_size={parallel.tensor} x pipeline_parallel_size={parallel.pipeline} "
            f"are {parallel.ranks} ranks; at most {LIMITS.ranks_max} can be compiled for."
        )
    rank_spec(spec, parallel)
    for line in degree_costs(spec, parallel.tensor):
        say(f"tensor_parallel_size={parallel.tensor}: {line}")
    if options.sequence_parallel and (parallel.tensor == 1 or spec.vision is not None):
        why = (
            "there is one device to cut over" if parallel.tensor == 1 else "the model sees pictures"
        )
        say(f"sequence_parallel changes nothing: {why}")
    if parallel.ranks > 1 and target.platform == "cpu":
        say(
            f"{parallel.ranks} virtual CPU devices of this machine run the model: as correct as "
            "one, and slower; for proving what runs elsewhere"
        )
    if parallel.ranks > 1 and target.name == "cuda":
        say(f"{parallel.ranks} GPUs: this has not been run on hardware yet")
    return parallel


def check_features(sizes: Sizes) -> None:
    """Refuse what is not cut over ranks yet. Raises ConfigError."""
    parallel = sizes.parallel
    if sizes.vision is not None and parallel.pipeline > 1:
        raise ConfigError(
            f"tensor_parallel_size={parallel.tensor} x pipeline_parallel_size={parallel.pipeline}: "
            "pictures over pipeline stages are not supported yet.",
            hint="Give pipeline_parallel_size 1, or go without pictures.",
        )


def _parallel(options: Options) -> Parallel:
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        if getattr(options, name) < 1:
            raise ConfigError(f"{name} must be a positive integer, is {getattr(options, name)}.")
    return Parallel(options.tensor_parallel_size, options.pipeline_parallel_size)
