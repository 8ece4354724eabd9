"""Character n-gram language model in the form of an automaton that scores a text letter by letter."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from hwr_ray.text.codec import Codec

log = logging.getLogger(__name__)

END = 0
"""Column of the end of a text. It reuses the blank's id, which no text contains."""


@dataclass(frozen=True)
class LanguageModel:
    """An automaton whose states are contexts, with transitions on labels. S states, A = characters plus the end."""

    order: int
    """Maximum length of an n-gram in characters; the start and the end of a text count as one each."""
    start: int
    """State before the first character."""
    next_state: np.ndarray
    """(S, A) int32: the state after a label; the column of the end is unused."""
    log_probs: np.ndarray
    """(S, A) float32: natural logarithm of each label's probability; a row's probabilities sum to 1."""
    tensors: Mapping[str, np.ndarray] = field(repr=False, compare=False)
    """The n-grams from which the automaton was built; see `to_tensors`."""

    def log_prob(self, labels: Iterable[int]) -> float:
        """Returns the natural logarithm of the probability of a whole text, including its end."""
        state, total = self.start, 0.0
        for label in labels:
            total += float(self.log_probs[state, label])
            state = self.next_state[state, label]
        return total + float(self.log_probs[state, END])

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Returns the n-grams as a trie, 4 bytes per n-gram (charsets below 254 characters); see `from_tensors`.

        Nodes are in breadth-first order with siblings sorted by label; the root is the empty n-gram. `num_followers`
        (n-grams + 1) holds the number of children of each node. `labels` and `shares` (n-grams) hold the label of each
        node but the root and its share of its context's probability. `shape` holds the order and A. Label A stands for
        the start of a text.
        """
        return dict(self.tensors)


def fit_language_model(
    texts: Mapping[str, int] | Iterable[str], codec: Codec, *, order: int = 7, min_count: int = 2
) -> LanguageModel:
    """Returns a model of the labels in `texts`: an iterable of labels, or a mapping from labels to counts.

    The model omits n-grams that fewer than `min_count` labels contain, so that a text of a single label can't be
    extracted from it. benchmarks/results/language_model.md compares orders and limits.
    The probability of all pruned followers of a context goes to the context's suffix. Texts with characters outside the
    charset are skipped; a warning gives their number.

    Smoothing is Witten-Bell (Witten & Bell 1991, as in Chen & Goodman 1998, 2.5), down to a uniform distribution:
    P(w | h) = (c(hw) + T(h) P(w | h')) / (c(h) + T(h)), with T(h) the number of distinct followers of h. Kneser-Ney
    smoothing is not used, because its lower orders assume that no context was pruned (Chelba et al. 2010).
    """
    if order < 1 or min_count < 1:
        raise ValueError(f"order and min_count must be positive, not {order} and {min_count}")
    counts = Counter(texts)
    known = {text: count for text, count in counts.items() if not codec.unknown(text)}
    skipped = counts.total() - sum(known.values())
    if skipped:
        log.warning(f"{skipped} of {counts.total()} texts contain characters outside the charset and are skipped")
    ids = {ord(c): chr(i) for i, c in enumerate(codec.charset, start=1)}
    start, end = chr(codec.num_classes), chr(END)
    padded = {start + text.translate(ids) + end: count for text, count in known.items()}

    followers, labels, shares = Counter[str](), list[str](), list[float]()
    for share in _shares(padded, start, order, min_count):
        for ngram in sorted(share):  # breadth first: shorter n-grams precede, contexts are sorted
            followers[ngram[:-1]] += 1
            labels.append(ngram)
            shares.append(share[ngram])
    dtype = np.min_scalar_type(codec.num_classes + 1)  # a node's followers are labels and the start of a text
    return from_tensors(
        {
            "shape": np.array([order, codec.num_classes], np.int32),
            "num_followers": np.array([followers[ngram] for ngram in ["", *labels]], dtype),
            "labels": np.array([ord(ngram[-1]) for ngram in labels], dtype),
            "shares": _rounded_down(np.array(shares, np.float64)),
        }
    )


def _shares(padded: Mapping[str, int], start: str, order: int, min_count: int) -> Iterator[dict[str, float]]:
    """Yields, for each length up to the order, the n-grams in enough labels with their shares c(hw) / (c(h) + T(h)).

    c(h) and T(h) include pruned followers.
    """
    context_counts = Counter({"": sum((len(text) - 1) * count for text, count in padded.items())})
    for length in range(1, order + 1):
        occurrences, text_counts = Counter[str](), Counter[str]()
        for text, count in padded.items():
            ngrams = [text[i : i + length] for i in range(len(text) - length + 1)]
            for ngram in ngrams:
                occurrences[ngram] += count
            for ngram in set(ngrams):
                text_counts[ngram] += count
        distinct = Counter(ngram[:-1] for ngram in occurrences if ngram != start)
        yield {
            ngram: 0.0 if ngram == start else count / (context_counts[ngram[:-1]] + distinct[ngram[:-1]])
            for ngram, count in occurrences.items()
            if text_counts[ngram] >= min_count
        }
        context_counts = occurrences


def _rounded_down(shares: np.ndarray) -> np.ndarray:
    """Returns shares rounded down to float16, so that those of a context leave probability to its suffix."""
    rounded = shares.astype(np.float16)
    return np.where(rounded > shares, np.nextafter(rounded, np.float16(0)), rounded).astype(np.float16)


def from_tensors(tensors: Mapping[str, np.ndarray]) -> LanguageModel:
    """Returns the automaton of the n-grams that `to_tensors` returned. It takes 8 bytes per label and context.

    Raises ValueError if the tensors are not a trie.
    """
    num_followers, labels = tensors["num_followers"].astype(np.int64), tensors["labels"].astype(np.int64)
    shares = tensors["shares"].astype(np.float64)
    if not len(num_followers) == len(labels) + 1 == len(shares) + 1 == num_followers.sum() + 1:
        raise ValueError("the tensors are not a trie: each node but the root must follow exactly one node")
    order, num_labels = tensors["shape"].tolist()
    _check(num_followers, labels, shares, num_labels)
    next_state, probs = _automaton(num_followers, labels, shares, num_labels)
    return LanguageModel(
        order=order,
        start=int(next_state[0, num_labels]),
        next_state=np.ascontiguousarray(next_state[:, :num_labels]),
        log_probs=np.log(probs).astype(np.float32),
        tensors=dict(tensors),
    )


def _check(num_followers: np.ndarray, labels: np.ndarray, shares: np.ndarray, num_labels: int) -> None:
    """Raises ValueError if the nodes, labels or shares are not those of n-grams."""
    if (num_followers.cumsum()[:-1] <= np.arange(len(labels))).any():
        raise ValueError("the tensors are not a trie: a node precedes the one that it follows")
    context = np.repeat(np.arange(len(num_followers)), num_followers)
    in_order = (np.diff(context * (num_labels + 1) + labels) > 0).all()
    if not (in_order and ((labels >= 0) & (labels <= num_labels)).all()):
        raise ValueError(f"the tensors are not a trie: a node's followers are not sorted labels from 0 to {num_labels}")
    if not ((shares >= 0).all() and (np.bincount(context, weights=shares) < 1).all()):
        raise ValueError("the tensors are not a trie: the followers of a node leave no probability to its suffix")


def _automaton(
    num_followers: np.ndarray, labels: np.ndarray, shares: np.ndarray, num_labels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the state after each label or the start of a text (S, A + 1), and the probabilities (S, A).

    P(w | h) = share(hw) + (1 - sum of h's shares) P(w | h'), so rows sum to 1 however the shares were rounded. The
    states are the contexts; a text is in the state of its longest suffix among them (Aho & Corasick 1975). The trie
    contains all prefixes and suffixes of its n-grams, because they occur in at least as many labels.
    """
    has_state = num_followers > 0
    has_state[0] = True
    states = np.cumsum(has_state) - 1  # index of each node's state, if it has one
    next_state = np.zeros((states[-1] + 1, num_labels + 1), np.int32)
    probs = np.full((states[-1] + 1, num_labels), 1 / num_labels)
    suffix = np.zeros(len(num_followers), np.int64)  # state of each node's n-gram without its first character
    first, last = 0, 1  # nodes of the current length, from the root on
    while first < last:
        nodes = first + np.flatnonzero(has_state[first:last])
        rows = states[nodes]
        children = last + np.arange(num_followers[first:last].sum())
        context = np.repeat(states[first:last], num_followers[first:last])
        label, share, is_state = labels[children - 1], shares[children - 1], has_state[children]
        if first:
            next_state[rows], probs[rows] = next_state[suffix[nodes]], probs[suffix[nodes]]
            suffix[children] = next_state[context, label]  # before the context's own followers overwrite it
        probs[rows] *= 1 - np.bincount(context, weights=share, minlength=len(probs))[rows, None]
        is_follower = label < num_labels  # not the start of a text
        probs[context[is_follower], label[is_follower]] += share[is_follower]
        next_state[context[is_state], label[is_state]] = states[children[is_state]]
        first, last = last, last + len(children)
    return next_state, probs
