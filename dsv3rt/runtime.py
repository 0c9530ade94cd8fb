"""load(...) and Runtime: from a checkpoint folder to text.

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsv3rt.assembly import Assembled, AssemblyPlan, build, resolve_plan, without_head
from dsv3rt.chat.prompt import write_prompt
from dsv3rt.chat.reasoning import ReasoningSplitter
from dsv3rt.chat.template import load_chat_format
from dsv3rt.chat.tokenizers import load_tokenizer
from dsv3rt.compile.engine import Engine
from dsv3rt.config import ModelConfig
from dsv3rt.errors import CheckpointError, ContextError, TokenizerError, UsageError
from dsv3rt.generate.answer import Answer
from dsv3rt.generate.conversations import Conversation, Conversations
from dsv3rt.generate.results import Chunk, Generation, Speculation, Timings, peak_rss_bytes
from dsv3rt.generate.sampling import Sampler, SamplingParams
from dsv3rt.generate.sequence import Sequence
from dsv3rt.generate.speculation import Speculator
from dsv3rt.generate.steps import Settled, plain_steps
from dsv3rt.interfaces import ChatFormat, ChecksItself, Quantization, RoutingObserver, Tokenizer, packing_of
from dsv3rt.plugin_manager import Plugins, discover
from dsv3rt.weights.loader import load_weights, of_mtp
from dsv3rt.weights.prefault import Progress
from dsv3rt.weights.source import Checkpoint

Message = Mapping[str, Any]


class Stream:
    """An answer while it comes: iterate for chunks, `close()` to stop the work; `generation` once it has ended."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._chunks = chunks
        self._generation: Generation | None = None

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def close(self) -> None:
        """Stop generating. What came so far is in `generation`, its finish_reason "interrupted"."""
        self._chunks.close()  # type: ignore[attr-defined]

    @property
    def generation(self) -> Generation:
        """The finished answer; reads what is left of the stream first."""
        for _ in self:
            pass
        assert self._generation is not None
        return self._generation


