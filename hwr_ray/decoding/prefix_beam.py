"""The frame-by-frame loop of the prefix beam search, compiled by numba.

numpy can't vectorize it, because the prefixes of a frame depend on those that previous frames kept.
"""

from typing import NamedTuple

import numpy as np

from hwr_ray.decoding.alignment import TINY, compiled
from hwr_ray.decoding.ngram import END
from hwr_ray.text.codec import BLANK

NONE = -1


class Settings(NamedTuple):
    """Parameters of a search, in a form that numba compiles."""

    next_state: np.ndarray
    lm_log_probs: np.ndarray
    start: int
    lm_weight: float
    length_bonus: float
    beam_width: int
    min_prob: float
    max_gap: float


class Prefixes(NamedTuple):
    """All prefixes found in a line, as a trie in arrays: one node per distinct text, node 0 for the empty text."""

    parent: np.ndarray
    label: np.ndarray
    length: np.ndarray
    first_child: np.ndarray
    next_sibling: np.ndarray
    state: np.ndarray
    """State of the language model."""
    prior: np.ndarray
    """lm_weight * log P_lm(prefix) + length_bonus * length."""
    slot: np.ndarray
    """Slot in the beam, or NONE."""


class Beam(NamedTuple):
    """Active prefixes by slot, with the probability of their paths that end in a blank and in a label."""

    node: np.ndarray
    blank: np.ndarray
    label: np.ndarray
    next_blank: np.ndarray  # after the current frame
    next_label: np.ndarray


class Extensions(NamedTuple):
    """New prefixes of the current frame outside the beam: a slot's prefix extended by a label."""

    slot: np.ndarray
    label: np.ndarray
    mass: np.ndarray
    score: np.ndarray
    """Scores of the beam's prefixes, followed by those of the extensions."""


def search(probs: np.ndarray, settings: Settings, num_best: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the K = `num_best` best texts of lines (N, T, C) float64.

    They are labels (N, K, T) int32, padded with BLANK, and lengths (N, K) int32, which are negative for missing texts.
    """
    num_lines, frames, _ = probs.shape
    labels = np.full((num_lines, num_best, frames), BLANK, np.int32)
    lengths = np.full((num_lines, num_best), NONE, np.int32)
    _search(probs, settings, labels, lengths)
    return labels, lengths


@compiled
def _child(prefixes, node, label):
    """Returns the node of the prefix extended by a label, or NONE."""
    child = prefixes.first_child[node]
    while child != NONE and prefixes.label[child] != label:
        child = prefixes.next_sibling[child]
    return child


@compiled
def _add_child(prefixes, node, label, size, settings):
    """Adds the node `size` for the prefix extended by a label, and returns it."""
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
    """Returns the `prior` of a node's prefix extended by a label."""
    log_prob = settings.lm_log_probs[prefixes.state[node], label]
    return prefixes.prior[node] + settings.lm_weight * log_prob + settings.length_bonus


@compiled
def _stay(beam, width, prefixes, frame):
    """Continues the paths on which a frame adds no label: it is blank or repeats the last label."""
    for slot in range(width):
        beam.next_blank[slot] = (beam.blank[slot] + beam.label[slot]) * frame[BLANK]
        beam.next_label[slot] = 0.0
        if beam.node[slot]:
            beam.next_label[slot] = beam.label[slot] * frame[prefixes.label[beam.node[slot]]]


@compiled
def _extend(beam, width, prefixes, extensions, frame, labels, settings):
    """Extends the paths by one of `labels`; returns the number of extensions outside the beam."""
    count = 0
    for slot in range(width):
        node = beam.node[slot]
        for label in labels:
            mass = beam.blank[slot]
            if not node or prefixes.label[node] != label:  # a repeated label needs a blank in between
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
    """Returns the score below which prefixes are pruned: the `beam_width`th best or, if higher, best - `max_gap`.

    numba compiles this loop in less than a second, np.partition in twelve.
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
                node, size = _add_child(prefixes, parent, label, size, settings), size + 1
            beam.node[kept] = node
            beam.next_blank[kept], beam.next_label[kept] = 0.0, extensions.mass[i - width]
        kept += 1
    for slot in range(kept):
        prefixes.slot[beam.node[slot]] = slot
    return kept, size


@compiled
def _rescale(beam, width):
    """Moves on to the next frame's probabilities, scaled to a sum of 1 so that long lines do not underflow."""
    total = 0.0
    for slot in range(width):
        total += beam.next_blank[slot] + beam.next_label[slot]
    scale = 1 / total if total >= TINY else 0.0
    for slot in range(width):
        beam.blank[slot] = beam.next_blank[slot] * scale
        beam.label[slot] = beam.next_label[slot] * scale


@compiled
def _search_line(probs, beam, prefixes, extensions, settings):
    """Searches the frames (T, C) of a line; returns the final width of the beam."""
    width, size = np.int64(1), np.int64(1)  # for a literal 1, numba would compile the callees twice
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
        if active:  # in most frames only the blank is probable, and the prefixes stay the same
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
        if scores[best] == -np.inf:  # already written, or impossible
            break
        scores[best] = -np.inf
        node = beam.node[best]
        lengths[k] = prefixes.length[node]
        for i in range(lengths[k] - 1, -1, -1):
            labels[k, i] = prefixes.label[node]
            node = prefixes.parent[node]


@compiled
def _search(probs, settings, labels, lengths):
    """Fills `labels` (N, K, T) and `lengths` (N, K) line by line, reusing the same buffers."""
    width, nodes = settings.beam_width, 1 + probs.shape[1] * settings.beam_width
    beam = Beam(np.empty(width, np.int64), np.empty(width), np.empty(width), np.empty(width), np.empty(width))
    size = width * probs.shape[2]
    extensions = Extensions(np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size), np.empty(width + size))
    ints = np.empty((7, nodes), np.int64)
    prefixes = Prefixes(ints[0], ints[1], ints[2], ints[3], ints[4], ints[5], np.empty(nodes), ints[6])
    for n in range(probs.shape[0]):
        final_width = _search_line(probs[n], beam, prefixes, extensions, settings)
        _finish(beam, final_width, prefixes, settings, labels[n], lengths[n])
