"""Draft logits against transformers' own MTP model, which settles input order, which hidden state is passed, positions.

Legend: T rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dsv3rt_mtp.graphs import GreedyDraft
from transformers import DeepseekV3ForCausalLM
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

from dsv3rt.interfaces import DraftRule
from dsv3rt.runtime import Runtime


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int, int], tuple[Any, Any]]:
    """(main model, MTP model) of transformers; its loader ignores layer 61 by name, so it is told ours."""

    def load(folder: Path, layers: int, modules: int) -> tuple[Any, Any]:
        mine = [rf"model\.layers\.{layers + d}\..*" for d in range(modules)]
        monkeypatch.setattr(DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", mine)
        main = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        return main, MtpModel.from_pretrained(main).eval()

    return load


@pytest.mark.parametrize("modules", [1, 2])
@torch.inference_mode()
def test_draft_logits_are_those_of_transformers(
    modules: int, make_runtime: Callable[..., Runtime], reference: Callable[[Path, int, int], tuple[Any, Any]]
) -> None:
    runtime = make_runtime(modules=modules)
    main, mtp = reference(runtime.folder, runtime.config.num_hidden_layers, modules)
    ids = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32, 38, 46, 26, 43, 38, 32, 7, 9]
    out = main(torch.tensor([ids]), output_hidden_states=True)
    newest = int(out.logits[0, -1].argmax())
    after = torch.tensor([[*ids[1:], newest]])
    tokens, logits, _ = mtp(
        input_ids=after,
        last_hidden_states=out.hidden_states[-1],
        attention_mask=None,
        position_ids=torch.arange(1, len(ids) + 1)[None],
        mtp_cache=MtpCache(config=main.config.get_mtp_config()),
    )

    decoder, head = runtime.engine.decoder, runtime.head
    positions = torch.arange(len(ids))[None]
    hidden = decoder.hidden(torch.tensor([ids]), positions, decoder.make_caches(64, torch.device("cpu")))
    normed, newest_1 = head.norm(hidden), torch.tensor([len(ids) - 1])
    mine: list[torch.Tensor] = []
    for depth, cache in enumerate(head.make_caches(64, torch.device("cpu"))):
        rows = GreedyDraft(head, depth).rows(after, normed, positions, newest_1, cache)
        normed = rows[3]
        mine.append(rows[0])
        after = torch.cat([after[:, 1:], rows[0].argmax(-1, keepdim=True)], dim=1)
    torch.testing.assert_close(torch.stack(mine, dim=1), logits, rtol=1e-4, atol=1e-4)
    assert [int(logits_BV.argmax()) for logits_BV in mine] == tokens[0].tolist()


@pytest.mark.parametrize("modules", [1, 2])
@torch.inference_mode()
def test_drafts_keep_equal_while_a_session_goes_on(
    modules: int, make_runtime: Callable[..., Runtime], reference: Callable[[Path, int, int], tuple[Any, Any]]
) -> None:
    """After every step, with accepted and rejected drafts behind it, as if the text had been read afresh."""
    runtime = make_runtime(modules=modules, vocab_size=16)
    main, mtp = reference(runtime.folder, runtime.config.num_hidden_layers, modules)
    decoder, head = runtime.engine.decoder, runtime.head
    session = head.start(128, torch.device("cpu"), runtime.engine.graph)
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(0, 16, (60,), generator=generator).tolist()
    hidden_TD = decoder.hidden(torch.tensor([text]), torch.arange(len(text))[None])[0]
    done = 0
    for size in (9, 1, 3, 1, 1, 2, 4, 1):
        # rows past the settled ones stand for rejected drafts
        session.observe(text[done + 1 : done + size + 1], hidden_TD[done : done + size + 2], done)
        done += size
        drafts = session.draft(modules, DraftRule())
        out = main(torch.tensor([text[:done]]), output_hidden_states=True)
        expected, _, _ = mtp(
            input_ids=torch.tensor([text[1 : done + 1]]),
            last_hidden_states=out.hidden_states[-1],
            attention_mask=None,
            position_ids=torch.arange(1, done + 1)[None],
            mtp_cache=MtpCache(config=main.config.get_mtp_config()),
        )
        assert list(drafts.token_ids) == expected[0].tolist()
