"""load and Runtime as a script uses them, on a random checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import dsv3rt
from dsv3rt import Runtime, UserError
from dsv3rt.errors import ContextError, TokenizerError, UsageError
from dsv3rt.generate.sequence import PREFILL_CHUNK
from dsv3rt.testing import preset, random_checkpoint

ROUTER = """
import torch
from dsv3rt import hookimpl

class FirstK(torch.nn.Module):
    def __init__(self, site):
        super().__init__()
        self.k = site.config.num_experts_per_tok
        self.shift = int(site.options.get("shift", 0))
        self.weight = torch.nn.Parameter(torch.empty(site.config.n_routed_experts, site.config.hidden_size))

    def forward(self, x_ND):
        ids_NK = torch.arange(self.k).expand(x_ND.shape[0], -1) + self.shift
        return torch.full(ids_NK.shape, 1 / self.k), ids_NK

@hookimpl
def register_routing(register):
    register("first_k", FirstK)

@hookimpl
def register_routing_observer(register):
    register("note", note)

seen = []

def note(layer, weights, ids):
    seen.append((layer, ids.tolist()))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runtime") / "tiny"
    random_checkpoint(path, preset("tiny"), seed=5)
    return path


@pytest.fixture(scope="module")
def runtime(folder: Path) -> Runtime:
    return dsv3rt.load(folder, compile="off", max_context=256)


def test_logits_are_those_of_every_token(runtime: Runtime) -> None:
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    logits_TV = runtime.logits(ids)
    assert logits_TV.shape == (8, runtime.config.vocab_size) and logits_TV.dtype == torch.float32
    torch.testing.assert_close(runtime.logits(ids[:3]), logits_TV[:3], rtol=1e-3, atol=1e-3)


def test_greedy_follows_the_logits(runtime: Runtime) -> None:
    generation = runtime.generate([7, 8, 9], max_tokens=6, temperature=0, ignore_eos=True)
    ids = [7, 8, 9, *generation.token_ids]
    assert generation.token_ids == runtime.logits(ids)[2:-1].argmax(-1).tolist()
    assert generation.finish_reason == "length" and generation.timings.gen_tokens == 6


def test_a_seed_means_a_text(runtime: Runtime) -> None:
    first, again, other = (
        runtime.generate([1, 2], max_tokens=20, temperature=1.0, seed=seed, ignore_eos=True).token_ids
        for seed in (4, 4, 5)
    )
    assert first == again != other


def test_what_is_cached_is_not_computed_again_and_changes_nothing(folder: Path, runtime: Runtime) -> None:
    prompt = list(range(40))
    fresh = dsv3rt.load(folder, compile="off", max_context=256)
    want = fresh.generate(prompt, max_tokens=5, temperature=0, ignore_eos=True)
    runtime.generate(prompt[:30], max_tokens=5, temperature=0, ignore_eos=True)
    got = runtime.generate(prompt, max_tokens=5, temperature=0, ignore_eos=True)
    assert got.timings.prompt_tokens < 40 == want.timings.prompt_tokens
    assert got.token_ids == want.token_ids


def test_closing_a_stream_stops_the_work(runtime: Runtime) -> None:
    stream = runtime.stream([1, 2, 3], temperature=0, ignore_eos=True)
    next(stream)
    stream.close()
    assert stream.generation.finish_reason == "interrupted"
    assert len(stream.generation.token_ids) == 1
    assert runtime.generate([1, 2, 3], max_tokens=2, temperature=0, ignore_eos=True).finish_reason == "length"


def test_logprobs_are_the_models_own(runtime: Runtime) -> None:
    generation = runtime.generate([5, 6], max_tokens=3, temperature=0, logprobs=4, ignore_eos=True)
    assert generation.logprobs is not None and len(generation.logprobs) == 3
    want = runtime.logits([5, 6])[-1].log_softmax(-1)
    entry = generation.logprobs[0]
    assert entry.logprob == pytest.approx(want.max().item(), abs=1e-3)
    assert len(entry.top) == 4 and entry.top[0][0] == entry.token_id == generation.token_ids[0]


