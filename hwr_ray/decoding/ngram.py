"""A character n-gram model of texts, unrolled into an automaton that gives a text's probability letter by letter."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from hwr_ray.text.codec import Codec

log = logging.getLogger(__name__)

END = 0
"""Column of the end of the text. It takes the blank's id, which no text holds."""


@dataclass(frozen=True)
class LanguageModel:
    """An automaton: a state is what it remembers of a text's beginning. S states, A = characters plus the end."""

    order: int
    """Most characters of an n-gram; the start and the end of a text count as one each."""
    start: int
    """State before the first character."""
    next_state: np.ndarray
    """(S, A) int32: the state after a label; the column of the end means nothing."""
    log_probs: np.ndarray
    """(S, A) float32: natural logarithm of each label's probability; a row's probabilities sum to 1."""
    tensors: Mapping[str, np.ndarray] = field(repr=False, compare=False)
    """What the automaton was built from, see `to_tensors`."""

    def log_prob(self, labels: Iterable[int]) -> float:
        """Natural logarithm of the probability of a whole text, its end included."""
        state, total = self.start, 0.0
        for label in labels:
            total += float(self.log_probs[state, label])
            state = self.next_state[state, label]
        return total + float(self.log_probs[state, END])

    def to_tensors(self) -> dict[str, np.ndarray]:
        """The n-grams as a trie, 4 bytes an n-gram (charsets below 254 characters); see `from_tensors`.

        Breadth first, siblings by label; the root stands for no character. `num_followers` (n-grams + 1) counts the
        children of each node. Its label and its share of its context's probability are in `labels` and `shares` (one
        fewer: the root has none). `shape` holds the order and A. Label A stands for the start of a text.
        """
        return dict(self.tensors)


def fit_language_model(
    texts: Mapping[str, int] | Iterable[str], codec: Codec, *, order: int = 5, min_count: int = 10
) -> LanguageModel:
    """The model of texts, or of texts with the number of labels that read so.

    An n-gram that fewer than `min_count` labels hold is not in the model, so that no rare name can be read out of it:
    the probability it had goes, together with that of all other pruned followers of its context, to the context's
    suffix. Texts with characters that the charset lacks are skipped; a warning tells how many.

    Witten-Bell smoothing (Witten & Bell 1991; as Chen & Goodman 1998, 2.5, write it), down to a uniform distribution:
    P(w | h) = (c(hw) + T(h) P(w | h')) / (c(h) + T(h)), T(h) the number of distinct followers of h. Kneser-Ney's
    lower orders are made for contexts that were not pruned (Chelba et al. 2010).
    """
    if order < 1 or min_count < 1:
        raise ValueError(f"order and min_count must be positive, not {order} and {min_count}")
    counts = Counter(texts)
    known = {text: count for text, count in counts.items() if not codec.unknown(text)}
    skipped = counts.total() - sum(known.values())
    if skipped:
        log.warning(f"{skipped} of {counts.total()} texts hold characters that the charset lacks and are not counted")
    ids = {ord(c): chr(i) for i, c in enumerate(codec.charset, start=1)}
    start, end = chr(codec.num_classes), chr(END)
    padded = {start + text.translate(ids) + end: count for text, count in known.items()}

    followers, labels, shares = Counter[str](), list[str](), list[float]()
    for share in _shares(padded, start, order, min_count):
        for ngram in sorted(share):  # breadth first: shorter n-grams came before, contexts are in order
            followers[ngram[:-1]] += 1
            labels.append(ngram)
            shares.append(share[ngram])
    small = np.min_scalar_type(codec.num_classes + 1)  # anything may be followed by the start of a text too
    return from_tensors(
        {
            "shape": np.array([order, codec.num_classes], np.int32),
            "num_followers": np.array([followers[ngram] for ngram in ["", *labels]], small),
            "labels": np.array([ord(ngram[-1]) for ngram in labels], small),
            "shares": _rounded_down(np.array(shares, np.float64)),
        }
    )


