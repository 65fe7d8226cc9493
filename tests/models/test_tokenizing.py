"""Threads that read prompts at once do not cut and pad each other's: fast tokenizers keep both as state."""

import threading
import time
from typing import Any

import pytest
import stream_pipelines

from diffaccel.models.tokenizing import with_own_tokenizers
from diffaccel.networks.calls import network_for
from diffaccel.realtime.remarks import cut_off


def test_one_prompt_is_read_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = stream_pipelines.sd()
    network, plain = network_for(pipe, 32, 32), pipe.encode_prompt
    inside, most = [0], [0]

    def slow(*args: Any, **kwargs: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.05)
        inside[0] -= 1
        return plain(*args, **kwargs)

    monkeypatch.setattr(pipe, "encode_prompt", slow)
    works = [lambda: network.encode("a cat"), lambda: network.encode("a dog"), lambda: cut_off(pipe, "a heart")]
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_another_thread_may_have_tokenizers_of_its_own() -> None:
    pipe = stream_pipelines.sdxl()
    tokenizers = pipe.tokenizer, pipe.tokenizer_2
    own = with_own_tokenizers(pipe)
    own.tokenizer("a", padding="longest")
    assert own.text_encoder is pipe.text_encoder
    assert pipe.tokenizer is tokenizers[0]
    assert pipe.tokenizer_2 is tokenizers[1]
    assert own.tokenizer is not pipe.tokenizer
    assert own.tokenizer_2 is not pipe.tokenizer_2
    assert own.tokenizer("a cat").input_ids == pipe.tokenizer("a cat").input_ids