def test_eos_ends_the_answer(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    free = runtime.generate([7, 8, 9], max_tokens=6, temperature=0, ignore_eos=True).token_ids
    monkeypatch.setattr(runtime, "eos_ids", frozenset({free[3]}))
    generation = runtime.generate([7, 8, 9], max_tokens=6, temperature=0)
    assert generation.finish_reason == "stop" and generation.token_ids == free[: free.index(free[3])]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda rt: rt.generate([]), UsageError, "the prompt is empty"),
        (lambda rt: rt.generate([10**6]), UsageError, "token id 1000000 is outside"),
        (lambda rt: rt.generate([-1]), UsageError, "token id -1 is outside"),
        (lambda rt: rt.generate([1.5]), UsageError, "token id 1.5 is outside"),
        (lambda rt: rt.logits([True]), UsageError, "token id True is outside"),
        (lambda rt: rt.generate([1] * 257), ContextError, "the prompt has 257 tokens, the context 256"),
        (lambda rt: rt.generate([1], max_tokens=-1), UsageError, "max_tokens -1 is negative"),
        (lambda rt: rt.generate([1], temperature=-1), UsageError, "temperature"),
        (lambda rt: rt.generate([1], warmth=1), UsageError, "unknown sampling option 'warmth'"),
        (lambda rt: rt.generate([1], logprobs=-1), UsageError, "logprobs -1"),
        (lambda rt: rt.generate("text"), TokenizerError, "no tokenizer"),
        (lambda rt: rt.chat([{"role": "user", "content": "x"}]), TokenizerError, "no "),
    ],
)
def test_bad_input_is_one_line(
    runtime: Runtime, call: Callable[[Runtime], object], error: type[UserError], says: str
) -> None:
    with pytest.raises(error) as raised:
        call(runtime)
    assert says in str(raised.value) and "\n" not in str(raised.value)


def test_open_streams_do_not_disturb_one_another(runtime: Runtime) -> None:
    prompts = [[1, 2, 3], [1, 2, 4, 5], [7]]
    options = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
    alone = [runtime.generate(prompt, **options).token_ids for prompt in prompts]
    streams = [runtime.stream(prompt, **options) for prompt in prompts]
    open_ones = list(streams)
    while open_ones:
        open_ones = [stream for stream in open_ones if next(stream, None) is not None]
    assert [stream.generation.token_ids for stream in streams] == alone


def test_as_many_conversations_as_wanted_stay_cached(folder: Path) -> None:
    runtime = dsv3rt.load(folder, compile="off", max_context=64)
    runtime.conversations.keep = 2
    first, second = [1] * 20, [2] * 20

    def computed(prompt: list[int]) -> int:
        return runtime.generate(
            prompt, max_tokens=1, temperature=0, ignore_eos=True, draft_tokens=0
        ).timings.prompt_tokens

    assert [computed(first), computed(second)] == [20, 20]
    assert [computed([*first, 3]), computed([*second, 3])] == [1, 1]
    assert computed([3] * 20) == 20, "the conversation that rested longest makes room"
    assert computed([*second, 3, 4]) < 20 and computed([*first, 3, 4]) == 22


def test_a_full_context_ends_the_answer(runtime: Runtime) -> None:
    generation = runtime.generate([1] * 250, temperature=0, ignore_eos=True)
    assert generation.finish_reason == "length" and len(generation.token_ids) == 6


def test_a_router_from_a_file_changes_routing_in_the_compiled_model(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "first_k.py"
    file.write_text(ROUTER)
    texts = {
        mode: dsv3rt.load(folder, routing="first_k:shift=2", head="none", plugins=[file], compile=mode, max_context=64)
        .generate([1], max_tokens=8, temperature=0, ignore_eos=True)
        .token_ids
        for mode in ("off", "wait")
    }
    default = dsv3rt.load(folder, compile="off", max_context=64)
    plain = default.generate([1], max_tokens=8, temperature=0, ignore_eos=True).token_ids
    assert texts["off"] == texts["wait"] != plain


def test_observers_watch_by_name(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "observing.py"
    file.write_text(ROUTER)
    runtime = dsv3rt.load(folder, routing="first_k", plugins=[file], observers=["note"], compile="auto", max_context=64)
    runtime.generate([1, 2], max_tokens=1, temperature=0)
    import dsv3rt_file_plugin_observing as plugin  # type: ignore[import-not-found]

    assert plugin.seen and plugin.seen[0][1][0] == list(range(runtime.config.num_experts_per_tok))


def test_a_long_prompt_is_read_in_parts_between_which_it_can_be_given_up(folder: Path) -> None:
    runtime = dsv3rt.load(folder, compile="off", max_context=2048)
    prompt = [5 + i % 90 for i in range(3 * PREFILL_CHUNK)]
    whole = runtime.generate(prompt, max_tokens=4, temperature=0).token_ids
    runtime.generate([1, 2, 3], max_tokens=1, temperature=0)
    stream = runtime.stream(prompt, max_tokens=4, temperature=0)
    parts = [next(stream), next(stream)]
    assert all(not part.text and not part.token_ids for part in parts)
    stream.close()
    assert stream.generation.finish_reason == "interrupted" and stream.generation.token_ids == []
    again = runtime.generate(prompt, max_tokens=4, temperature=0)
    assert again.token_ids == whole and again.timings.prompt_tokens <= PREFILL_CHUNK + 8
