"""What neuronx-cc takes: operators, types and forms, as rules over facts about one operation.

Data and pure predicates; knows nothing of MLIR (build/neuron/lint.py reads modules) and nothing was
run on hardware. Each rule says why it is there: a compiler code of AWS's documentation, or a rule
of this project where a form compiles and goes wrong. An index out of range cannot be seen in a
module: tests with poisoned memory stand in for that rule (EVRF031, EVRF056).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ranvier.targets.neuron.operators import ACCEPTED, CUSTOM_CALLS, DYNAMIC, PROBABLE

__all__ = ["RULES", "OpFact", "Rule", "TensorFact", "Violation", "check"]

ALL = ("inf2", "trn1", "trn2", "trn3")
OUTPUT_BYTES_MAX = 4 * 2**30
TOP_K_MAX = 16384
BITS = {"i1": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64}


@dataclass(frozen=True, slots=True)
class TensorFact:
    """Type of one operand or result, in MLIR's names; None is an unknown dimension."""

    dtype: str
    shape: tuple[int | None, ...] = ()

    @property
    def bytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size or 0
        digits = "".join(c for c in self.dtype.split("E")[0] if c.isdigit())
        return count * BITS.get(self.dtype, int(digits or 32)) // 8

    @property
    def is_integer(self) -> bool:
        return self.dtype != "i1" and self.dtype.startswith(("i", "ui", "si"))


@dataclass(frozen=True, slots=True)
class OpFact:
    """One operation: its name without dialect, its types, and what its form says.

    `form` holds, where the operation has it: target and config (custom_call), trip_count (while;
    None when it is not provable), bodies (names of the operations of its regions), algorithm,
    base_dilations, window_dilations, lhs_dilation, rhs_dilation, window_strides, composite,
    constants (per operand whether it is a constant), is_program_end.
    """

    name: str
    operands: tuple[TensorFact, ...] = ()
    results: tuple[TensorFact, ...] = ()
    location: str = ""
    form: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that must not be. `broken` says what is wrong with an operation, or None."""

    name: str
    ops: tuple[str, ...]
    """Names of the operations that it looks at; empty: all."""
    broken: Callable[[OpFact], str | None]
    code: str
    source: str
    advice: str
    targets: tuple[str, ...] = ALL


@dataclass(frozen=True, slots=True)
class Violation:
    """One operation that breaks one rule."""

    rule: str
    code: str
    op: str
    location: str
    found: str
    advice: str

    def __str__(self) -> str:
        where = f" at {self.location}" if self.location else ""
        return f"{self.code} {self.rule}: {self.op}{where}: {self.found}. {self.advice}"


def check(facts: Iterable[OpFact], compiler_target: str) -> list[Violation]:
    """Every violation, in order. `compiler_target` is neuronx-cc's: inf2, trn1, trn2 or trn3."""
    assert compiler_target in ALL, compiler_target
    rules = [rule for rule in RULES if compiler_target in rule.targets]
    found = []
    for fact in facts:
        for rule in rules:
            if rule.ops and fact.name not in rule.ops:
                continue
            what = rule.broken(fact)
            if what is not None:
                found.append(
                    Violation(rule.name, rule.code, fact.name, fact.location, what, rule.advice)
                )
    return found


def _types(fact: OpFact) -> tuple[TensorFact, ...]:
    return (*fact.operands, *fact.results)


def _any(what: str) -> Callable[[OpFact], str | None]:
    return lambda fact: what


def _dtype(is_bad: Callable[[str], bool]) -> Callable[[OpFact], str | None]:
    return lambda fact: next((t.dtype for t in _types(fact) if is_bad(t.dtype)), None)


def _unknown(fact: OpFact) -> str | None:
    known = ACCEPTED | PROBABLE | DYNAMIC
    return None if fact.name in known else "no known support"


def _dynamic(fact: OpFact) -> str | None:
    if fact.name in DYNAMIC:
        return "a shape that is not static"
    return next((f"shape {t.shape}" for t in _types(fact) if None in t.shape), None)


