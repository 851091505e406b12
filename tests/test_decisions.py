"""Decisions against hand-worked costs, scikit-learn, brute force, and simulations."""

import numpy as np
import pytest
import torch
from scipy.special import expit, logit, softmax
from scipy.stats import beta
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from asymcl.core.checks import ArgumentError
from asymcl.decisions import (
    EXPERT,
    PRECISION_RANKS,
    Threshold,
    calibrated,
    class_coverage,
    conformal_thresholds,
    cost_table,
    decide,
    decide_or_ask,
    decision_curve,
    expected_cost,
    fit_calibration,
    net_benefit,
    precision_at,
    prediction_sets,
    prevalence_weights,
    prior_weights,
    rates,
    reweighted,
    shares_at,
    threshold_for_cost_ratio,
    threshold_for_precision,
    threshold_for_recall,
)
from asymcl.infer.model import TrainedModel, fit_temperature, load_model
from asymcl.models import small_encoder


def binormal(random, positives, others, spread=4):
    "Log likelihood ratios of images of the class and of others, and which are of the class"
    positive = np.arange(positives + others) < positives
    x = random.normal(np.where(positive, spread / 2, -spread / 2), spread**0.5)
    return x, positive


def test_precision_and_rates_are_those_of_scikit_learn():
    x, positive = binormal(np.random.default_rng(0), 80, 240)
    scores = expit(x)
    for prevalence in (0.25, 0.05):
        weights = prevalence_weights(positive, prevalence)
        assert weights.sum() == pytest.approx(320)
        assert weights[positive].sum() == pytest.approx(320 * prevalence)
        precision, recall, thresholds = precision_recall_curve(
            positive, scores, sample_weight=weights
        )
        for i in range(0, len(thresholds), 17):
            pair = rates(scores >= thresholds[i], positive)
            assert pair[0] == pytest.approx(recall[i])
            assert precision_at(*pair, prevalence) == pytest.approx(precision[i])
    false_alarms, recall, thresholds = roc_curve(positive, scores, drop_intermediate=False)
    for i in range(1, len(thresholds), 29):
        expected = recall[i], false_alarms[i]
        assert rates(scores >= thresholds[i], positive) == pytest.approx(expected)


@pytest.mark.parametrize("prevalence", [None, 0.1, 0.6])
def test_the_plain_threshold_for_a_precision_is_the_lowest_by_brute_force(prevalence):
    x, positive = binormal(np.random.default_rng(1), 60, 140)
    scores = expit(x).round(2)  # with ties
    for precision in (0.4, 0.7, 0.9):
        share = positive.mean() if prevalence is None else prevalence
        reached = [
            t
            for t in np.unique(scores)
            if precision_at(*rates(scores >= t, positive), share) >= precision - 1e-9
        ]
        found = threshold_for_precision(scores, positive, precision, None, prevalence)
        assert found == min(reached)


def test_a_tested_precision_has_its_bound_of_clopper_and_pearson():
    x, positive = binormal(np.random.default_rng(2), 300, 700)
    scores = expit(x)
    level = 0.1 / PRECISION_RANKS
    found = threshold_for_precision(scores, positive, 0.8, 0.9)

    def bound(t):
        alarms, hits = (scores >= t).sum(), (positive & (scores >= t)).sum()
        return beta(hits, alarms - hits + 1).ppf(level)

    assert bound(found) >= 0.8
    assert found > threshold_for_precision(scores, positive, 0.8, None)
    fewest = int(np.ceil(np.log(level) / np.log(0.8)))
    for n, reached in ((fewest, True), (fewest - 1, False)):  # all hits
        certain = np.linspace(0.9, 0.6, n), np.ones(n, bool)
        few = np.concatenate([certain[0], [0.1] * 50]), np.concatenate([certain[1], [False] * 50])
        if reached:
            assert threshold_for_precision(*few, 0.8, 0.9) == pytest.approx(0.6)
        else:
            with pytest.raises(
                ArgumentError, match="with confidence 0.9 is reached by no threshold"
            ):
                threshold_for_precision(*few, 0.8, 0.9)


