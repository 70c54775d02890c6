"""The runner's tokens against transformers' own `generate` on the same weights, in float32."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from armature.engines.torch.runner import TorchRunner
from armature.scheduling.plan import Slice, StepPlan
from tests.support.models import KINDS
from tests.support.stepping import Driver, next_token, output

TOKENS = 24
LENGTHS = (7, 33, 64, 150)

Runners = Callable[..., TorchRunner]


def prompts() -> list[list[int]]:
    numbers = torch.Generator().manual_seed(1)
    return [torch.randint(3, 512, (length,), generator=numbers).tolist() for length in LENGTHS]


@pytest.fixture(scope="session")
def expected(checkpoint: Callable[[str], Path]) -> Callable[[str], list[list[int]]]:
    """What `generate` answers to each prompt, alone."""
    answers: dict[str, list[list[int]]] = {}

    def of(kind: str) -> list[list[int]]:
        if kind not in answers:
            model = AutoModelForCausalLM.from_pretrained(checkpoint(kind), attn_implementation="sdpa")
            model.generation_config.eos_token_id = None
            answers[kind] = [
                model.generate(
                    torch.tensor([one]), attention_mask=torch.ones(1, len(one)), max_new_tokens=TOKENS, do_sample=False
                )[0, len(one) :].tolist()
                for one in prompts()
            ]
        return answers[kind]

    return of


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_answers_as_generate_does_to_each_prompt_alone(kind, make_runner: Runners, expected) -> None:
    driver = Driver(make_runner(kind))
    sequences = [driver.sequence(prompt, room=TOKENS) for prompt in prompts()]
    driver.step(*[Slice(one, 0, len(one.token_ids), samples=True) for one in sequences])
    driver.decode(sequences, TOKENS - 1)
    assert [output(one) for one in sequences] == expected(kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [50, 16, 1])
def test_a_prompt_in_chunks_is_answered_as_in_one_piece(kind, chunk, make_runner: Runners, expected) -> None:
    driver = Driver(make_runner(kind))
    assert [driver.generate(prompt, TOKENS, chunk=chunk) for prompt in prompts()[:3]] == expected(kind)[:3]


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_that_join_running_ones_change_no_answer(kind, make_runner: Runners, expected) -> None:
    driver = Driver(make_runner(kind))
    sequences = [driver.sequence(prompt, room=TOKENS) for prompt in prompts()]
    started: list = []
    for one in sequences:
        for start in range(0, len(one.token_ids), 40):
            count = min(40, len(one.token_ids) - start)
            last = start + count == len(one.token_ids)
            # Prefill slices stand before and between running ones: the order of a plan is the order of its answers.
            driver.step(*map(next_token, started[:1]), Slice(one, start, count, last), *map(next_token, started[1:]))
            if last:
                started.append(one)
                break
    for one in sequences:
        driver.decode([one], TOKENS - len(output(one)))
    assert [output(one)[:TOKENS] for one in sequences] == expected(kind)


def test_a_sequence_over_the_blocks_of_another_needs_no_prefill_of_them(make_runner: Runners, expected) -> None:
    driver = Driver(make_runner())
    prompt = prompts()[3]
    first = driver.sequence(prompt)
    driver.prefill(first)
    second = driver.sequence(prompt)
    second.block_ids[:8] = first.block_ids[:8]
    driver.prefill(second, start=128)
    driver.decode([first, second], TOKENS - 1)
    assert output(second) == output(first) == expected("llama")[3]


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_copied_into_another_runner_answer_the_same(kind, make_runner: Runners, expected) -> None:
    source, target = Driver(make_runner(kind)), Driver(make_runner(kind))
    target.free.reverse()
    prompt = prompts()[3]
    computed, received = source.sequence(prompt), target.sequence(prompt)
    source.prefill(computed)
    assert computed.block_ids[:9] != received.block_ids[:9]
    target.runner.memory.write(received.block_ids[:9], source.runner.memory.read(computed.block_ids[:9]))
    target.prefill(received, start=144)
    target.decode([received], TOKENS - 1)
    assert output(received) == expected(kind)[3]
    assert source.runner.info.kv_fingerprint == target.runner.info.kv_fingerprint


def test_a_corrupted_block_changes_the_answer(make_runner: Runners, expected) -> None:
    driver = Driver(make_runner())
    sequence = driver.sequence(prompts()[3])
    driver.prefill(sequence, chunk=100)
    memory = driver.runner.memory
    damaged = torch.frombuffer(bytearray(memory.read([sequence.block_ids[2]])), dtype=torch.float32) * -3
    memory.write([sequence.block_ids[2]], damaged.numpy().tobytes())
    driver.runner.forget(sequence.request.request_id)
    driver.decode([sequence], TOKENS - 1)
    assert output(sequence) != expected("llama")[3]


def test_a_preempted_sequence_goes_on_over_other_blocks(make_runner: Runners, expected) -> None:
    driver = Driver(make_runner())
    sequence = driver.sequence(prompts()[1], room=TOKENS)
    driver.prefill(sequence)
    driver.decode([sequence], 9)
    taken = sequence.block_ids
    sequence.block_ids = [driver.free.pop() for _ in taken]
    other = driver.sequence(prompts()[2])
    other.block_ids[: len(taken)] = taken
    driver.prefill(other)
    driver.prefill(sequence)
    driver.decode([sequence], TOKENS - 11)
    assert output(sequence) == expected("llama")[1]


def test_steps_without_samples_or_slices_return_nothing(make_runner: Runners) -> None:
    driver = Driver(make_runner())
    assert driver.step() == []
    assert driver.step(Slice(driver.sequence(prompts()[1]), 0, 20, samples=False)) == []


def test_a_plan_opens_and_seals_digests(make_runner: Runners) -> None:
    runner = make_runner()
    runner.execute(StepPlan((), sealed=((3, b"a" * 16), (5, b"b" * 16))))  # type: ignore[arg-type]
    assert runner.memory.digests([5, 3, 4]) == [b"b" * 16, b"a" * 16, bytes(16)]
    runner.execute(StepPlan((), opened=(3,)))
    runner.open_blocks([5])
    assert runner.memory.digests([3, 5]) == [bytes(16)] * 2


def test_computing_leaves_digests_alone(make_runner: Runners) -> None:
    driver = Driver(make_runner())
    everything = list(range(driver.runner.info.num_blocks))
    driver.runner.execute(StepPlan((), sealed=tuple((block, bytes([block]) * 16) for block in everything)))
    driver.generate(prompts()[3], 8, chunk=40)
    assert driver.runner.memory.digests(everything) == [bytes([block]) * 16 for block in everything]


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_answers_are_likely_ones(kind, make_runner: Runners, checkpoint) -> None:
    driver = Driver(make_runner(kind, dtype="bfloat16"))
    prompt = prompts()[2]
    answer = driver.generate(prompt, 8, chunk=30)
    model = AutoModelForCausalLM.from_pretrained(checkpoint(kind))
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    behind = logits.amax(-1) - logits.gather(-1, torch.tensor(answer)[:, None])[:, 0]
    assert float(behind.max()) < 0.2