def _integer(fact: OpFact) -> str | None:
    return next((t.dtype for t in fact.operands[:2] if t.is_integer), None)


def _integer_combine(fact: OpFact) -> str | None:
    """A scatter that overwrites has an empty body."""
    return _integer_data(fact) if fact.form.get("bodies") else None


def _integer_data(fact: OpFact) -> str | None:
    return fact.operands[0].dtype if fact.operands and fact.operands[0].is_integer else None


def _sort_form(fact: OpFact) -> str | None:
    if len(fact.operands) > 1:
        return f"{len(fact.operands)} operands"
    bodies = fact.form.get("bodies", ())
    return None if list(bodies) == ["compare"] else f"a comparator of {', '.join(bodies)}"


def _composite(fact: OpFact) -> str | None:
    name = fact.form.get("composite", fact.name)
    return name if "top_k" in name else None


def _top_k(fact: OpFact) -> str | None:
    if fact.form.get("target") != "AwsNeuronTopK":
        return None
    data, k = fact.operands[0], int(fact.form.get("config") or 0)
    if data.is_integer:
        return f"data of {data.dtype}"
    if len(data.shape) != 2:
        return f"data of rank {len(data.shape)}"
    return None if 0 < k <= TOP_K_MAX else f"k = {k}"


def _custom_call(fact: OpFact) -> str | None:
    target = str(fact.form.get("target"))
    return None if target in CUSTOM_CALLS else f"target {target!r}"


def _variadic(fact: OpFact) -> str | None:
    return f"{len(fact.results)} results" if len(fact.results) > 1 else None


def _reducer(fact: OpFact) -> str | None:
    allowed = {"add", "multiply", "maximum", "minimum", "and", "or"}
    bodies = list(fact.form.get("bodies", ()))
    is_simple = len(fact.results) > 1 or (len(bodies) == 1 and bodies[0] in allowed)
    return None if is_simple else f"a body of {', '.join(bodies)}"


def _window(fact: OpFact) -> str | None:
    if len(fact.results) > 1:
        return f"{len(fact.results)} operands"
    for name in ("base_dilations", "window_dilations"):
        if any(size > 1 for size in fact.form.get(name, ())):
            return name
    return None


def _convolution(fact: OpFact) -> str | None:
    get = {name: any(size > 1 for size in fact.form.get(name, ())) for name in
           ("lhs_dilation", "rhs_dilation", "window_strides")}  # fmt: skip
    if get["lhs_dilation"] and (get["rhs_dilation"] or get["window_strides"]):
        return "lhs_dilation together with rhs_dilation or a stride"
    return None


def _trip_count(fact: OpFact) -> str | None:
    is_static = fact.form.get("trip_count") is not None
    return None if is_static else "a trip count that the module does not fix"


def _shift(fact: OpFact) -> str | None:
    return next((t.dtype for t in fact.operands if t.dtype not in ("i32", "ui32")), None)


def _power(fact: OpFact) -> str | None:
    return None if fact.form.get("constants", (False,))[-1] else "an exponent that is no constant"


def _output(fact: OpFact) -> str | None:
    if not fact.form.get("is_program_end"):
        return None
    large = (f"{t.bytes} bytes" for t in fact.operands if t.bytes > OUTPUT_BYTES_MAX)
    return next(large, None)