def test_a_tested_precision_holds_on_new_images_with_fixed_numbers_of_classes():
    random = np.random.default_rng(3)
    new, of_class = binormal(random, 40_000, 40_000)
    kept = []
    for _ in range(300):
        x, positive = binormal(random, 120, 480)
        try:
            t = threshold_for_precision(expit(x), positive, 0.5, 0.8, prevalence=0.1)
        except ArgumentError:
            continue
        kept.append(precision_at(*rates(expit(new) >= t, of_class), 0.1) >= 0.5)
    assert len(kept) > 100 and np.mean(kept) >= 0.8


@pytest.mark.parametrize("prevalence", [0.05, 0.5])
@pytest.mark.parametrize("cost_ratio", [0.5, 5, 20])
def test_the_threshold_of_a_cost_ratio_is_near_the_cheapest_of_all(prevalence, cost_ratio):
    random = np.random.default_rng(4)
    x, positive = binormal(random, 400, 400)
    scores = expit(3 * x - 1)  # neither calibrated nor of this prevalence
    t = threshold_for_cost_ratio(scores, positive, cost_ratio, prevalence)
    new, of_class = binormal(random, 20_000, 20_000)
    new = expit(3 * new - 1)

    def cost(threshold):
        return expected_cost(*rates(new >= threshold, of_class), cost_ratio, prevalence)

    cheapest = min(cost(threshold) for threshold in np.quantile(new, np.linspace(0, 1, 400)))
    assert cost(t) <= 1.03 * cheapest
    table = cost_table(dict(model=rates(new >= t, of_class)), cost_ratio, prevalence)
    assert table.loc["model", "cost"] <= 1.01 * table["cost"].min()


def test_costs_and_net_benefit_by_hand():
    labels = np.array([1] * 10 + [0] * 90)
    found = np.array([1] * 8 + [0] * 2 + [1] * 9 + [0] * 81)
    (_, alarms), (missed, hits) = confusion_matrix(labels, found)
    pair = rates(found == 1, labels == 1)
    assert 100 * expected_cost(*pair, 5, 0.1) == pytest.approx(5 * missed + alarms) == 19
    assert 100 * net_benefit(*pair, 0.2, 0.1) == pytest.approx(hits - alarms * 0.25) == 5.75
    assert 100 * net_benefit(1, 1, 0.2, 0.1) == pytest.approx(10 - 90 / 4)
    assert net_benefit(1, 1, 0.1, 0.1) == pytest.approx(0)  # where treat all meets treat none
    assert net_benefit(0, 0, 0.3, 0.1) == 0
    table = cost_table(dict(model=pair), 5, 0.1)
    assert 100 * table["cost"].to_numpy() == pytest.approx([19, 90, 50])
    assert table["precision"].tolist()[:2] == pytest.approx([8 / 17, 0.1])


def test_a_decision_curve_counts_images():
    x, positive = binormal(np.random.default_rng(5), 100, 900)
    p = expit(x + logit(0.1))
    curve = decision_curve(p, positive, [0.05, 0.1, 0.4], 0.1)
    for row in curve.itertuples():
        called = p >= row.threshold
        hits, alarms = (called & positive).sum(), (called & ~positive).sum()
        odds = row.threshold / (1 - row.threshold)
        assert row.model == pytest.approx((hits - alarms * odds) / 1000)
        assert row.treat_all == pytest.approx((100 - 900 * odds) / 1000)
    halved = decision_curve(p, positive, [0.4], 0.05)["model"].item()
    resampled = np.concatenate([np.flatnonzero(positive)[:50], np.flatnonzero(~positive)])
    few = decision_curve(p[resampled], positive[resampled], [0.4], 50 / 950)["model"].item()
    assert halved == pytest.approx(few, abs=0.01)


