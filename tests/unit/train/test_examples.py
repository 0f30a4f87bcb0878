"""Training data: files of ours survive a cut, users' files are read or refused line by line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ranvier.core.errors import ConfigError
from ranvier.train.examples import (
    Example,
    append_examples,
    count_examples,
    read_data,
    read_examples,
)
from ranvier.train.generate import Chat, fresh, generate_examples
from ranvier.train.prompts import seed_prompts
from ranvier.train.rows import frequent_ids


def encode(text):
    return [ord(c) for c in text]


def chat_ids(messages, is_open):
    text = "".join(f"[{m['role']}]{m['content']}" for m in messages)
    return encode(text + ("[assistant]" if is_open else ""))


def test_prompts_are_equal_for_equal_seeds_and_do_not_repeat():
    first, again, other = seed_prompts(500, 1), seed_prompts(500, 1), seed_prompts(500, 2)
    assert first == again and first != other
    assert len(set(first)) == 500 and first[:100] == seed_prompts(100, 1)
    chats = sum(p.is_chat for p in first)
    assert 200 < chats < 400
    assert all("{" not in p.text for p in first)


def test_more_prompts_than_there_are_repeat_instead_of_hanging():
    found = seed_prompts(200_000, 0)
    assert len(found) == 200_000


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    path = tmp_path / "examples.jsonl"
    append_examples(path, [Example((1, 2, 3), 1), Example((4, 5), 1)])
    with path.open("a") as file:
        file.write('{"start":1,"ids":[7')
    assert count_examples(path) == 2
    append_examples(path, [Example((8, 9), 1)])
    assert [list(e.ids) for e in read_examples(path, 2)] == [[1, 2], [4, 5], [8, 9]]


OPENING = [7, 7, 7]


class Echo:
    """Answers with the prompt's length; behind the opening it writes a user's turn."""

    def __init__(self):
        self.prompts = []

    def generate(self, prompts, params, *, use_tqdm):
        if prompts[0] == {"prompt_token_ids": OPENING}:
            return [Turn(one.seed) for one in params]
        self.prompts += prompts
        return [Answer(p, one.temperature) for p, one in zip(prompts, params, strict=True)]


class Answer:
    def __init__(self, prompt, temperature):
        is_text = isinstance(prompt, str)
        self.prompt_token_ids = [1] * len(prompt) if is_text else prompt["prompt_token_ids"]
        self.outputs = [self]
        self.token_ids = [len(self.prompt_token_ids), int(temperature * 10)]


class Turn:
    """A turn by seed: some say too little, some are cut off, some repeat."""

    def __init__(self, seed):
        self.outputs = [self]
        self.text = "hello" if seed % 5 == 0 else f" what is the number {seed % 400} like? "
        self.finish_reason = "length" if seed % 7 == 0 else "stop"


def test_generation_goes_on_where_it_ended(tmp_path):
    def run(path, llm, count):
        seen = []
        path.parent.mkdir(exist_ok=True)
        chat = Chat(encode, OPENING)
        generate_examples(llm, path, count, tokens_max=8, seed=3, chat=chat, progress=seen.append)
        return sum(seen)

    whole, cut = tmp_path / "whole" / "examples", tmp_path / "cut" / "examples"
    assert run(whole, Echo(), 300) == 300
    run(cut, Echo(), 128)
    late = Echo()
    assert run(cut, late, 300) == 300
    assert len(late.prompts) == 172
    assert cut.read_text() == whole.read_text()


def test_three_of_four_prompts_are_turns_of_the_model_s_own(tmp_path):
    llm = Echo()
    chat = Chat(encode, OPENING)
    generate_examples(
        llm, tmp_path / "examples", 80, tokens_max=8, seed=3, chat=chat, progress=lambda _: None
    )
    texts = [
        "".join(map(chr, p["prompt_token_ids"])) if isinstance(p, dict) else p for p in llm.prompts
    ]
    own = [text for text in texts if text.startswith("what is the number")]
    assert [i for i, text in enumerate(texts) if text in own] == [i for i in range(80) if i % 4]
    assert len(set(own)) == len(own) and not any("hello" in text for text in texts)


def test_a_model_without_a_template_gets_prompts_of_ours_alone(tmp_path):
    llm = Echo()
    generate_examples(
        llm, tmp_path / "examples", 20, tokens_max=8, seed=3, chat=None, progress=lambda _: None
    )
    assert all(isinstance(p, str) for p in llm.prompts) and not list(tmp_path.glob("turns*"))


def test_an_answer_ends_where_it_loops():
    run = list(range(16))
    assert fresh([*run, 99, *run, 5, 6]) == 33
    assert fresh([1] * 40) == 17
    assert fresh(range(100)) == 100


def test_users_data_in_three_forms(tmp_path):
    path = tmp_path / "data.jsonl"
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    lines = [{"messages": chat}, {"prompt": "ab", "completion": "cde"}, {"text": "xyz"}]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    found = list(read_data(path, encode, chat_ids))
    assert found[0].ids == tuple(encode("[user]hi[assistant]yo"))
    assert found[0].start == len("[user]hi[assistant]")
    assert found[1] == Example(tuple(encode("abcde")), 2)
    assert found[2] == Example(tuple(encode("xyz")), 1)


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "not valid JSON"),
        ("[1]", "must be a JSON object, is list"),
        ('{"messages": []}', "holds ['messages']"),
        ('{"prompt": "a"}', "holds ['prompt']"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ConfigError) as raised:
        list(read_data(path, encode, chat_ids))
    assert message in raised.value.message and f"{path}:2" in raised.value.message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such data file"):
        list(read_data(tmp_path / "none", encode, chat_ids))


def test_frequent_ids_are_those_of_the_answers():
    examples = [Example((9, 9, 9, 5, 5, 7), 3), Example((9, 7, 7), 1)]
    assert frequent_ids(examples, 2, 12).tolist() == [5, 7]
    filled = frequent_ids(examples, 4, 12)
    assert filled.tolist() == [0, 1, 5, 7] and filled.dtype == np.int32
