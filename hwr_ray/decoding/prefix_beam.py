"""The beginnings of a line's text that a beam search follows from frame to frame, compiled by numba.

Which prefixes a frame leads to depends on those that the frames before left: a loop that numpy can't vectorize.
"""

from typing import NamedTuple

import numpy as np

from hwr_ray.decoding.alignment import TINY, compiled
from hwr_ray.decoding.ngram import END
from hwr_ray.text.codec import BLANK

NONE = -1


class Settings(NamedTuple):
    """What one search goes by, in the form that numba compiles."""

    next_state: np.ndarray
    lm_log_probs: np.ndarray
    start: int
    lm_weight: float
    length_bonus: float
    beam_width: int
    min_prob: float
    max_gap: float


class Prefixes(NamedTuple):
    """The prefixes met in a line as a trie in arrays, node 0 the empty text: one node a text, however often found."""

    parent: np.ndarray
    label: np.ndarray
    length: np.ndarray
    first_child: np.ndarray
    next_sibling: np.ndarray
    state: np.ndarray
    """The language model's."""
    prior: np.ndarray
    """lm_weight * log P_lm(prefix) + length_bonus * length."""
    slot: np.ndarray
    """Its place in the beam, or NONE."""


class Beam(NamedTuple):
    """The prefixes that are followed, by slot, with the probability of the paths that end in a blank or a label."""

    node: np.ndarray
    blank: np.ndarray
    label: np.ndarray
    next_blank: np.ndarray  # after the current frame
    next_label: np.ndarray


class Extensions(NamedTuple):
    """Prefixes outside the beam that the current frame leads to: a slot's prefix with one label more."""

    slot: np.ndarray
    label: np.ndarray
    mass: np.ndarray
    score: np.ndarray
    """Scores of the beam's prefixes, then those of the extensions."""


def search(probs: np.ndarray, settings: Settings, num_best: int) -> tuple[np.ndarray, np.ndarray]:
    """The best texts that the search finds in lines (N, T, C) float64: labels (N, K, T) int32, padded with BLANK, and
    lengths (N, K) int32, below 0 where there are fewer than K = `num_best`."""
    num_lines, frames, _ = probs.shape
    labels = np.full((num_lines, num_best, frames), BLANK, np.int32)
    lengths = np.full((num_lines, num_best), NONE, np.int32)
    _search(probs, settings, labels, lengths)
    return labels, lengths


@compiled
def _child(prefixes, node, label):
    """The node of the prefix with one label more, or NONE."""
    child = prefixes.first_child[node]
    while child != NONE and prefixes.label[child] != label:
        child = prefixes.next_sibling[child]
    return child


@compiled
def _added(prefixes, node, label, size, settings):
    """A new node `size` for the prefix with one label more."""
    state = prefixes.state[node]
    prefixes.parent[size] = node
    prefixes.label[size] = label
    prefixes.length[size] = prefixes.length[node] + 1
    prefixes.first_child[size] = NONE
    prefixes.next_sibling[size] = prefixes.first_child[node]
    prefixes.first_child[node] = size
    prefixes.state[size] = settings.next_state[state, label]
    prefixes.prior[size] = _prior(prefixes, node, label, settings)
    prefixes.slot[size] = NONE
    return size


@compiled
def _prior(prefixes, node, label, settings):
    """`prior` of a node's prefix with one label more."""
    log_prob = settings.lm_log_probs[prefixes.state[node], label]
    return prefixes.prior[node] + settings.lm_weight * log_prob + settings.length_bonus


@compiled
def _stay(beam, width, prefixes, frame):
    """The paths on which a frame adds no label: it is blank, or repeats the last one."""
    for slot in range(width):
        beam.next_blank[slot] = (beam.blank[slot] + beam.label[slot]) * frame[BLANK]
        beam.next_label[slot] = 0.0
        if beam.node[slot]:
            beam.next_label[slot] = beam.label[slot] * frame[prefixes.label[beam.node[slot]]]


@compiled
def _extend(beam, width, prefixes, extensions, frame, labels, settings):
    """The paths on which a frame adds one of `labels`; returns how many lead out of the beam."""
    count = 0
    for slot in range(width):
        node = beam.node[slot]
        for label in labels:
            mass = beam.blank[slot]
            if not node or prefixes.label[node] != label:  # a letter follows itself only after a blank
                mass += beam.label[slot]
            mass *= frame[label]
            child = _child(prefixes, node, label)
            if child != NONE and prefixes.slot[child] != NONE:
                beam.next_label[prefixes.slot[child]] += mass
            elif mass > 0:
                extensions.slot[count] = slot
                extensions.label[count] = label
                extensions.mass[count] = mass
                extensions.score[width + count] = np.log(mass) + _prior(prefixes, node, label, settings)
                count += 1
    for slot in range(width):
        total = beam.next_blank[slot] + beam.next_label[slot]
        extensions.score[slot] = np.log(total) + prefixes.prior[beam.node[slot]]
    return count