def test_calibration_is_the_logistic_regression_of_resampled_images():
    random = np.random.default_rng(6)
    x, positive = binormal(random, 5000, 5000)
    scores = expit(2 * x + 1)
    line = fit_calibration(scores, positive, 0.1)
    kept = np.concatenate([np.flatnonzero(positive)[:500], np.flatnonzero(~positive)[:4500]])
    oracle = LogisticRegression(C=np.inf).fit(logit(scores[kept])[:, None], positive[kept])
    assert line.slope == pytest.approx(oracle.coef_.item(), rel=0.1)
    assert line == pytest.approx((0.5, logit(0.1) - 0.5), abs=0.1)
    assert calibrated(scores, line)[~positive].mean() < 0.1
    separable = fit_calibration([0.1, 0.2, 0.8, 0.9], np.array([False, False, True, True]))
    assert 0.7 < calibrated([0.9], separable).item() < 0.95  # targets of 3/4 for 2 images


@pytest.mark.parametrize("shares", [(0.7, 0.25, 0.05), (0.1, 0.1, 0.8)])
def test_another_prior_gives_the_probabilities_of_images_drawn_with_it(shares):
    random = np.random.default_rng(7)
    centres = random.normal(size=(3, 2)) * 1.5

    def draw(n, shares):
        labels = random.choice(3, n, p=shares)
        return centres[labels] + random.normal(size=(n, 2)), labels

    even = np.full(3, 1 / 3)
    x, y = draw(30_000, even)
    model = LogisticRegression(C=np.inf).fit(x, y)
    again = LogisticRegression(C=np.inf).fit(*draw(30_000, shares))
    new, labels = draw(5000, shares)
    valid, of_valid = draw(6000, even)
    weights = prior_weights(model.predict_proba(valid), of_valid, shares)
    p = reweighted(model.predict_proba(new), weights)
    assert np.abs(p - again.predict_proba(new)).mean() < 0.01
    assert np.abs(reweighted(model.predict_proba(new), 3 * np.array(shares)) - p).mean() < 0.01
    assert np.abs(p.mean(0) - np.bincount(labels) / 5000).max() < 0.02


def test_the_prior_of_a_head_that_counts_classes_equally_is_found():
    "Validation images with 10% of the class, and probabilities of equal shares"
    x, positive = binormal(np.random.default_rng(8), 2000, 18_000)
    p = np.stack([expit(-x), expit(x)], 1)
    labels = positive.astype(int)
    for prevalence in (0.1, 0.02):
        w = prior_weights(p, labels, shares_at(np.bincount(labels), 1, prevalence))
        assert logit(reweighted(p, w)[:, 1]) == pytest.approx(x + logit(prevalence), abs=0.15)


def test_decisions_image_by_image():
    random = np.random.default_rng(9)
    p = random.dirichlet(np.ones(3), 500)
    for value in (0.1, 0.5, 0.9):
        for only_adds in (True, False):
            found = decide(torch.from_numpy(p), Threshold(1, value, 0, 0, 0, only_adds))
            for row, label in zip(p, found, strict=True):
                if row[1] >= value:
                    assert label == 1
                elif only_adds:
                    assert label == row.argmax()
                else:
                    assert label == (0 if row[0] >= row[2] else 2)


def drawn_logits(random, counts, scale):
    "Logits whose probabilities are right for a temperature of `scale`, and their labels"
    labels = np.repeat(np.arange(len(counts)), counts)
    x = random.normal(size=(len(labels), len(counts))) + 2 * np.eye(len(counts))[labels]
    return torch.from_numpy(scale * x).float(), torch.from_numpy(labels)


def inference(valid, labels, **options):
    "A model of three classes with these validation images"
    return TrainedModel(
        encoder=None, head=None, classes=("a", "b", "c"), image_shape=(1, 8, 8), valid_logits=valid,
        valid_labels=labels, temperature=fit_temperature(valid, labels), **options,
    )  # fmt: skip


