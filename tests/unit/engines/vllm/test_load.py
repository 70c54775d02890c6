"""What a vLLM engine has to do, as routers hear it."""

from armature.engines.vllm.load import LoadBook
from armature.engines.vllm.surface import Stats, StepNews
from armature.scheduling.request import FinishReason, TokenOutput


def test_prompts_come_forward_in_their_order_and_leave_with_their_first_token() -> None:
    book = LoadBook(100)
    book.submitted("a", 100)
    book.submitted("b", 50)
    assert (book.load(0).waiting_seqs, book.load(0).waiting_prefill_tokens) == (2, 150)
    book.stepped(Stats(1, 0.25, step=StepNews(1, 64, 0, 0.1)))
    assert book.load(7)[:6] == (1, 1, 86, 75, 100, 7)
    book.told(TokenOutput("a", 0, (1,)))
    assert book.load(0).waiting_prefill_tokens == 50
    book.told(TokenOutput("b", 0, (1,), FinishReason.STOP))
    book.told(TokenOutput("a", 1, (), FinishReason.CANCELLED))
    assert book.load(0)[:4] == (0, 0, 0, 100)


def test_what_steps_cost_is_fitted_to_what_they_took() -> None:
    """Steps of prompts of 128 tokens that take 0.1 s, and of 8 answers that take 0.02 s."""
    book = LoadBook(100)
    for n in range(80):
        book.submitted(f"{n}", 128)
        book.stepped(Stats(1, 0.5, step=StepNews(1, 128, 0, 0.1)))
        book.told(TokenOutput(f"{n}", 0, (1,), FinishReason.LENGTH))
        book.stepped(Stats(8, 0.5, 1, StepNews(0, 0, 8, 0.02)))
    load = book.load(0)
    assert load.step_costs is not None
    assert 0.08 < load.step_costs.prefill_s(128, 0, 512) < 0.12 and 0.016 < load.decode_step_s < 0.024
    assert (load.computed_prefill_tokens, load.preemptions) == (80 * 128, 80)
