"""Score a free-text answer against the true one, and give the answers that need no look at the picture.

All rules about which answers count as the same are in this file.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

ARTICLES = {"a", "an", "the"}
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
YES_NO = {"y": "yes", "yeah": "yes", "yep": "yes", "true": "yes", "n": "no", "nope": "no", "false": "no"}


def normalise(text: str) -> list[str]:
    """The words of an answer that are compared, in their order; an empty list if there are none.

    - Letters become lower case and lose their accents.
    - Punctuation separates words, except that an apostrophe is removed, and a point or comma between two digits is a
      decimal point.
    - Articles are removed, unless no other word is left.
    - "zero" to "twelve" become digits.
    - An answer that is only "y", "true", "n", "false" or similar becomes "yes" or "no".

    >>> normalise("The left lung, 1,5 cm")
    ['left', 'lung', '1.5', 'cm']
    >>> normalise("TRUE"), normalise("three")
    (['yes'], ['3'])
    """
    letters = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(c for c in letters if not unicodedata.combining(c))
    plain = re.sub(r"(?<=\d)[.,](?=\d)", "\0", re.sub("['’]", "", plain))
    words = [word.replace("\0", ".") for word in re.findall(r"[^\W_]+(?:\0[^\W_]+)*", plain)]
    words = [word for word in words if word not in ARTICLES] or words
    words = [str(NUMBERS.index(word)) if word in NUMBERS else word for word in words]
    return [YES_NO.get(words[0], words[0])] if len(words) == 1 else words


def answer_scores(given: str, truth: str, *, closed: bool) -> dict[str, float | None]:
    """Compare one answer with the true one, after `normalise`.  All scores are in [0, 1], and higher is better.

    Args:
        given: the answer to score.
        truth: the true answer.
        closed: whether the question is a closed one: yes or no, or one of a few choices.

    Returns:
        accuracy: 1 if the words are equal, else 0.  If a closed question's truth is yes or no, only the first word of
            the answer is compared ("yes, on the left" counts as yes).
        closed_accuracy: the accuracy for closed questions; None for open ones.
        open_exact: the accuracy for open questions; None for closed ones.
        open_recall: share of the truth's words that occur in the answer, as in LLaVA-Med (Li et al. 2023); None for
            closed questions.
        bleu1: share of the answer's words that occur in the truth, times the penalty for answers that are too short
            (Papineni et al. 2002, BLEU with single words).

    >>> scores = answer_scores("left lung", "The lung", closed=False)
    >>> scores["accuracy"], scores["open_recall"], scores["bleu1"]
    (0.0, 1.0, 0.5)
    >>> answer_scores("Yes, on the left", "yes", closed=True)["closed_accuracy"]
    1.0
    """
    said = normalise(given)
    true = normalise(truth)
    num_compared = 1 if closed and true in (["yes"], ["no"]) else None
    right = float(said[:num_compared] == true)
    return {
        "accuracy": right,
        "closed_accuracy": right if closed else None,
        "open_exact": None if closed else right,
        "open_recall": None if closed else _num_common(said, true) / max(1, len(true)),
        "bleu1": _bleu1(said, true),
    }


class AnswerPrior:
    """The most frequent training answer to each type of question: a baseline that sees neither picture nor question.

    Args:
        asked: (question type, answer) of at least one training case.  Of equally frequent answers, the first in the
            alphabet is taken.

    >>> prior = AnswerPrior([("organ", "lung"), ("organ", "the lung"), ("side", "left")])
    >>> prior.answer("side"), prior.answer("colour")
    ('left', 'lung')
    """

    def __init__(self, asked: Iterable[tuple[str, str]]) -> None:
        rows = [(kind, " ".join(normalise(answer))) for kind, answer in asked]
        self.overall = _most_frequent(answer for _, answer in rows)
        self.by_type = {kind: _most_frequent(a for k, a in rows if k == kind) for kind in {k for k, _ in rows}}

    def answer(self, kind: str) -> str:
        """The answer to a type of question; for an unknown type the most frequent answer of all."""
        return self.by_type.get(kind, self.overall)


def _most_frequent(answers: Iterable[str]) -> str:
    return min(Counter(answers).items(), key=lambda pair: (-pair[1], pair[0]))[0]


def _num_common(said: list[str], true: list[str]) -> int:
    """Number of words in both; a word counts as often as it occurs in both."""
    return sum((Counter(said) & Counter(true)).values())


def _bleu1(said: list[str], true: list[str]) -> float:
    if not said:
        return 0.0
    penalty = min(1.0, math.exp(1 - len(true) / len(said)))
    return penalty * _num_common(said, true) / len(said)
