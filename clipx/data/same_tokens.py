"""Whether two tokenizers, whatever their names, are one."""

from clipx.data.tokenizer import Tokenizer

WORDS = (
    "a photo",
    "Zebra CROSSING",
    "don't",
    "3.14%",
    "naïve café",
    "&amp; so",
    "日本",
    "🙂",
    "un-believable",
    "a  b",
)
"""What tokenizers treat differently."""


def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers, whatever their names, have one vocabulary and cut some words in the same way.

    Of two lengths of context, the shorter ends or fills up texts earlier; what is before that is compared.
    """
    if one.vocab_size != other.vocab_size:
        return False
    rows, others = (
        [ids_T.tolist() for ids_T in tokens_T.split(lengths_B.tolist())]
        for tokens_T, lengths_B in (one.encode(WORDS), other.encode(WORDS))
    )
    if (shared := min(one.context_length, other.context_length)) == max(one.context_length, other.context_length):
        return rows == others
    return all(
        row == twin or (max(len(row), len(twin)) >= shared and row[: shared - 1] == twin[: shared - 1])
        for row, twin in zip(rows, others, strict=True)
    )
