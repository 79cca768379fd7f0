"""Laws of every message that a person reads; `python -m tests.catalogue` prints them all on one page."""

import re

import pytest

from omnifm.data.refusal import REASONS
from tests.catalogue import messages, page

MESSAGES = list(messages())


def test_the_page_holds_refusals_and_errors():
    text = page()
    assert "| `missing_label` | a series for which no mask is found | Run without `--labels` first" in text
    assert "no trained model here. Sites below: {...}" in text
    assert "UNKNOWN_PATIENTS" in text
    assert len(MESSAGES) > 300


@pytest.mark.parametrize("reason", list(REASONS))
def test_a_refusal_says_what_it_means_and_what_to_do(reason):
    meaning, advice = REASONS[reason]
    assert re.fullmatch(r"[a-zA-Z][^\n]*[^.\n]", meaning)
    assert re.fullmatch(r"[A-Z][^\n]*\.", advice)
    assert advice != meaning


def test_no_message_holds_a_machine_path_or_shouts():
    foreign = re.compile("/(home|root|mnt|data|tmp|work)/|!$")
    assert [message for message in MESSAGES if foreign.search(message.text)] == []


def test_a_message_is_one_line():
    errors = [message for message in MESSAGES if message.speaker.endswith(("Error", "Image", "Doubt"))]
    assert [error for error in errors if "\n" in error.text.strip()] == []


def test_a_rule_of_a_value_says_what_it_got():
    """ "x must be y" alone does not say what is wrong: a value, "it is not" or what to do follows."""
    rules = [message for message in MESSAGES if message.speaker == "ValueError" and " must " in message.text]
    assert len(rules) > 100
    assert [rule for rule in rules if not re.search(r"[;:,(]|\{\.\.\.\}", rule.text)] == []
