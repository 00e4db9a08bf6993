"""Does text steer? Whether a sample looks like the real pictures that carry the words it was asked for.

Every sample is put beside the real picture nearest to it, and word w of its caption is a *hit* if that picture's own
caption has w:

    hits(w)   = mean over the samples asked for w of [w in the caption of the nearest real picture]
    chance(w) = share of the real pictures that carry w, what a sample that was not told w would get
    lift      = mean_w hits(w) / mean_w chance(w)

The means over words are plain (macro), so that a word of many captions ("skin", "tone") counts as much as any other. The
lift is a ratio of means: in a mean of ratios one lucky hit of the rarest word would outweigh all the rest.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

STOP_WORDS = frozenset(
    ("a", "an", "and", "as", "at", "by", "for", "from", "in", "is", "of", "on", "or", "the", "to", "with")
)
"""Words that say nothing of what is to be seen. Directions ("up", "left"), numbers and "no" do, and are kept."""

TIE = 1e-6  # cosines closer than this are one: copies of a picture differ by the rounding of float32 features


def words_of(caption: str, exclude: Iterable[str] = ()) -> frozenset[str]:
    """The words of a caption: runs of letters and digits, in lower case, less STOP_WORDS and `exclude`.

    A hyphen parts two words and a possessive 's is dropped; accents stay; there is no stemming ("heart", "hearts").

    >>> sorted(words_of("The rescue worker's helmet: medium-dark skin tone"))
    ['dark', 'helmet', 'medium', 'rescue', 'skin', 'tone', 'worker']
    """
    text = re.sub(r"['’]s\b", "", unicodedata.normalize("NFKC", caption).lower())
    return frozenset(re.findall(r"[^\W_]+", text)) - STOP_WORDS - {word.lower() for word in exclude}


def _checked(features: Any, captions: Any, name: str) -> tuple[np.ndarray, list[str]]:
    """Features of unit length, float32 `[N, D]`, and as many captions."""
    x = np.asarray(features)
    if x.ndim != 2 or 0 in x.shape or isinstance(captions, str) or len(captions) != len(x):
        count = "one text" if isinstance(captions, str) else f"{len(captions)} captions"
        raise ValueError(f"{name} features have shape {x.shape}, with {count}; allowed: [N, D] and N captions, N from 1")
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x).all(1)).sum())
        raise ValueError(f"{bad} of {len(x)} {name} feature vectors hold NaN or inf; mend or drop those pictures")
    for one in captions:
        if not isinstance(one, str):
            raise ValueError(f"a {name} caption is {one!r}, a {type(one).__name__}; allowed: str")
    length = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    # features that are all zero point nowhere: as near to every picture as to any other
    return np.asarray(x / np.maximum(length, np.finfo(np.float64).tiny), np.float32), [str(one) for one in captions]


def _carried(samples: np.ndarray, real: np.ndarray, carries: np.ndarray, k: int, block: int) -> np.ndarray:
    """For samples `[N, D]` the share `[N, W]` of the k nearest of real `[M, D]` that carry each word; carries `[M, W]`.

    All that tie with the k-th count alike, so that the order of the real pictures, or of the sums in a matrix product,
    decides nothing. No more than `block` rows of cosines are held at a time.
    """
    found = []
    for start in range(0, len(samples), block):
        cosine = samples[start : start + block] @ real.T
        least = np.partition(cosine, -k, axis=1)[:, -k, None]
        near = (cosine >= least - TIE).astype(np.float32)
        found.append(near @ carries / near.sum(1, keepdims=True))
    return np.concatenate(found)


def _asked(captions: Sequence[frozenset[str]], words: Sequence[str]) -> np.ndarray:
    """`[N, W]` float32: 1 where caption n has word w."""
    number = {word: i for i, word in enumerate(words)}
    out = np.zeros((len(captions), len(words)), np.float32)
    for row, held in zip(out, captions, strict=True):
        row[[number[word] for word in held if word in number]] = 1
    return out


def _resampled_lift(
    asked: np.ndarray, right: np.ndarray, chance: np.ndarray, captions: Sequence[str], resamples: int, seed: int
) -> float:
    """Standard deviation of the lift when captions are drawn with replacement (Efron 1979): its standard error.

    Captions are drawn and not samples, since draws of one caption are no independent evidence; a word that comes not at
    all in a resample is left out of that one's means, so that the choice of words is part of the error.
    """
    which = np.unique(captions, return_inverse=True)[1]
    count = int(which.max()) + 1
    if count == 1:
        return float("nan")
    of_caption = np.zeros((2, count, asked.shape[1]))
    np.add.at(of_caption[0], which, asked)
    np.add.at(of_caption[1], which, right)
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)  # [resamples, count]
    n, hits = times @ of_caption[0], times @ of_caption[1]  # [resamples, W]
    here = n > 0
    return float(np.std((hits / np.maximum(n, 1)).sum(1) / (here * chance).sum(1), ddof=1))  # no hits where n is 0


def word_report(
    features_of_samples: Any,
    captions_of_samples: Sequence[str],
    features_of_real: Any,
    captions_of_real: Sequence[str],
    k: int = 1,
    min_asked: int = 1,
    exclude: Iterable[str] = (),
    block: int = 512,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """How much oftener than by chance a sample's nearest real picture carries a word of the sample's caption.

    Args:
      features_of_samples: float `[N, D]`, of a network that took no part in training what is judged. Nearest is by their
        cosine: a blurred or pale sample has weaker features in every direction, and by Euclidean distance its nearest
        would be whichever real picture has weak ones too.
      captions_of_samples: N texts, what each sample was asked for; those without a word that is scored are not read.
      features_of_real: float `[M, D]`, by the same network.
      captions_of_real: M texts.
      k: neighbours; a hit is then the share of the k that carry the word. Ties with the k-th count too.
      min_asked: words asked for by fewer samples are not scored.
      exclude: further words that are not scored, besides STOP_WORDS.
      block: samples whose M cosines are held at a time; N x M never is.
      resamples: draws of the bootstrap over captions.
      seed: of these draws.

    Returns: macro-averages over words `word_hits` and `word_chance`, in [0, 1]; their ratio `word_lift` with its
    `word_lift_standard_error` (NaN where there is but one caption); `word_shuffled`, the hits if the same captions were
    dealt out anew to the same samples, on average and exactly: the floor of a model that favours some pictures;
    `word_count`, the words scored; `word_unknown`, those left out since no real caption has them (chance 0); `word_n`, the
    samples read; `word_k`; `word_table`, a dict of word -> (asked, hits, chance), from the word asked for most.

    Raises ValueError for features or captions that do not fit, and where no word can be scored.
    """
    samples, asked_for = _checked(features_of_samples, captions_of_samples, "sample")
    real, carried = _checked(features_of_real, captions_of_real, "real")
    if samples.shape[1] != real.shape[1]:
        raise ValueError(f"real has {real.shape[1]} features, samples {samples.shape[1]}; use one feature function for both")
    if not 1 <= k <= len(real) or min_asked < 1 or block < 1 or resamples < 2:
        raise ValueError(f"k={k}, min_asked={min_asked}, block={block}, resamples={resamples}; allowed: k 1 to {len(real)}, "
                         "min_asked and block from 1, resamples from 2")
    exclude = frozenset(exclude)
    of_samples = [words_of(one, exclude) for one in asked_for]
    of_real = [words_of(one, exclude) for one in carried]
    known = frozenset().union(*of_real)
    times: dict[str, int] = {}
    for word in (word for held in of_samples for word in held):
        times[word] = times.get(word, 0) + 1
    often = sorted((word for word, n in times.items() if n >= min_asked), key=lambda word: (-times[word], word))
    words = [word for word in often if word in known]
    if not words:
        raise ValueError(f"no word is asked for by {min_asked} samples and in a real caption: {len(times)} words asked for, "
                         f"{len(known)} in real captions; mend: more captions, or a lower min_asked")
    asked = _asked(of_samples, words)
    rows = np.flatnonzero(asked.any(1))
    asked, carries = asked[rows], _asked(of_real, words)
    share = _carried(samples[rows], real, carries, k, block)
    right, n = asked * share, asked.sum(0, dtype=np.float64)
    hits, chance = right.sum(0, dtype=np.float64) / n, carries.mean(0, dtype=np.float64)
    texts = [asked_for[row] for row in rows]
    return {
        "word_hits": float(hits.mean()),
        "word_chance": float(chance.mean()),
        "word_shuffled": float(share.mean(0, dtype=np.float64).mean()),
        "word_lift": float(hits.mean() / chance.mean()),
        "word_lift_standard_error": _resampled_lift(asked, right, chance, texts, resamples, seed),
        "word_count": len(words),
        "word_unknown": len(often) - len(words),
        "word_n": len(rows),
        "word_k": k,
        "word_table": {word: (int(n[i]), float(hits[i]), float(chance[i])) for i, word in enumerate(words)},
    }
