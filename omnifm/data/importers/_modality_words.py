"""Find the modality of an image in the words of its questions and answers, e.g. "what is abnormal in the ct scan?".

Measured on VQA-Med 2019: the words name exactly one modality for 96 % of the images.  For 1837 images both the
answers about the modality and the other questions name one; for 1834 of these the two agree.
"""

import re
from collections import Counter
from collections.abc import Iterable

UNKNOWN = "OT"
"""DICOM's code for "other", used if the words name no modality."""
# The order matters, the first match wins: a mammogram is also an x-ray, a PET-CT is also a CT, and an angiogram can be
# made by CT or MR.
WORDS = {
    "MG": r"\bmammo",
    "US": r"\bultrasound|\bsonogra|\bdoppler\b|\bus -|\bus-d\b",
    "PT": r"\bpet\b",
    "NM": r"\bnuclear medicine\b|\bspect\b|\bnm -",
    "RF": r"\bbarium\b|\bupper gi\b|\bsbft\b|\bgastrointestinal image\b|\bgi image\b",
    "CT": r"\bct\b|\bcta\b|\bcat scan\b|\btomograph",
    "MR": r"\bmri?\b|\bmra\b|\bt[12]\b|\bflair\b|\bmagnetic resonance\b",
    "XA": r"\bangiogram\b|\bvenogram\b|\ban -",
    "CR": r"\bx-?rays?\b|\bplain film\b|\bxr\b|\bcxr\b|\bradiograph\b",
}
"""DICOM code -> regular expression of the words that name it, in lower case.  "CR" stands for any plain radiograph."""


def modality_of(pairs: Iterable[tuple[str, str]]) -> str:
    """The DICOM code that most of an image's (question, answer) pairs name, or "OT" if no code has a majority.

    In each pair the answer counts first, and the question only if the answer names no modality.  A question with the
    answer "no" does not name what it asks for ("is this a ct scan?"), but it does name what it presupposes ("was the
    ct scan taken with contrast?").  Questions that contain "not" or start with "can" are ignored.

    >>> modality_of([("what is abnormal in the ct scan?", "a mass"), ("is this an mri?", "no")])
    'CT'
    >>> modality_of([("is this a ct scan?", "no")])
    'OT'
    """
    codes = (_code_of_pair(question.lower(), answer.lower().strip()) for question, answer in pairs)
    votes = Counter(code for code in codes if code)
    (winner, most), (_, second) = [*votes.most_common(2), (UNKNOWN, 0), (UNKNOWN, 0)][:2]
    return winner if most > second else UNKNOWN


def _code_of_pair(question: str, answer: str) -> str:
    """The code that one pair names, or ""."""
    if re.search(r"\bnot\b|^can\b", question):
        return ""
    if answer == "no":
        presupposed = re.findall(r"\b(?:the|this|noncontrast) (\S+)", question)
        return _code_of_text(" ".join(presupposed))
    return _code_of_text(answer) or _code_of_text(question)


def _code_of_text(text: str) -> str:
    """The first code of `WORDS` that the text names, or ""."""
    return next((code for code, words in WORDS.items() if re.search(words, text)), "")