class Runtime:
    """A loaded model. The last answers stay cached (`conversations.keep` of them), so that follow-ups are quick.

    Streams may be open at the same time, each with caches of its own; they must be read from one thread at a time.
    """

    def __init__(
        self,
        folder: Path,
        plan: AssemblyPlan,
        engine: Engine,
        head: nn.Module | None,
        quantization: Quantization,
        plugins: Plugins,
        chat_template: str | None,
        load_s: float,
    ) -> None:
        self.folder = folder
        self.plan = plan
        self.config = plan.config
        self.engine = engine
        self.head: Any = head
        self.quantization = quantization
        self.plugins = plugins
        self.load_s = load_s
        self.generation_config = _read_generation_config(folder)
        self.sampling_defaults = SamplingParams.from_generation_config(self.generation_config)
        self._chat_template = chat_template
        self.conversations = Conversations(self._new_conversation)

    # -- text <-> ids -------------------------------------------------------------------------------------------------

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Read when first needed: a checkpoint without one still continues token ids. Raises TokenizerError."""
        return load_tokenizer(self.folder, self._offers("tokenizer"))

    @functools.cached_property
    def chat_format(self) -> ChatFormat:
        """Read when first needed. Raises TokenizerError."""
        return load_chat_format(self.folder, self._offers("chat_format"), template=self._chat_template)

    @functools.cached_property
    def has_tokenizer(self) -> bool:
        try:
            return self.tokenizer is not None
        except TokenizerError:
            return False

    @functools.cached_property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end an answer, from config.json, generation_config.json and the tokenizer."""
        given = self.generation_config.get("eos_token_id", [])
        ids = {*self.config.eos_token_ids, *(given if isinstance(given, list) else [given])}
        if self.has_tokenizer:
            ids |= self.tokenizer.eos_ids
        return frozenset(token for token in ids if isinstance(token, int))

    def _offers(self, kind: str) -> list[tuple[str, Any]]:
        return [(offer.name, offer.builder) for offer in self.plugins.offers[kind]]

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, with BOS where the checkpoint wants it."""
        return self.tokenizer.encode(text, add_bos=self.tokenizer.add_bos, allow_special=False)

    def render(self, messages: SequenceOf[Message], **options: Any) -> str:
        """The prompt a conversation becomes; the options are the chat format's (tools, template variables)."""
        return self.chat_format.render(messages, **options)

    # -- logits -------------------------------------------------------------------------------------------------------

    def logits(self, token_ids: SequenceOf[int]) -> Tensor:
        """float32 [T, V]: what follows each of `token_ids`. Raises UsageError, ContextError."""
        ids = self._check_ids(token_ids)
        sequence = Sequence(self.engine, len(ids), self.plan.device)
        return sequence.extend(ids, last=None)[0]

    def _check_ids(self, token_ids: SequenceOf[int]) -> list[int]:
        ids = list(token_ids)
        if not ids:
            raise UsageError("the prompt is empty", fix="give at least one token")
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < self.config.vocab_size:
                raise UsageError(
                    f"token id {token!r} is outside 0..{self.config.vocab_size - 1}", fix="correct the ids"
                )
        return ids

    # -- text ---------------------------------------------------------------------------------------------------------

    def generate(self, prompt: str | SequenceOf[int], **options: Any) -> Generation:
        """Continue text or token ids; the options are those of `stream`."""
        return self.stream(prompt, **options).generation

    def stream(
        self,
        prompt: str | SequenceOf[int],
        *,
        max_tokens: int | None = None,
        stop: SequenceOf[str] = (),
        logprobs: int | None = None,
        ignore_eos: bool = False,
        reasoning: ReasoningSplitter | None = None,
        draft_tokens: str | int = "auto",
        **sampling: Any,
    ) -> Stream:
        """Continue text or token ids, piece by piece.

        max_tokens: None means until the context is full. stop: strings that end the answer and are not shown. logprobs:
        how many alternatives a token to report. draft_tokens: how many the head drafts a step, 0 for none, or "auto"
        for as many as pay. sampling: temperature, top_k, top_p, min_p, repetition_penalty, seed;
        what is not given comes from the checkpoint's generation_config.json. Raises UserError.
        """
        ids = self._check_ids(self.encode(prompt) if isinstance(prompt, str) else prompt)
        if isinstance(stop, str):
            stop = (stop,)
        if logprobs is not None and not 0 <= logprobs <= self.config.vocab_size:
            raise UsageError(f"logprobs {logprobs} is outside 0..{self.config.vocab_size}", fix="give a small number")
        room = self.plan.max_context - len(ids)
        if room < 0:
            raise ContextError(
                f"the prompt has {len(ids)} tokens, the context {self.plan.max_context}",
                fix="shorten the prompt or raise -c/--ctx-size",
            )
        if max_tokens is not None and max_tokens < 0:
            raise UsageError(f"max_tokens {max_tokens} is negative", fix="give 0 or more")
        if draft_tokens != "auto" and (type(draft_tokens) is not int or draft_tokens < 0):
            raise UsageError(f"draft_tokens {draft_tokens!r} is not a count", fix='give 0 or more, or "auto"')
        answer = Answer(
            self.tokenizer if stop or self.has_tokenizer else None,
            eos_ids=frozenset() if ignore_eos else self.eos_ids,
            max_tokens=room if max_tokens is None else min(max_tokens, room),
            stop=stop,
            logprobs=logprobs,
        )
        sampler = Sampler(self.sampling_defaults.override(**sampling))
        stream = Stream(iter(()))
        stream._chunks = self._run(stream, ids, answer, sampler, reasoning, draft_tokens)
        return stream

    def chat(
        self,
        messages: SequenceOf[Message],
        *,
        stream: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        tools: SequenceOf[Message] | None = None,
        **options: Any,
    ) -> Any:
        """Answer a conversation ([{"role": "user", "content": ...}, ...]): a Generation, or a Stream if `stream`."""
        prompt = write_prompt(self.tokenizer, self.chat_format, messages, tools=tools, **(template_kwargs or {}))
        splitter = ReasoningSplitter(self.chat_format.reasoning_tags, opened=prompt.thought_open)
        result = self.stream(prompt.token_ids, reasoning=splitter, **options)
        return result if stream else result.generation

    # -- one answer ---------------------------------------------------------------------------------------------------

    def _steps(
        self, sequence: Sequence, speculator: Speculator | None, ids: list[int], sampler: Sampler, drafts: str | int
    ) -> Iterator[list[Settled]]:
        """What is left of the prompt in chunks, each an empty step; then the steps that settle tokens, for ever."""
        left = ids[len(sequence.token_ids) :]
        if speculator is None:
            logits, _ = yield from sequence.reading(left)
            yield from plain_steps(sequence, logits[-1], sampler)
        else:
            logits = yield from speculator.reading(left)
            repeatable = sampler.params.seed is not None and not sampler.params.greedy
            yield from speculator.steps(logits, sampler, speculator.counter(drafts, repeatable=repeatable))

    def _new_conversation(self) -> Conversation:
        sequence = Sequence(self.engine, self.plan.max_context, self.plan.device)
        return Conversation(sequence, Speculator(self.head, sequence) if self.head is not None else None)

    def prepare(self) -> None:
        """Ask for every graph a conversation needs, so that compiling begins before the first question."""
        conversation = self.conversations.take(())
        self.engine.prepare(conversation.sequence.window(1))
        if conversation.speculator is not None and self.engine.mode != "off":
            conversation.speculator.prepare(self.sampling_defaults)
        self.conversations.give_back(conversation)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until everything is as quick as it will be: graphs asked for so far compiled, weights packed. False when
        time ran out."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        if not self.engine.wait(timeout_s):
            return False
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        return packing_of(self.quantization).packed(left)

    @property
    def saved_bytes_per_token(self) -> int:
        """How much less a token reads of the decoder, by now, than its weights take as they are stored."""
        return packing_of(self.quantization).saved_bytes_per_token(self.engine.decoder)

    def _run(
        self, stream: Stream, ids: list[int], answer: Answer, sampler: Sampler, reasoning: Any, drafts: str | int
    ) -> Iterator[Chunk]:
        started = time.perf_counter()
        conversation = self.conversations.take(ids)
        sequence, speculator = conversation.sequence, conversation.speculator if drafts else None
        cached = (sequence if speculator is None else speculator).reuse(ids)
        first = last = started
        thoughts, text = "", ""
        try:
            for chunk in answer.chunks(self._steps(sequence, speculator, ids, sampler, drafts)):
                last = time.perf_counter()
                if len(answer.token_ids) == len(chunk.token_ids):
                    first = last
                if not (chunk.text or chunk.token_ids):
                    if sequence.computed < len(ids):
                        yield chunk
                    continue
                if reasoning is not None:
                    split = reasoning.push(chunk.text)
                    chunk = Chunk(split.text, chunk.token_ids, split.reasoning, chunk.logprobs)
                thoughts, text = thoughts + chunk.reasoning, text + chunk.text
                yield chunk
            if reasoning is not None:
                rest = reasoning.flush()
                thoughts, text = thoughts + rest.reasoning, text + rest.text
                if rest.reasoning or rest.text:
                    yield Chunk(rest.text, (), rest.reasoning)
        finally:
            self.conversations.give_back(conversation)
            computed, generated = len(ids) - cached, len(answer.token_ids)
            ttft, decoding = first - started, last - first
            stream._generation = Generation(
                text=text,
                token_ids=answer.token_ids,
                prompt_token_ids=ids,
                finish_reason=answer.finish_reason,
                timings=Timings(
                    load_s=self.load_s,
                    compile_s=self.engine.compile_s,
                    ttft_s=ttft,
                    prompt_tokens=computed,
                    prompt_tps=computed / ttft if ttft > 0 else 0.0,
                    gen_tokens=generated,
                    gen_tps=(generated - 1) / decoding if generated > 1 and decoding > 0 else 0.0,
                    peak_rss_bytes=peak_rss_bytes(),
                ),
                speculation=Speculation() if speculator is None else speculator.result(),
                plan=self.plan.as_dict(),
                reasoning=thoughts,
                logprobs=answer.logprobs,
            )


