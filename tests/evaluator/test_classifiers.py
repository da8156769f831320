"""Classifiers on data of which the answer is known, and the choice of their settings."""

import numpy as np
import pytest
from scipy.special import expit, softmax

from vidtrain.evaluator.classifiers import (
    logistic_regression,
    logits,
    majority,
    nearest_neighbors,
    select,
)

CLASSIFIERS = [nearest_neighbors, logistic_regression]


def blobs(videos: int, seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(videos) % classes
    centers = np.random.default_rng(99).normal(size=(classes, 20)) * 3
    return (centers[labels] + rng.normal(size=(videos, 20))).astype(np.float32), np.eye(classes)[labels]


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_what_is_far_apart_is_told_apart(classifier):
    vectors, targets = blobs(60, 0)
    others, answers = blobs(30, 1)
    probabilities = classifier(vectors, targets, np.arange(60), False)(others)
    assert np.array_equal(probabilities.argmax(axis=1), answers.argmax(axis=1))
    assert np.allclose(probabilities.sum(axis=1), 1)


def test_majority_gives_the_shares_of_training():
    targets = np.eye(2)[[0, 0, 0, 1]]
    probabilities = majority(np.zeros((4, 1)), targets, np.arange(4), False)(np.zeros((2, 1)))
    assert probabilities.tolist() == [[0.75, 0.25]] * 2


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_several_labels_are_judged_each_by_itself(classifier):
    vectors, targets = blobs(60, 0)
    both = np.concatenate([targets, targets[:, :1], np.ones((60, 1))], axis=1)  # one twice, one always there
    others, answers = blobs(30, 1)
    probabilities = classifier(vectors, both, np.arange(60), True)(others)
    assert np.array_equal(probabilities[:, :4] > 0.5, np.concatenate([answers, answers[:, :1]], axis=1) > 0.5)
    assert (probabilities[:, 4] > 0.5).all()


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_a_class_without_training_videos_gets_next_to_nothing(classifier):
    vectors, targets = blobs(30, 0)
    wider = np.concatenate([targets, np.zeros((30, 1))], axis=1)
    probabilities = classifier(vectors, wider, np.arange(30), False)(vectors)
    assert probabilities.shape == (30, 4) and (probabilities[:, 3] < 0.15).all()


def test_settings_are_chosen_on_videos_of_other_groups():
    asked = []

    def fit(vectors, targets, choice):
        asked.append(set(vectors[:, 0].tolist()))
        return lambda others: np.tile([choice, 1 - choice], (len(others), 1))

    groups = np.array([0, 0, 1, 1, 2, 2])
    vectors = groups[:, None].astype(float)
    targets = np.eye(2)[[0] * 6]
    assert select(fit, vectors, targets, groups, (0.2, 0.9, 0.5), 0.1, False) == 0.9
    assert all(len(members) == 2 for members in asked)  # a group is whole on one side
    assert select(fit, vectors, targets, np.zeros(6), (0.2, 0.9), 0.1, False) == 0.1


def test_logits_give_the_probabilities_back():
    probabilities = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    assert np.allclose(softmax(logits(probabilities, False), axis=1), probabilities, atol=1e-5)
    assert np.allclose(expit(logits(probabilities, True)), probabilities, atol=1e-5)