def _shares(padded: Mapping[str, int], start: str, order: int, min_count: int) -> Iterator[dict[str, float]]:
    """For each length up to the order: n-grams of enough labels with c(hw) / (c(h) + T(h)).

    c(h) and T(h) count the pruned followers too.
    """
    context_counts = Counter({"": sum((len(text) - 1) * count for text, count in padded.items())})
    for length in range(1, order + 1):
        occurrences, holders = Counter[str](), Counter[str]()
        for text, count in padded.items():
            ngrams = [text[i : i + length] for i in range(len(text) - length + 1)]
            for ngram in ngrams:
                occurrences[ngram] += count
            for ngram in set(ngrams):
                holders[ngram] += count
        distinct = Counter(ngram[:-1] for ngram in occurrences if ngram != start)
        yield {
            ngram: 0.0 if ngram == start else count / (context_counts[ngram[:-1]] + distinct[ngram[:-1]])
            for ngram, count in occurrences.items()
            if holders[ngram] >= min_count
        }
        context_counts = occurrences


def _rounded_down(shares: np.ndarray) -> np.ndarray:
    """Shares as float16 that are never larger, so that those of a context leave something to its suffix."""
    rounded = shares.astype(np.float16)
    return np.where(rounded > shares, np.nextafter(rounded, np.float16(0)), rounded).astype(np.float16)


def from_tensors(tensors: Mapping[str, np.ndarray]) -> LanguageModel:
    """The automaton of n-grams as `to_tensors` gives them; it takes 8 bytes a label for each context.

    Raises ValueError where they are no trie.
    """
    num_followers, labels = tensors["num_followers"].astype(np.int64), tensors["labels"].astype(np.int64)
    shares = tensors["shares"].astype(np.float64)
    if not len(num_followers) == len(labels) + 1 == len(shares) + 1 == num_followers.sum() + 1:
        raise ValueError("the tensors are no trie: each node but the root is one follower of one node")
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
    """Raises ValueError where nodes, labels or shares can't be those of n-grams."""
    if (num_followers.cumsum()[:-1] <= np.arange(len(labels))).any():
        raise ValueError("the tensors are no trie: a node stands before the one that it follows")
    context = np.repeat(np.arange(len(num_followers)), num_followers)
    in_order = (np.diff(context * (num_labels + 1) + labels) > 0).all()
    if not (in_order and ((labels >= 0) & (labels <= num_labels)).all()):
        raise ValueError(f"the tensors are no trie: a node's followers are not labels from 0 to {num_labels} in order")
    if not ((shares >= 0).all() and (np.bincount(context, weights=shares) < 1).all()):
        raise ValueError("the tensors are no trie: the shares of a node's followers leave nothing to its suffix")


def _automaton(
    num_followers: np.ndarray, labels: np.ndarray, shares: np.ndarray, num_labels: int
) -> tuple[np.ndarray, np.ndarray]:
    """The state after each label (S, A + 1), the start of a text among them, and the probabilities (S, A).

    P(w | h) = share(hw) + (1 - sum of h's shares) P(w | h'): rows sum to 1 however the shares were rounded. The states
    are the contexts; a text is in the state of its longest suffix among them (Aho & Corasick 1975). With an n-gram all
    its prefixes and suffixes are in the trie, for they are in as many labels.
    """
    has_state = num_followers > 0
    has_state[0] = True
    states = np.cumsum(has_state) - 1  # of a node, where it has one
    next_state = np.zeros((states[-1] + 1, num_labels + 1), np.int32)
    probs = np.full((states[-1] + 1, num_labels), 1 / num_labels)
    suffix = np.zeros(len(num_followers), np.int64)  # the state of a node's context without its first character
    first, last = 0, 1  # the nodes of one length, the root's first
    while first < last:
        nodes = first + np.flatnonzero(has_state[first:last])
        rows = states[nodes]
        children = last + np.arange(num_followers[first:last].sum())
        context = np.repeat(states[first:last], num_followers[first:last])
        label, share, is_state = labels[children - 1], shares[children - 1], has_state[children]
        if first:
            next_state[rows], probs[rows] = next_state[suffix[nodes]], probs[suffix[nodes]]
            suffix[children] = next_state[context, label]  # before the context's own followers take their places
        probs[rows] *= 1 - np.bincount(context, weights=share, minlength=len(probs))[rows, None]
        is_follower = label < num_labels  # not the start of a text
        probs[context[is_follower], label[is_follower]] += share[is_follower]
        next_state[context[is_state], label[is_state]] = states[children[is_state]]
        first, last = last, last + len(children)
    return next_state, probs
