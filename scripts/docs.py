"""Write the pages under docs/ that are made from the code. One function a page; `--check` compares.

Run: .venv/bin/python scripts/docs.py
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ranvier.cli.options.cluster import ClusterOptions
from ranvier.cli.options.flags import field_docs
from ranvier.cli.options.front import FrontOptions
from ranvier.cli.options.known import ENVIRONMENT, KNOWN
from ranvier.cli.options.settings import Options
from ranvier.core import errors as core_errors
from ranvier.targets.neuron import errors, legality
from ranvier.targets.neuron.config.field import Derived, Field
from ranvier.targets.neuron.config.rules import PLUGIN_RULES, RULES, Rule
from ranvier.targets.neuron.config.table import GROUPS

ROOT = Path(__file__).resolve().parents[1]
NOTE = "<!-- Made by scripts/docs.py: edit the tables in the code, then run it. -->"

CONFIG = """# Options

{note}

Every option has one name. On the command line it is `--max-model-len`, in Python
`LLM(..., max_model_len=...)`, in a file for `--config` `max_model_len: ...` (YAML, dashes too), in
the environment `RANVIER_MAX_MODEL_LEN`. The order is: command line or keyword, config file,
`RANVIER_X`, `VLLM_X` (announced), default. An unknown name is an error that names the nearest.

- Sizes: `4096`, `4k` = 4000, `4K` = 4096, `25.6k` = 25600; also m, g, t and M, G, T.
- Switches: `--enable-prefix-caching`, `--no-enable-prefix-caching`; true or false elsewhere.
- JSON: `--hf-overrides '{{"rope_theta": 5}}'`, or by parts `--hf-overrides.rope_theta 5`; lists
  `--arg.list+ a,b`.

What becomes of vLLM's other options: [vllm-options.md](vllm-options.md).
"""
VLLM_OPTIONS = """# vLLM's other options

{note}

Options of vLLM that have no row in [config.md](config.md).

## Without effect

Accepted with these values and announced; any other value is refused.

"""
ERRORS = """# Errors

{note}

Every failure that Ranvier reports on purpose is one of these; a message says what, the value seen,
the limit and what to do. Commands exit with the code; the server answers with the status, in
OpenAI's envelope.

"""


def config() -> str:
    """docs/config.md: every option."""
    parts = [
        CONFIG.format(note=NOTE),
        "## Engine\n\n" + _options(Options),
        "## Server\n\n" + _options(FrontOptions),
        "## Cluster\n\n" + _options(ClusterOptions),
    ]
    return "\n".join(parts)


def vllm_options() -> str:
    """docs/vllm-options.md: what becomes of vLLM's options that have no field here."""
    effects = [
        (f"`{name}`", "any" if k.accepted is None else ", ".join(map(str, k.accepted)), k.reason)
        for name, k in sorted(KNOWN.items())
        if k.accepted is None or k.accepted
    ]
    refused = [(f"`{n}`", k.reason) for n, k in sorted(KNOWN.items()) if k.accepted == ()]
    variables = [
        (f"`{name}`", f"`{option}`" if option else "no effect", note)
        for name, (option, note) in ENVIRONMENT.items()
    ]
    parts = [
        VLLM_OPTIONS.format(note=NOTE) + _table(("option", "values", "why"), effects),
        "## Refused\n\n" + _table(("option", "why"), refused),
        "## Variables\n\n" + _table(("variable", "option", "note"), variables),
    ]
    return "\n".join(parts)


def error_tree() -> str:
    """docs/errors.md: the tree of core/errors.py."""
    kinds = [getattr(core_errors, name) for name in core_errors.__all__]
    rows = [
        (
            f"`{k.__name__}`",
            f"`{k.__mro__[1].__name__}`",
            str(k.status),
            str(k.exit_code),
            " ".join(inspect.cleandoc(k.__doc__).split("\n\n")[0].split()),
        )
        for k in kinds
    ]
    return ERRORS.format(note=NOTE) + _table(("error", "a kind of", "HTTP", "exit", "when"), rows)


def neuron_config() -> str:
    """docs/neuron-config.md: every field of NeuronConfig and MoENeuronConfig."""
    groups = GROUPS["NeuronConfig"]
    fields = [field for rows in groups.values() for field in rows]
    counts = {
        status: sum(f.status == status for f in fields)
        for status in ("honoured", "satisfied", "refused")
    }
    lines = [
        "# NeuronConfig, field by field", "", NOTE, "",
        f"What becomes of the {len(fields)} fields of NxD Inference's `NeuronConfig` and "
        "`MoENeuronConfig`,",
        "given as `override_neuron_config` ([how](neuron/configuration.md)). The nested sections, "
        "the keys of",
        "vllm-neuron 0.24 and the rules between fields: [here](neuron-config-nested.md).", "",
        f"- **honoured** ({counts['honoured']}): an option of Ranvier takes the value.",
        f"- **satisfied** ({counts['satisfied']}): what it asks for holds whatever the value; a "
        "notice says how.",
        f"- **refused** ({counts['refused']}): only the default may be given; anything else is an "
        "error with this reason.",
    ]  # fmt: skip
    for title, rows in groups.items():
        lines += ["", f"## {title}", "", *_field_table(rows)]
    return "\n".join(lines) + "\n"


