"""When two names that people have typed mean the same subject, or the same site."""

import unicodedata


def name_key(typed: str) -> str:
    """What is equal for names that mean the same: neither case, nor blanks, nor the encoding of a letter tell them
    apart. What goes on record is the name as it was typed.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", typed).casefold())
    return " ".join(folded.split())
