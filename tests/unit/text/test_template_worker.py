"""Templates render in a process that the system ends: loops, memory, C calls that never return."""

from __future__ import annotations

import time

import pytest

from ranvier.core.errors import RequestError
from ranvier.text.template_worker import TemplateProcess

MESSAGES = [{"role": "user", "content": "Hé"}]
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def process():
    process = TemplateProcess(limit_s=0.5)
    yield process
    process.close()


def render(process, source, **variables):
    return process.render(
        source, {"bos_token": "<s>"}, MESSAGES, add_generation_prompt=True, variables=variables
    )


def test_a_template_renders(process):
    source = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ x }}{% endfor %}"
    assert render(process, source, x=3) == "<s>Hé3"


@pytest.mark.parametrize(
    "source",
    [LOOP, "{{ (9 ** 9) ** (9 ** 9) }}", "{% set x = 7 %}{{ (x ** 9999999) ** 9999 }}"],
    ids=["loop", "constant", "c call"],
)
def test_a_template_that_does_not_end_is_ended_and_the_next_one_renders(process, source):
    assert render(process, "ok") == "ok"
    start_s = time.monotonic()
    with pytest.raises(RequestError, match=r"took longer than 0\.5 s"):
        render(process, source)
    assert time.monotonic() - start_s < 5
    assert render(process, "ok") == "ok"


@pytest.mark.parametrize(
    "source",
    ["{{ 'x' * 10**10 }}", "{{ ('x' * 10**8) ~ ('y' * 10**9) }}", "{% if", "{{ messages[9].a.b }}"],
)
def test_too_much_memory_and_faults_are_request_errors(process, source):
    with pytest.raises(RequestError, match="template"):
        render(process, source)
    assert render(process, "ok") == "ok"


def test_what_is_no_plain_data_is_refused(process):
    with pytest.raises(RequestError, match="plain data"):
        render(process, "x", f=object())