def neuron_config_nested() -> str:
    """docs/neuron-config-nested.md: nested sections, the plug-in's keys, the rules."""
    lines = [
        "# Nested sections, plug-in keys and rules", "", NOTE, "",
        "Continues [NeuronConfig, field by field](neuron-config.md).",
    ]  # fmt: skip
    for section, groups in GROUPS.items():
        if section != "NeuronConfig":
            for rows in groups.values():
                lines += ["", f"## `{section}`", "", *_field_table(rows)]
    lines += ["", "## Rules of NeuronConfig", "", *_rule_table(RULES)]
    lines += ["", "## Rules of `neuron_config`", "", *_rule_table(PLUGIN_RULES)]
    return "\n".join(lines) + "\n"


def neuron_troubleshooting() -> str:
    """docs/neuron/troubleshooting.md: what the codes of compiler and runtime mean."""
    return "\n".join(
        [
            "# Troubleshooting by error code", "", NOTE, "",
            "`ranvier doctor` checks a machine, `ranvier plan` sizes before compiling. A failing "
            "compile prints the",
            "lines of this table that match its output. From AWS's documentation and public "
            "issues; not seen on hardware",
            "by us.", "", "## Before anything else", "",
            "| what you see | what to do |", "|---|---|",
            "| no `/dev/neuron0`, no permission on it, `neuron-ls` fails | "
            "`ranvier doctor --target neuron` names the fix |",
            "| it does not fit, or you do not know | `ranvier plan MODEL --instance NAME` |",
            "| it compiles at every start | name one folder with `--artifacts` and start with "
            "`--require-artifacts`: the differing fields are printed |",
            "| answers look wrong | `ranvier accuracy MODEL --reference FILE` |",
            "", "## Codes", "", errors.markdown().rstrip(),
        ]
    ) + "\n"  # fmt: skip


def neuron_legality() -> str:
    """docs/neuron/legality.md: the rules that every program for Neuron is checked against."""
    rows = [
        f"| {rule.name} | {', '.join(f'`{op}`' for op in rule.ops) or 'every'} | "
        f"{'all' if rule.targets == legality.ALL else ', '.join(rule.targets)} | {rule.code} | "
        f"{rule.advice} | {rule.source} |"
        for rule in legality.RULES
    ]
    return "\n".join(
        [
            "# Legality: what a program for Neuron may hold", "", NOTE, "",
            "`ranvier compile --target neuron-...` reads the StableHLO of every program and "
            "refuses what the compiler",
            "would refuse, or get wrong, before the compiler is started. A violation names the "
            "operation, its place (the",
            "path of named scopes), the rule, its code and what to do. The tests lower every "
            "program of every model family",
            "for platform `neuron` and find none; each rule has a small program that it finds.", "",
            "The rules come from AWS's documentation and public issues. No modern list of "
            "operators is public, and nothing",
            "here was run on hardware: `neuronx-cc list-operators --framework XLA` on an "
            "installed compiler is the authority.", "",
            "| rule | operations | targets | code | what to do | source |",
            "|---|---|---|---|---|---|",
            *rows, "",
            "`RNV` codes are Ranvier's own. An index out of range cannot be seen in a program "
            "(EVRF031, EVRF056): padding",
            "writes to a block that nobody reads, and the tests fill unwritten memory with NaN.",
        ]
    ) + "\n"  # fmt: skip


PAGES: dict[str, Callable[[], str]] = {
    "docs/config.md": config,
    "docs/errors.md": error_tree,
    "docs/vllm-options.md": vllm_options,
    "docs/neuron/legality.md": neuron_legality,
    "docs/neuron/troubleshooting.md": neuron_troubleshooting,
    "docs/neuron-config-nested.md": neuron_config_nested,
    "docs/neuron-config.md": neuron_config,
}


def main(arguments: list[str]) -> int:
    """Write every page, or with --check say which are stale; 1 when one is."""
    stale = [name for name, page in PAGES.items() if _text(ROOT / name) != page()]
    for name in stale:
        if "--check" in arguments:
            print(f"{name} is stale: run scripts/docs.py")
        else:
            (ROOT / name).write_text(PAGES[name](), encoding="utf-8")
            print(f"wrote {name}")
    return int(bool(stale) and "--check" in arguments)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _field_table(rows: tuple[Field, ...]) -> list[str]:
    lines = ["| field | type | default | here | how, or why not |", "|---|---|---|---|---|"]
    for field in rows:
        told = field.note
        if field.status == "honoured" and field.option != "buckets":
            told = f"`{field.option}`: {told}"
        cells = (f"`{field.name}`", field.kind, _default(field.default), field.status, told)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _rule_table(rules: tuple[Rule, ...]) -> list[str]:
    lines = ["| keys | rule | what to do |", "|---|---|---|"]
    for rule in rules:
        keys = ", ".join(f"`{key}`" for key in rule.keys)
        limit = re.sub(r" \({(\w+)}\)", "", rule.limit)
        lines.append(f"| {keys} | {limit} | {rule.fix} |")
    return lines


def _default(value: Any) -> str:
    return value.text if isinstance(value, Derived) else f"`{value!r}`"


def _options(kind: Any) -> str:
    docs = field_docs(kind)
    rows = [(f"`{f.name}`", _field_default(f), docs[f.name]) for f in dataclasses.fields(kind)]
    return _table(("option", "default", "meaning"), rows)


def _field_default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "must be given"
    return "–" if field.default in (None, ()) else f"`{field.default}`"


def _table(names: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    lines += [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