def test_coverage_holds_for_each_of_three_classes_and_the_rare_one():
    "Also with a temperature that is fitted to the same validation images"
    random = np.random.default_rng(10)
    held, shares = [], []
    for _ in range(150):
        model = inference(*drawn_logits(random, (200, 90, 19), 5))
        logits, labels = drawn_logits(random, (300, 300, 300), 5)
        sets = prediction_sets(model.probabilities(logits), model.class_thresholds(0.9))
        held.append(class_coverage(sets, labels))
        shares.append((decide_or_ask(sets) != EXPERT).mean())
    exact = [1 - np.floor((n + 1) * 0.1 + 1e-9) / (n + 1) for n in (200, 90, 19)]
    assert np.mean(held, 0) == pytest.approx(exact, abs=0.02)
    assert (np.mean(held, 0) >= 0.88).all() and 0.2 < np.mean(shares) < 0.95


def test_sets_by_brute_force_from_scores_of_nonconformity():
    random = np.random.default_rng(11)
    p, labels = random.dirichlet(np.ones(3), 400), random.integers(0, 3, 400)
    new = random.dirichlet(np.ones(3), 200)
    limits = conformal_thresholds(p, labels, 0.85)
    expected = np.zeros((200, 3), bool)
    for c in range(3):
        scores = 1 - p[labels == c, c]
        quantile = np.sort(scores)[int(np.ceil((len(scores) + 1) * 0.85)) - 1]
        expected[:, c] = 1 - new[:, c] <= quantile
    assert (prediction_sets(new, limits) == expected).all()
    asked = decide_or_ask(expected)
    assert ((asked == EXPERT) == (expected.sum(1) != 1)).all()


def test_a_model_at_another_prevalence_is_saved_and_loaded(tmp_path, monkeypatch):
    random = np.random.default_rng(12)
    logits, labels = drawn_logits(random, (60, 60, 60), 1)
    model = TrainedModel(
        encoder=small_encoder(), head=torch.nn.Linear(256, 3), classes=("a", "b", "c"),
        image_shape=(1, 8, 8), valid_logits=logits, valid_labels=labels,
    ).at_prevalence("c", 0.02)  # fmt: skip
    model.save(tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    assert again.prior == model.prior and again.prior.shares[2] == pytest.approx(0.02)
    images = torch.rand(5, 1, 8, 8)
    assert torch.allclose(again.predict(images)[1], model.predict(images)[1], atol=1e-6)
    exported = again.exported().module()(images)
    assert torch.allclose(exported, model.predict(images)[1], atol=1e-4)
    assert model.at_prevalence("c", 1 / 3).prior.weights != model.prior.weights
    monkeypatch.setattr("asymcl.infer.model.card_text", lambda *_: "")  # it needs a right prior
    for wrong in ([[0.5, 0.5], [1.0, 1.0]], [[0.5, 0.3, 0.3], [1.0] * 3], [[0.5, 0.3, 0.2], 1]):
        model.prior = wrong
        model.save(tmp_path / "wrong.safetensors")
        with pytest.raises(ValueError, match="not a model that can be used"):
            load_model(tmp_path / "wrong.safetensors")


def test_thresholds_of_a_model_follow_its_prevalence():
    random = np.random.default_rng(13)
    model = inference(*drawn_logits(random, (400, 400, 400), 2))
    rare = model.at_prevalence("c", 0.02)
    recalls = [m.threshold("c", cost_ratio=10).recall for m in (model, rare)]
    assert recalls[1] < recalls[0]
    with pytest.raises(ArgumentError, match="precision 0.95 with confidence 0.95 is reached by"):
        rare.threshold("c", precision=0.95)
    assert model.threshold("c", precision=0.6).recall > 0.5
    assert not model.threshold("c", precision=0.6).only_adds
    assert model.threshold("c", 0.9).only_adds
    near = threshold_for_recall(
        model.probabilities(model.valid_logits)[:, 2], model.valid_labels == 2, 0.9
    )
    assert model.threshold("c", 0.9).value == near


def test_softmax_of_a_prior_is_the_reweighted_softmax():
    logits, labels = drawn_logits(np.random.default_rng(14), (50, 50, 50), 1)
    model = inference(logits, labels)
    rare = model.at_prevalence("a", 0.9)
    p = softmax(logits.double().numpy() / model.temperature, axis=1)
    expected = reweighted(p, rare.prior.weights)
    assert rare.probabilities(logits).numpy() == pytest.approx(expected, abs=1e-5)
