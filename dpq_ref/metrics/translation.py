"""BLEU of translations (Papineni, Roukos, Ward, Zhu, ACL 2002), by sacreBLEU (Post, WMT 2018)."""

from collections.abc import Sequence
from typing import Any


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of a corpus on the words as they stand between white space, from 0 to 100.

    Up to four words, one reference each, case-sensitive, not smoothed: the score that the released code of
    Chen, Li, Sun (ICML 2020) computes on the tokenised files. It is not that of sacreBLEU's own tokenisers.

    Parameters
    ----------
    hypotheses, references : sequence of str, of one length above 0

    Raises
    ------
    ValueError
        If they are not of one length, or empty.
    ModuleNotFoundError
        If `sacrebleu` is not installed.

    Examples
    --------
    >>> round(bleu(["the cat sat on the mat"], ["the cat sat on a mat"]), 2)
    53.73
    """
    if len(hypotheses) != len(references) or not len(references):
        raise ValueError(
            f"{len(hypotheses)} hypotheses for {len(references)} references; it takes one each, and some"
        )
    return _scorer().corpus_score(list(hypotheses), [list(references)]).score


def bleu_signature() -> str:
    """Name the settings of `bleu` and the version of sacreBLEU, as it does itself.

    Raises
    ------
    ModuleNotFoundError
        If `sacrebleu` is not installed.
    """
    scorer = _scorer()
    scorer.corpus_score(["a"], [["a"]])  # it wants to have seen the number of references
    return str(scorer.get_signature())


def _scorer() -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ModuleNotFoundError as error:
        message = "BLEU needs sacrebleu: pip install 'dpq-ref[translation]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    return BLEU(tokenize="none", smooth_method="none", force=True)