DOCS = "AWS, Neuron compiler error codes"
JAX = "AWS, JAX NeuronX known issues"
OPERATORS = "AWS, Neuron XLA operators"
LOGS = "user logs, not in the public index"
OWN = "Ranvier, rules for device code"
RULES: tuple[Rule, ...] = (
    Rule("operator", (), _unknown, "EVRF001", OPERATORS, "Express it by operators of the list."),
    Rule("dynamic-shape", (), _dynamic, "EMOD025", DOCS, "Give every dimension a bucket."),
    Rule("complex", (), _dtype(lambda d: d.startswith("complex")), "EVRF004", DOCS,
         "Compute on real and imaginary parts."),
    Rule("f64", (), _dtype(lambda d: d == "f64"), "ESFH002", DOCS, "Use f32."),
    Rule("int64", (), _dtype(lambda d: d in ("i64", "ui64", "si64")), "EVRF062", DOCS,
         "Use int32: 64-bit integers narrow silently or are refused."),
    Rule("fp8-fnuz", (), _dtype(lambda d: d.startswith("f8") and "FNUZ" in d), "EVRF005", DOCS,
         "Use f8E4M3 or f8E5M2."),
    Rule("fp8-e4m3fn", (), _dtype(lambda d: d == "f8E4M3FN"), "EVRF051", DOCS,
         "Its range is 448, the hardware's 240: rescale and use f8E4M3.",
         ("inf2", "trn1", "trn2")),
    Rule("fp4", (), _dtype(lambda d: d.startswith("f4")), "ESPP047", DOCS, "Use fp8."),
    Rule("int4", (), _dtype(lambda d: d in ("i4", "ui4", "si4", "i2", "ui2")), "RNV004", OWN,
         "In-graph int4 has been miscompiled: unpack when weights are loaded."),
    Rule("integer-dot", ("dot", "dot_general", "convolution"), _integer, "EVRF035", DOCS,
         "Multiply in bf16 or f32: it would run in f32 silently, or be refused."),
    Rule("integer-collective", ("all_reduce", "reduce_scatter"), _integer_data, "EVRF016", DOCS,
         "Reduce in f32: integers are exact to 2^24 only."),
    Rule("integer-scatter", ("scatter",), _integer_combine, "EVRF061", DOCS,
         "Overwrite, or combine in f32."),
    Rule("sort", ("sort",), _any("not supported here"), "EVRF029", LOGS,
         "Bisect over values, or take maxima in turn.", ("trn2", "trn3")),
    Rule("sort-form", ("sort",), _sort_form, "EVRF029", JAX,
         "One operand and one LT, GT, LE or GE compare.", ("inf2", "trn1")),
    Rule("top-k", ("composite", "top_k"), _composite, "EVRF001", LOGS,
         "lax.top_k becomes a sort: peel maxima, or call AwsNeuronTopK."),
    Rule("top-k-call", ("custom_call",), _top_k, "EVRF013", DOCS,
         "Floats [rows, width], k of 1 to 16384 in backend_config, along the last dimension."),
    Rule("custom-call", ("custom_call",), _custom_call, "EHCA005", DOCS,
         "The compiler knows AwsNeuron's targets; callbacks and sharding marks must be gone."),
    Rule("branch", ("case", "if"), _any("a branch on data"), "EUOC002", JAX,
         "Choose in Python when the program is built, or select between both results."),
    Rule("while", ("while",), _trip_count, "EXTP004", JAX,
         "Count from a constant to a constant, or unroll."),
    Rule("variadic-reduce", ("reduce",), _variadic, "EUOC002", JAX,
         "One operand a reduce: argmax is max, compare, iota and min."),
    Rule("reducer", ("reduce",), _reducer, "EVRF001", OPERATORS,
         "Reduce by add, multiply, maximum, minimum, and, or."),
    Rule("reduce-window", ("reduce_window",), _window, "EVRF017", DOCS,
         "One operand, no base or window dilation."),
    Rule("convolution", ("convolution",), _convolution, "EVRF010", DOCS,
         "Dilate one side only, without a stride."),
    Rule("shift", ("shift_right_arithmetic",), _shift, "EVRF022", DOCS, "Shift 32-bit integers."),
    Rule("power", ("power",), _power, "EVRF001", OPERATORS, "Use a constant exponent, or exp."),
    Rule("generator", ("rng", "rng_bit_generator", "rng_uniform"), _any("random numbers"),
         "EVRF006", OWN, "The host draws and passes uniform numbers in."),
    Rule("host", ("infeed", "outfeed", "create_token", "after_all"), _any("the host in a program"),
         "EUOC002", JAX, "Pass data as arguments and results."),
    Rule("output-size", ("return",), _output, "EVRF024", LOGS, "Split the output below 4 GiB."),
)  # fmt: skip
"""Every rule. A later rule does not depend on an earlier one: an operation may break several."""
