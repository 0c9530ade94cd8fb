"""Chat templates: byte-equal with transformers, and nothing a hostile template does gets through."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from dsv3rt.chat.template import JinjaFormat, find_templates, load_chat_format, special_tokens
from dsv3rt.errors import TokenizerError

REAL = ("deepseek-v3", "deepseek-r1", "deepseek-v3.1", "deepseek-v2", "deepseek-v2.5", "glm-4.7-flash")

WORDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["<think>\nhm\n</think>\n\nyes", "</think>", "{{ 7*7 }}", "{% raw %}", "<b>&amp;'\"", " a\n\n", ""]
    ),
)
PLAIN = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": WORDS})
THOUGHT = st.fixed_dictionaries({"role": st.just("assistant"), "content": WORDS, "reasoning_content": WORDS})
RESULT = st.fixed_dictionaries({"role": st.just("tool"), "content": WORDS})


def called(arguments: Any) -> st.SearchStrategy[dict[str, Any]]:
    call = st.fixed_dictionaries({
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": st.sampled_from(["f", "get_weather"]), "arguments": arguments}),
    })  # fmt: skip
    calls = st.lists(call, min_size=1, max_size=3)
    return st.fixed_dictionaries({"role": st.just("assistant"), "content": st.none() | WORDS, "tool_calls": calls})


JSON = st.recursive(st.none() | st.booleans() | st.integers() | WORDS, lambda x: st.lists(x, max_size=2), max_leaves=4)
TOOLS = st.none() | st.lists(
    st.fixed_dictionaries({"type": st.just("function"), "function": st.dictionaries(WORDS, JSON, max_size=3)}),
    max_size=2,
)


def outcome(render: Callable[[], str]) -> str | None:
    """What is rendered, or None where the template itself refuses the conversation."""
    try:
        return render()
    except Exception:
        return None


@pytest.mark.parametrize("name", REAL)
def test_byte_equal_with_transformers(name: str, real_folder: Callable[[str], Path]) -> None:
    folder = real_folder(name)
    ours = load_chat_format(folder)
    (source,) = find_templates(folder).values()
    tokens = special_tokens(folder)
    arguments = st.dictionaries(WORDS, JSON, max_size=2) if name.startswith("glm") else WORDS
    message = st.one_of(PLAIN, PLAIN, THOUGHT, RESULT, called(arguments))
    rendered = []

    @settings(max_examples=120, deadline=None)
    @given(st.lists(message, max_size=6), st.booleans(), TOOLS, st.sampled_from([None, True, False]))
    def agree(
        messages: list[dict[str, Any]], prompt: bool, tools: list[dict[str, Any]] | None, thinking: bool | None
    ) -> None:
        kwargs = {} if thinking is None else {"thinking": thinking, "enable_thinking": thinking}

        def theirs() -> str:
            found, _ = render_jinja_template(
                [messages], tools, chat_template=source, add_generation_prompt=prompt, **tokens, **kwargs
            )
            return str(found[0])

        before = json.dumps(messages)
        expected = outcome(theirs)
        rendered.append(expected)
        assert outcome(lambda: ours.render(messages, add_generation_prompt=prompt, tools=tools, **kwargs)) == expected
        assert json.dumps(messages) == before

    agree()
    assert sum(text is not None for text in rendered) > len(rendered) / 3


def test_byte_equal_through_the_whole_of_apply_chat_template(real_folder: Callable[[str], Path]) -> None:
    folder = real_folder("deepseek-v3")
    tokens = special_tokens(folder)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **tokens)
    (theirs.chat_template,) = find_templates(folder).values()
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "2+2?"},
    ]
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert load_chat_format(folder).render(messages) == expected
    assert expected.startswith("<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi")


# ruff: noqa: E501 (a template is easier to judge on one line)
FEATURES = [
    "{% for m in messages %}{% if loop.first %}[{% endif %}{{ loop.index0 }}:{{ m.role }}{{ ', ' if not loop.last }}{% endfor %}]",
    "{% for m in messages %}{{ loop.length }}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{{ loop.revindex }}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% else %}none{% endfor %}",
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content ~ '!' ~ loop.index }}{% endfor %}",
    "{%- for m in messages[::-1] recursive %}{{ loop.depth }}{{ loop.cycle('a', 'b') }}{% endfor -%}",
    "{% generation %}\n  {{ messages | tojson(indent=2) }}\n{% endgeneration %}\n",
    "{% macro f(x, y=2) %}{{ x * y }}{{ caller() if caller }}{% endmacro %}{{ f('ab') }}{% call f(3) %}in{% endcall %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content|length %}{% endfor %}{{ ns.n }}",
    "{{ '%s-%05d' | format('x', 42) }}{{ '%.2f' % 3.14159 }}{{ '{:>5}|{}'.format('a', 1) }}{{ 'a,b'.split(',') | join('+') }}",
    "{{ messages | map(attribute='role') | unique | list }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{% set x %}a{{ 1 + 2 }}b{% endset %}{{ x | upper | replace('A', 'zz') | indent(2, true) }}{{ undefined_thing }}{{ x[1:] }}",
    "{{ {'a': [1, none, true], 'b': 'é<'} | tojson }}{{ dict(a=1).items() | list }}{{ 2 ** 10 }}{{ 7 // 2 }}{{ -7 % 3 }}",
    "{{ bos_token is defined }}{{ messages is iterable }}{{ 'x' is string }}{{ tools is none }}{{ add_generation_prompt }}",
    "   {% if true %}\n   kept\n   {% endif %}\n{#- gone -#}\n  end\n",
    "{{ 1700000000 | tojson }}{{ '%d' % 1700000000 }}{{ {'a': 123456}.get('a') }}{{ '{}'.format(1700000000) }}",
    "{{ 'ab' | trim | title | center(10) }}{{ [3, 1, 2] | sort | first }}{{ 'a\tb'.expandtabs(4) }}{{ (1, 2) + (3,) }}{{ [0] * 3 }}",
    "{{ messages[0].content | default('none') | e }}{{ messages | length }}{{ 'a' in 'abc' }}{{ range(3) | list }}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{% filter upper %}x{% endfilter %}{{ joiner(',')() }}",
]


@pytest.mark.parametrize("source", FEATURES)
def test_the_language_is_the_same(source: str) -> None:
    ours = JinjaFormat({"default": source}, {"bos_token": "<s>"})
    for messages in (
        [{"role": "user", "content": "Hi\n<x>"}],
        [{"role": "system", "content": "S"}, {"role": "user", "content": "ü"}, {"role": "assistant", "content": ""}],
    ):
        expected, _ = render_jinja_template(
            [messages], None, chat_template=source, add_generation_prompt=True, bos_token="<s>"
        )
        assert ours.render(messages) == expected[0]


def test_strftime_now() -> None:
    text = JinjaFormat({"default": "{{ strftime_now('%Y-%m-%d') }}"}, {}).render([])
    assert len(text) == 10 and text[4] == "-"


HOSTILE = [
    # Out of the sandbox.
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('id') }}",
    "{{ messages.append({'role': 'user'}) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ (messages | attr('__class__')).mro() }}",
    "{{ namespace.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('id') }}",
    "{{ open('/etc/passwd').read() }}",
    # For ever.
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% if loop.last %}x{% endif %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{{ f(n - 1) }}{{ f(n - 1) }}{% endmacro %}{{ f(100) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ range(999999999) | list }}",
    "{% for a in range(1000000) %}{% endfor %}",
    # Endless memory.
    "{{ 'a' * 10000000000 }}",
    "{{ 10000000000 * 'a' }}",
    "{{ ['a'] * 10000000000 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{% set ns = namespace(n=3) %}{% for i in range(90) %}{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
    "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s.replace('x', 'xx') %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s | replace('x', 'xx') %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = '{}{}'.format(ns.s, ns.s) %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s.join(['', ns.s, '']) %}{% endfor %}",
    "{% set ns = namespace(l=['x']) %}{% for i in range(99) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    "{% set ns = namespace(l=['x']) %}{% for i in range(99) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | tojson }}",
    "{% set ns = namespace(l=['x']) %}{% for i in range(99) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ 'a' ~ ns.l }}",
    "{{ 'a' | center(1000000000) }}",
    "{{ 'a'.ljust(1000000000) }}",
    "{{ 1.5 | round(1000000000, 'ceil') }}",
    "{{ [1] | batch(1000000000, 'x') | list }}",
    "{{ 'a'.encode().ljust(1000000000) }}",
    "{{ (1).to_bytes(1000000000, 'big') }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "{{ [[1] * 9000] * 9000 | tojson(indent=99999) }}",
    "{{ 'x'.translate({120: 'a' * 100000}) }}",
    "{{ strftime_now('%999999999Y') }}",
    "{% for i in range(9999) %}" + "y" * 99_999 + "{% endfor %}",
    # Simply wrong.
    "{% if %}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ messages.nope.nope }}",
    "{{ 1 + 'a' }}",
    "{{ 1 / 0 }}",
    "{{ raise_exception('roles must alternate\nreally') }}",
    "x" * 1_000_001,
]  # fmt: skip


@pytest.mark.parametrize("source", ["{{ raise_exception.__globals__ }}", "{{ '{0.__class__}'.format(messages) }}"])
def test_what_is_private_is_empty(source: str) -> None:
    assert JinjaFormat({"default": source}, {}).render([]) == ""


@pytest.mark.parametrize("source", HOSTILE, ids=lambda source: source[:60])
def test_hostile_templates_are_refused_in_one_line(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv3rt.chat.sandbox.SECONDS", 0.3)
    with pytest.raises(TokenizerError) as caught:
        JinjaFormat({"default": source}, {}).render([{"role": "user", "content": "Hi"}])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_long_honest_conversation_is_within_the_limits(real_folder: Callable[[str], Path]) -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"{i} " + "word " * 400} for i in range(400)]
    text = load_chat_format(real_folder("deepseek-r1")).render(messages)
    assert len(text) > 800_000


def test_a_refusal_leaves_the_format_usable() -> None:
    ours = JinjaFormat({"default": "{% if messages|length > 1 %}{{ 1 / 0 }}{% endif %}ok"}, {})
    with pytest.raises(TokenizerError, match="division by zero"):
        ours.render([{}, {}])
    assert ours.render([{}]) == "ok"


def test_several_threads() -> None:
    ours = JinjaFormat({"default": "{% for m in messages %}{{ m.content }}{% endfor %}"}, {})
    wrong = []

    def work(name: str) -> None:
        for _ in range(50):
            if ours.render([{"content": name}] * 20) != name * 20:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def test_where_templates_are_found(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="dsv3rt generate"):
        load_chat_format(tmp_path)
    write(tmp_path, tokenizer_config__json={"chat_template": "config", "bos_token": {"content": "<s>"}})
    assert load_chat_format(tmp_path).render([]) == "config"
    write(tmp_path, chat_template__json={"chat_template": "json"})
    assert load_chat_format(tmp_path).render([]) == "json"
    write(tmp_path, chat_template__jinja="jinja {{ bos_token }}")
    assert load_chat_format(tmp_path).render([]) == "jinja <s>"
    assert load_chat_format(tmp_path, template="own {{ bos_token }}").render([]) == "own <s>"


def test_several_named_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    write(tmp_path, tokenizer_config__json={"chat_template": named})
    ours = load_chat_format(tmp_path)
    assert ours.render([]) == "plain" and ours.render([], tools=[{}]) == "tools"
    assert load_chat_format(tmp_path, template="tool_use").render([]) == "tools"
    with pytest.raises(TokenizerError, match="default, tool_use"):
        load_chat_format(tmp_path, template="nope")
    write(tmp_path, tokenizer_config__json={"chat_template": [{"name": "rag", "template": "x"}]})
    with pytest.raises(TokenizerError, match="no default: rag"):
        load_chat_format(tmp_path).render([])


def test_the_caller_may_override_tokens_and_add_variables() -> None:
    ours = JinjaFormat({"default": "{{ bos_token }}{{ mood }}"}, {"bos_token": "<s>"})
    assert ours.render([], mood="!") == "<s>!"
    assert ours.render([], bos_token="<t>") == "<t>"


def test_reasoning_tags(real_folder: Callable[[str], Path]) -> None:
    assert load_chat_format(real_folder("deepseek-r1")).reasoning_tags == ("<think>", "</think>")
    assert load_chat_format(real_folder("glm-4.7-flash")).reasoning_tags == ("<think>", "</think>")
    assert load_chat_format(real_folder("deepseek-v3")).reasoning_tags is None


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"{{"])
def test_an_unreadable_template_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"--chat-template-file|another file"):
        load_chat_format(tmp_path)


def test_messages_that_are_no_json_are_refused() -> None:
    with pytest.raises(TokenizerError, match="no JSON"):
        JinjaFormat({"default": "x"}, {}).render([{"content": object()}])


def test_plugins_are_asked_first(tmp_path: Path) -> None:
    write(tmp_path, chat_template__jinja="built in")
    own = JinjaFormat({"default": "own"}, {})
    assert load_chat_format(tmp_path, [("no", lambda folder: None), ("own", lambda folder: own)]) is own