@compiled
def _limit(scores, settings):
    """The score below which a prefix is given up: that of the `beam_width`th best, or `max_gap` below the best.

    (numba takes twelve seconds to compile np.partition, and is done with this loop in less than one.)
    """
    best = np.full(settings.beam_width, -np.inf)  # the best so far, ascending
    for score in scores:
        if score > best[0]:
            place = 0
            while place + 1 < len(best) and best[place + 1] < score:
                best[place] = best[place + 1]
                place += 1
            best[place] = score
    return max(best[0], best[-1] - settings.max_gap)


@compiled
def _prune(beam, width, prefixes, extensions, count, size, settings):
    """Keeps the best prefixes of the beam and its extensions; returns the beam's width and the number of nodes."""
    scores = extensions.score[: width + count]
    limit = _limit(scores, settings)
    parents = beam.node[:width].copy()
    kept = 0
    for i in range(len(scores)):
        if i < width:
            prefixes.slot[parents[i]] = NONE
        if scores[i] < limit or kept == settings.beam_width:
            continue
        if i < width:
            beam.node[kept] = parents[i]
            beam.next_blank[kept], beam.next_label[kept] = beam.next_blank[i], beam.next_label[i]
        else:
            parent, label = parents[extensions.slot[i - width]], extensions.label[i - width]
            node = _child(prefixes, parent, label)
            if node == NONE:
                node, size = _added(prefixes, parent, label, size, settings), size + 1
            beam.node[kept] = node
            beam.next_blank[kept], beam.next_label[kept] = 0.0, extensions.mass[i - width]
        kept += 1
    for slot in range(kept):
        prefixes.slot[beam.node[slot]] = slot
    return kept, size


@compiled
def _rescale(beam, width):
    """Makes the next frame's probabilities the current ones, scaled to a sum of 1: long lines must not underflow."""
    total = 0.0
    for slot in range(width):
        total += beam.next_blank[slot] + beam.next_label[slot]
    scale = 1 / total if total >= TINY else 0.0
    for slot in range(width):
        beam.blank[slot] = beam.next_blank[slot] * scale
        beam.label[slot] = beam.next_label[slot] * scale


@compiled
def _follow(probs, beam, prefixes, extensions, settings):
    """The search over the frames (T, C) of a line; returns the beam's width at the end."""
    width, size = np.int64(1), np.int64(1)  # numba would compile all that takes them once more for the literal 1
    beam.node[0], beam.blank[0], beam.label[0] = 0, 1.0, 0.0
    prefixes.first_child[0], prefixes.slot[0], prefixes.length[0] = NONE, 0, 0
    prefixes.state[0], prefixes.prior[0] = settings.start, 0.0
    labels = np.empty(probs.shape[1], np.int64)
    for t in range(probs.shape[0]):
        _stay(beam, width, prefixes, probs[t])
        active = 0
        for label in range(probs.shape[1]):
            if label != BLANK and probs[t, label] >= settings.min_prob:
                labels[active] = label
                active += 1
        if active:  # few frames: in most of them all but the blank are improbable, and prefixes neither come nor go
            count = _extend(beam, width, prefixes, extensions, probs[t], labels[:active], settings)
            width, size = _prune(beam, width, prefixes, extensions, count, size, settings)
        _rescale(beam, width)
    return width


@compiled
def _finish(beam, width, prefixes, settings, labels, lengths):
    """Writes the best texts of the beam into `labels` (K, T) and `lengths` (K), best first."""
    scores = np.empty(width)
    for slot in range(width):
        node = beam.node[slot]
        end = settings.lm_weight * settings.lm_log_probs[prefixes.state[node], END]
        scores[slot] = np.log(beam.blank[slot] + beam.label[slot]) + prefixes.prior[node] + end
    for k in range(min(width, lengths.shape[0])):
        best = np.argmax(scores)
        if scores[best] == -np.inf:  # taken before, or impossible
            break
        scores[best] = -np.inf
        node = beam.node[best]
        lengths[k] = prefixes.length[node]
        for i in range(lengths[k] - 1, -1, -1):
            labels[k, i] = prefixes.label[node]
            node = prefixes.parent[node]


@compiled
def _search(probs, settings, labels, lengths):
    """Fills `labels` (N, K, T) and `lengths` (N, K) line by line, in the same room."""
    width, nodes = settings.beam_width, 1 + probs.shape[1] * settings.beam_width
    beam = Beam(np.empty(width, np.int64), np.empty(width), np.empty(width), np.empty(width), np.empty(width))
    room = width * probs.shape[2]
    extensions = Extensions(np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room), np.empty(width + room))
    ints = np.empty((7, nodes), np.int64)
    prefixes = Prefixes(ints[0], ints[1], ints[2], ints[3], ints[4], ints[5], np.empty(nodes), ints[6])
    for n in range(probs.shape[0]):
        found = _follow(probs[n], beam, prefixes, extensions, settings)
        _finish(beam, found, prefixes, settings, labels[n], lengths[n])