def _read_generation_config(folder: Path) -> dict[str, Any]:
    """generation_config.json, {} when there is none. Raises UsageError."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not readable JSON: {error}", fix="download it again or delete it") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{path} does not hold a JSON object", fix="download it again or delete it")
    return raw


def _assemble(
    plan: AssemblyPlan,
    plugins: Plugins,
    source: Checkpoint,
    observers: SequenceOf[RoutingObserver],
    progress: Progress | None,
) -> tuple[Assembled, AssemblyPlan]:
    """Build and load. A head whose weights are missing or damaged costs one line, not the answer."""
    try:
        model = build(plan, plugins, observers)
        roots: dict[str, nn.Module] = {"": model.decoder}
        if model.head is not None:
            roots["model.layers"] = model.head
        load_weights(roots, source, plan.config, device=plan.device, progress=progress)
        if isinstance(model.head, ChecksItself):
            model.head.check()
    except CheckpointError as error:
        if plan.head is None:
            raise
        # if it was the decoder's weights, this raises the same again
        result = _assemble(without_head(plan), plugins, source, observers, progress)
        print(f"no drafting: {error}", file=sys.stderr)
        return result
    return model, plan


def load(
    path: str | Path,
    *,
    attention: str | None = None,
    routing: str | None = None,
    quantization: str | None = None,
    head: str | None = None,
    plugins: SequenceOf[Any] | Plugins = (),
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    cache_dtype: str | torch.dtype | None = None,
    compile: str = "auto",
    max_context: int | None = None,
    chat_template: str | None = None,
    observers: SequenceOf[str] = (),
    progress: Progress | None = None,
) -> Runtime:
    """Load a checkpoint folder in the official layout.

    The slots take "NAME[:key=value,...]"; None is the family's default, head="none" drafts nothing. plugins: files, or
    objects holding hooks, beside the installed ones. compile: auto, full, block, off, or wait (for each graph, and for
    weights to be packed). max_context: tokens, default what config.json allows. chat_template: a jinja2 template, or
    the name of one of the checkpoint's, instead of its own. observers: names of routing observers; they watch the
    uncompiled model. Raises UserError.
    """
    started = time.perf_counter()
    folder = Path(path)
    found = plugins if isinstance(plugins, Plugins) else discover(plugins)
    config = ModelConfig.from_folder(folder)
    plan = resolve_plan(
        config,
        found,
        attention=attention,
        routing=routing,
        quantization=quantization,
        head=head,
        device=device,
        dtype=dtype,
        cache_dtype=cache_dtype,
        max_context=max_context,
    )
    source = Checkpoint(folder, optional=lambda name: of_mtp(name, plan.config))
    watching = [found.find("routing_observer", name).builder for name in observers]
    model, plan = _assemble(plan, found, source, watching, progress)
    found.manager.hook.model_assembled(model=model.decoder, plan=plan)
    packing = packing_of(model.quantization)
    packing.pack([model.decoder, *([] if model.head is None else [model.head])])
    engine = Engine(model.decoder, "off" if watching else compile)
    load_s = time.perf_counter() - started
    runtime = Runtime(folder, plan, engine, model.head, model.quantization, found, chat_template, load_s)
    runtime.prepare()
    if compile == "wait":
        packing.packed()
    return runtime
