"""A tenant that sends far more than its share is the only one that waits for it."""

from tests.support.two_tenants import LOUD, QUIET, both_ways, ratio


def test_a_tenant_that_floods_a_cell_moves_the_first_tokens_of_another_one_little() -> None:
    both = both_ways(share=5.0, times=4.0, seconds=10.0)
    assert ratio(both, 0.5) <= 1.2
    assert ratio(both, 0.99) <= 1.2
    fair, flooded = both["fair"], both["flooded"]
    assert flooded[QUIET].prompt_tokens_per_s >= 0.9 * fair[QUIET].prompt_tokens_per_s
    total = sum([one.prompt_tokens_per_s for one in flooded.values()])
    assert total >= 31_000, "full steps alone would compute about 37,000 tokens a second"
    assert flooded[LOUD].prompt_tokens_per_s >= 0.5 * total, "whatever the quiet one leaves"
