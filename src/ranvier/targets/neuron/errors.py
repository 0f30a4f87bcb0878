"""The Neuron compiler's and runtime's error codes: what each means and what to do.

One literal table, read by the compile driver, by `ranvier doctor` and by
docs/neuron/troubleshooting.md. Source: AWS Neuron documentation (SDK 2.32) and issues of
aws-neuron-sdk, named SDK#n. Not seen on hardware by us.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["COMPILER", "RUNTIME", "SYMPTOMS", "NeuronCode", "Symptom", "explain", "markdown"]


@dataclass(frozen=True)
class NeuronCode:
    """One cause behind one or more codes."""

    codes: tuple[str, ...]
    cause: str
    fix: str
    name: str = ""
    """The runtime's symbolic name; empty for the compiler's codes."""


@dataclass(frozen=True)
class Symptom:
    """A failure that prints no code: a text to look for."""

    text: str
    cause: str
    fix: str


def _row(codes: str, cause: str, fix: str, name: str = "") -> NeuronCode:
    return NeuronCode(tuple(codes.split()), cause, fix, name)


SMALLER = "Lower max_model_len, max_num_seqs or the largest bucket, or raise tensor_parallel_size"
COMPILER = (
    _row(
        "EOOM001 EOOM002",
        "Inputs, outputs, scratchpad and spills together exceed the core's HBM",
        f"{SMALLER}; `ranvier plan` shows the parts before compiling.",
    ),
    _row(
        "EVRF009 EXSP001",
        "Activations exceed HBM; the KV cache's size is part of the program, so a cache that is "
        "too large does it too",
        "Lower num_gpu_blocks_override, max_model_len or max_num_seqs.",
    ),
    _row("EVRF024", "One output is larger than 4 GB", "Lower max_num_seqs or the largest bucket."),
    _row(
        "EBVF030 EVRF007 EXTP004",
        "The program has too many instructions",
        "Raise tensor_parallel_size, or lower the largest token bucket.",
    ),
    _row(
        "EVRF001 EUOC002",
        "An operator that the target does not have",
        "Ranvier's lint should have refused it: report the program's name; `ranvier compile "
        "--dry-run` lists violations.",
    ),
    _row(
        "EVRF004 EVRF005 EVRF051 EVRF052 ESPP004 ESPP047 ESFH002",
        "A data type that the target does not have",
        "Use bfloat16 or float32, or another target.",
    ),
    _row("EVRF006", "A random generator other than the default", "Report it: draws come from us."),
    _row(
        "EVRF010 EVRF011 EVRF017 EVRF018 EVRF019 EVRF022",
        "A form of convolution, reduce-window or shift that the target does not have",
        "Report the program's name: the lint should have refused it.",
    ),
    _row(
        "EVRF013 EVRF014",
        "Top-k on integers, or with a k or a width beyond the limit",
        "Report the program's name and the vocabulary size.",
    ),
    _row(
        "EVRF016 EVRF035 EVRF060 EVRF061 EVRF062 EVRF063",
        "Integer arithmetic that the target would do in f32, exact only to 2^24, or int64 power",
        "Report it; `--implicit-integer-downcast` permits it where the range is known.",
    ),
    _row("EVRF029", "A sort that the target does not have", "Report the program's name."),
    _row(
        "EVRF031 EVRF056",
        "A constant index out of range, such as a position beyond its table",
        "Check max_model_len against the model's max_position_embeddings.",
    ),
    _row(
        "EVRF015 EVRF059 EVRF065 EHCA005 EHCA015",
        "A custom kernel's file is missing, of another version, or of an unknown name",
        "Build the artifact again with the compiler of this machine.",
    ),
    _row(
        "EVRF064 EMOD025",
        "A shape is invalid or dynamic",
        "Report it: every shape of a program is static.",
    ),
    _row(
        "EARG001 EBIR023",
        "The logical core config is illegal for the target, or a fused MLP is wider than 4096",
        "logical_nc_config must be 1 on inf2 and trn1; raise tensor_parallel_size.",
    ),
    _row(
        "ITEN404 TEN404 F134",
        "Internal compiler error; seen with prefix caching (SDK#1304) and for single buckets "
        "(SDK#1120, SDK#1365)",
        "Change the bucket that failed by one tile or lower -O; report it to AWS.",
    ),
    _row("ILSA902", "An in-place update under a condition", "Report the program's name."),
    _row(
        "F137",
        "The compiler was killed: the host ran out of memory (SDK#1222)",
        "Fewer compile workers, or compile on a larger host: programs need no device.",
    ),
)
RUNTIME = (
    _row(
        "1", "General failure", "Read the lines marked TDRV, NMGR and NRT on stderr.", "NRT_FAILURE"
    ),
    _row(
        "2",
        "The NEFF is bad, a tensor's name or size differs, or there are too few cores",
        "Compile for this target, compiler and runtime: `ranvier doctor` compares versions.",
        "NRT_INVALID",
    ),
    _row(
        "4",
        "An allocation failed; DMA rings take gigabytes too",
        f"Free the cores of other processes. {SMALLER}.",
        "NRT_RESOURCE",
    ),
    _row(
        "5",
        "A step did not end: a hang, or hardware",
        "Raise NEURON_RT_EXEC_TIMEOUT for contexts of 32K and more; see `dmesg`.",
        "NRT_TIMEOUT",
    ),
    _row(
        "6",
        "Hardware error; also reported for a NEFF of another target",
        "Check the artifact's target; else replace the instance.",
        "NRT_HW_ERROR",
    ),
    _row(
        "7 13 14 15",
        "The caller broke the runtime's life cycle, or its queue is full or empty",
        "Report it with the lines before.",
        "NRT_QUEUE_FULL, NRT_UNINITIALIZED, NRT_CLOSED, NRT_QUEUE_EMPTY",
    ),
    _row(
        "9",
        "The program wants more cores than are visible",
        "Compare tensor_parallel_size with NEURON_RT_VISIBLE_CORES and NEURON_RT_NUM_CORES.",
        "NRT_LOAD_NOT_ENOUGH_NC",
    ),
    _row(
        "10",
        "The runtime is too old, or too new, for the compiler",
        "Install the versions that belong together: `ranvier doctor` prints the table.",
        "NRT_UNSUPPORTED_NEFF_VERSION",
    ),
    _row("101", "The core cannot go on", "Restart the process.", "NRT_EXEC_UNIT_UNRECOVERABLE"),
    _row("1002", "An input differs from the program's", "Report it.", "NRT_EXEC_BAD_INPUT"),
    _row(
        "1003",
        "A NaN was made; on trn2 FP8 values beyond 240 become NaN",
        "Rescale FP8 weights to 240, or use bfloat16.",
        "NRT_EXEC_COMPLETED_WITH_NUM_ERR",
    ),
    _row(
        "1004",
        "Logical or parity error",
        "Run again; if it stays, replace the instance.",
        "NRT_EXEC_COMPLETED_WITH_ERR",
    ),
    _row(
        "1005",
        "Another process holds the core",
        "`neuron-ls` names it; end it, or choose others with NEURON_RT_VISIBLE_CORES.",
        "NRT_EXEC_NC_BUSY",
    ),
    _row(
        "1006",
        "A gather or scatter index is out of range",
        "Report it with the program's name: indices are kept in range by construction.",
        "NRT_EXEC_OOB",
    ),
    _row(
        "1200",
        "A collective is stuck",
        "Look at the other ranks first: one of them failed.",
        "NRT_EXEC_HW_ERR_COLLECTIVES",
    ),
    _row(
        "1201 1202 1203",
        "Uncorrectable error of the memory, the core or the DMA engine",
        "Replace the instance.",
        "NRT_EXEC_HW_ERR_HBM_UE, _NC_UE, _DMA_ABORT",
    ),
    _row(
        "1204",
        "A notification queue overflowed",
        "Run again; report it.",
        "NRT_EXEC_SW_NQ_OVERFLOW",
    ),
    _row(
        "1205",
        "A memory error that can be repaired",
        "Reload the driver: `sudo modprobe -r neuron && sudo modprobe neuron`.",
        "NRT_EXEC_HW_ERR_REPAIRABLE_HBM_UE",
    ),
    _row("1206", "The network proxy failed", "Check EFA.", "NRT_NETWORK_PROXY_FAILURE"),
)
SYMPTOMS = (
    Symptom(
        "Got a cached failed neff",
        "An earlier failure, even an interrupted compile, is in the compiler's cache",
        "Add --retry_failed_compilation to NEURON_CC_FLAGS, or empty the cache.",
    ),
    Symptom(
        "Killed",
        "The host ran out of memory while compiling (SDK#1222)",
        "Fewer compile workers, or compile on a larger host.",
    ),
    Symptom(
        "Estimated peak HBM usage",
        "The compiler found after compiling that the program does not fit (SDK#884)",
        "`ranvier plan` says it before.",
    ),
    Symptom(
        "NeuronCore(s) not available",
        "Another process holds the cores",
        "`neuron-ls` names it; end it, or choose others with NEURON_RT_VISIBLE_CORES.",
    ),
)
_COMPILER = {code: row for row in COMPILER for code in row.codes}
_RUNTIME = {code: row for row in RUNTIME for code in row.codes}
_COMPILER_CODE = re.compile(r"(?:NCC_|\[)([A-Z]+\d{3})\b")
_RUNTIME_CODE = re.compile(r"(?:NRT_STATUS|status|status_code)\s*[=:]\s*(\d+)", re.IGNORECASE)


def explain(text: str) -> list[str]:
    """One line for every known code and symptom in a log, in order of first appearance."""
    found: dict[str, int] = {}
    for pattern, table in ((_COMPILER_CODE, _COMPILER), (_RUNTIME_CODE, _RUNTIME)):
        for match in pattern.finditer(text):
            row = table.get(match[1])
            if row is not None:
                line = f"{row.name or match[1]}: {row.cause}. {row.fix}"
                found.setdefault(line, match.start())
    for symptom in SYMPTOMS:
        at = text.find(symptom.text)
        if at >= 0:
            found.setdefault(f"{symptom.text!r}: {symptom.cause}. {symptom.fix}", at)
    return sorted(found, key=found.__getitem__)


def markdown() -> str:
    """The tables of docs/neuron/troubleshooting.md."""
    lines = ["### Compiler (`NCC_...`)", "", "| Code | Cause | What to do |", "|---|---|---|"]
    lines += [f"| {', '.join(row.codes)} | {row.cause} | {row.fix} |" for row in COMPILER]
    lines += ["", "### Runtime (`NRT_STATUS`)", "", "| Code | Name | Cause | What to do |"]
    lines += ["|---|---|---|---|"]
    lines += [f"| {', '.join(r.codes)} | {r.name} | {r.cause} | {r.fix} |" for r in RUNTIME]
    lines += ["", "### Without a code", "", "| Text | Cause | What to do |", "|---|---|---|"]
    lines += [f"| `{row.text}` | {row.cause} | {row.fix} |" for row in SYMPTOMS]
    return "\n".join(lines) + "\n"
