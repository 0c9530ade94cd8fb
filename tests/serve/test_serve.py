"""The server as OpenAI's own client sees it."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from typing import Any

import openai
import pytest
from dsv3rt_serve.app import Server, Settings
from serve_cases import ENDLESS, running

from dsv3rt import Runtime

HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]
STORY: list[Any] = [{"role": "user", "content": "Tell me a story about a fox."}]


def test_a_chat_is_answered_as_the_runtime_answers(client: openai.OpenAI, runtime: Runtime) -> None:
    reply = client.chat.completions.create(model="any", messages=HELLO, temperature=0, max_tokens=20)
    expected = runtime.chat(HELLO, temperature=0, max_tokens=20)
    assert reply.choices[0].message.content == expected.text
    assert reply.choices[0].message.role == "assistant" and reply.model == "mini"
    assert reply.choices[0].finish_reason == expected.finish_reason
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert reply.usage.completion_tokens == len(expected.token_ids)


def test_a_stream_has_the_same_text_and_its_usage(client: openai.OpenAI) -> None:
    options: Any = {"model": "mini", "messages": STORY, "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(**options)
    pieces = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    said = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
    assert "".join(said) == whole.choices[0].message.content and len([word for word in said if word]) > 5
    assert pieces[0].choices[0].delta.role == "assistant"
    assert pieces[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert pieces[-1].usage is not None and whole.usage is not None
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_follow_up_reads_only_what_is_new(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="mini", messages=HELLO, temperature=0, max_tokens=20)
    messages = [*HELLO, {"role": "assistant", "content": first.choices[0].message.content}]
    messages.append({"role": "user", "content": "What is your name?"})
    second = client.chat.completions.create(model="mini", messages=messages, temperature=0, max_tokens=5)
    assert second.usage is not None and second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens
    assert second.usage.prompt_tokens_details.cached_tokens > 3


def test_texts_and_token_ids_are_continued(client: openai.OpenAI, runtime: Runtime) -> None:
    ids = runtime.encode("Once upon a time")
    texts = [
        client.completions.create(model="mini", prompt=prompt, temperature=0, max_tokens=8).choices[0].text
        for prompt in ("Once upon a time", ids)
    ]
    assert texts[0] == texts[1] == runtime.generate(ids, temperature=0, max_tokens=8).text
    pieces = client.completions.create(model="mini", prompt=ids, temperature=0, max_tokens=8, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == texts[0]


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(client: openai.OpenAI, runtime: Runtime, stream: bool) -> None:
    options: Any = {"messages": HELLO, "temperature": 0, "max_tokens": 4, "logprobs": True, "top_logprobs": 3}
    reply = client.chat.completions.create(model="mini", **options, stream=stream)
    replies = list(reply) if stream else [reply]
    entries = [
        entry
        for one in replies
        if one.choices and one.choices[0].logprobs is not None
        for entry in one.choices[0].logprobs.content or []
    ]
    expected = runtime.chat(HELLO, temperature=0, max_tokens=4, logprobs=3).logprobs
    assert expected is not None
    assert [entry.logprob for entry in entries] == pytest.approx([entry.logprob for entry in expected], abs=1e-4)
    assert all(len(entry.top_logprobs) == 3 for entry in entries)
    assert bytes(entries[0].bytes or []).decode() == entries[0].token


def test_stop_strings_seed_and_parts(client: openai.OpenAI) -> None:
    parts: list[Any] = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "Tell me a story "}, {"type": "text", "text": "about a fox."}],
        }
    ]
    options: Any = {"model": "mini", "temperature": 1.0, "seed": 5, "max_tokens": 40}
    whole = client.chat.completions.create(messages=parts, **options).choices[0].message.content
    assert whole == client.chat.completions.create(messages=STORY, **options).choices[0].message.content
    assert whole is not None and "." in whole
    stopped = client.chat.completions.create(messages=STORY, **options, stop=["."]).choices[0]
    assert stopped.message.content == whole.split(".")[0] and stopped.finish_reason == "stop"


def test_answers_come_side_by_side_and_are_those_of_one_alone(client: openai.OpenAI) -> None:
    questions = ["Hello!", "What is 3 + 4?", "Tell me a story about a fox.", "What is a dog?", "Who are you?"]

    def ask(question: str) -> str:
        reply = client.chat.completions.create(
            model="mini", messages=[{"role": "user", "content": question}], temperature=0, max_tokens=40
        )
        return reply.choices[0].message.content or ""

    alone = [ask(question) for question in questions]
    together: dict[str, str] = {}
    threads = [threading.Thread(target=lambda q=q: together.update({q: ask(q)})) for q in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[question] for question in questions] == alone


def test_leaving_ends_the_work(client: openai.OpenAI, server: Server) -> None:
    stream = client.completions.create(model="mini", **ENDLESS, stream=True)
    next(iter(stream))
    assert server.turns.counts[0] == 1
    stream.close()
    deadline = time.monotonic() + 120
    while server.turns.counts[0] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.turns.counts == (0, 0)


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("chat/completions", "{", "not JSON"),
        ("chat/completions", "[]", "JSON object"),
        ("chat/completions", "[" * 100_000, "not JSON"),
        ("chat/completions", {}, "messages must be"),
        ("chat/completions", {"messages": [{"role": "wizard"}]}, "needs a role"),
        ("chat/completions", {"messages": [{"role": "user", "content": 5}]}, "content must be"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "type text"),
        ("chat/completions", {"messages": HELLO, "temperature": "hot"}, "temperature must be a number"),
        ("chat/completions", {"messages": HELLO, "temperature": -1}, "temperature"),
        ("chat/completions", {"messages": HELLO, "max_tokens": 1.5}, "max_tokens must be a whole number"),
        ("chat/completions", {"messages": HELLO, "n": 2}, "n is not supported"),
        ("chat/completions", {"messages": HELLO, "tools": [{"type": "function"}]}, "tools is not supported"),
        ("chat/completions", {"messages": HELLO, "temprature": 1}, "unknown field 'temprature'"),
        ("chat/completions", {"messages": HELLO, "stop": [""]}, "stop must be"),
        ("chat/completions", {"messages": HELLO, "top_logprobs": 2}, "logprobs: true"),
        ("chat/completions", {"messages": HELLO, "stream": "yes"}, "stream must be true or false"),
        ("completions", {"prompt": ["a", "b"]}, "prompt must be one text"),
        ("completions", {"prompt": [10**6]}, "token id 1000000 is outside"),
        ("completions", {"prompt": [5] * 2000}, "the context 1024"),
    ],
)
def test_bad_requests_get_one_line_and_400(server: Server, path: str, body: Any, says: str) -> None:
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(f"{server.url}/v1/{path}", data)  # type: ignore[attr-defined]
    error = json.load(raised.value)["error"]
    assert raised.value.code == 400 and says in error["message"] and "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"


def test_models_health_metrics_and_the_page(client: openai.OpenAI, server: Server) -> None:
    assert [model.id for model in client.models.list()] == ["mini"]
    assert client.models.retrieve("mini").id == "mini"
    for lookup, says in (
        (lambda: client.models.retrieve("maxi"), "there is no model 'maxi' here: it is 'mini'"),
        (lambda: client.embeddings.create(model="mini", input="a"), "Not Found: POST /v1/embeddings"),
    ):
        with pytest.raises(openai.NotFoundError, match=says):
            lookup()
    client.chat.completions.create(model="mini", messages=HELLO, max_tokens=3)

    def get(path: str) -> str:
        with urllib.request.urlopen(server.url + path) as response:  # type: ignore[attr-defined]
            return str(response.read().decode())

    assert json.loads(get("/health")) == {"status": "ok", "open": 0, "waiting": 0}
    metrics = get("/metrics")
    assert 'dsv3rt_requests_total{path="/v1/chat/completions",status="200"}' in metrics
    assert "dsv3rt_generated_tokens_total" in metrics and "dsv3rt_time_to_first_token_seconds_bucket" in metrics
    page = get("/")
    assert "<textarea" in page and "http://" not in page and "https://" not in page, "nothing comes from elsewhere"


def test_the_key_is_asked_for(runtime: Runtime) -> None:
    for server in running(Server(runtime, Settings("mini", api_key="sesame"))):
        base = f"{server.url}/v1"  # type: ignore[attr-defined]
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=base, api_key="wrong", max_retries=0).models.list()
        assert openai.OpenAI(base_url=base, api_key="sesame", max_retries=0).models.list().data
