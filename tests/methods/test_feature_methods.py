"""Methods on features against plain transcriptions of their papers' equations, or of their public code."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from methods.test_recipes import coop_rates, crowded
from rada.core.errors import FeatureError
from rada.features import ClassSet, Features
from rada.methods import Run, get_method
from rada.methods.gda import ALPHAS
from rada.training.folds import shot_folds
from toy import SCALE

RUN = Run(seed=1)
ON_FEATURES = ("taskres", "clap", "lp_plus_plus", "gda", "rla", "svm_probe")


def accuracy(model, data):
    found = model.logits(data.plain(), data.class_set()).argmax(1)
    return float((found == data.labels).float().mean())


def strangers(count=3):
    generator = torch.Generator().manual_seed(9)
    return normalize(torch.randn(count, 16, generator=generator), dim=-1)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_training_raises_the_accuracy_on_the_shots(name):
    data, _, _ = crowded(shots=8)
    data = dataclasses.replace(data, text_features=normalize(data.text_features + strangers(6)))
    method = get_method(name)
    zero_shot = float(
        ((data.plain() @ data.text_features.T).argmax(1) == data.labels).float().mean()
    )
    assert accuracy(method.fit(data, run=RUN), data) > zero_shot + 0.05


def test_published_values():
    taskres = get_method("taskres").config()
    assert (taskres.alpha, taskres.learning_rate, taskres.optimizer) == (0.5, 2e-3, "adam")
    assert (taskres.batch_size, taskres.epochs, taskres.weight_decay) == (256, 100, 5e-4)
    clap = get_method("clap").config()
    assert (clap.learning_rate, clap.optimizer, clap.weight_decay) == (0.1, "sgd", 0.0)
    assert (clap.batch_size, clap.epochs, clap.schedule) == (256, 300, "epochs")
    lp = get_method("lp_plus_plus").config()
    assert (lp.iterations, lp.momentum, lp.blend_every, lp.blend_scale) == (300, 0.9, 10, 250)
    for name, rate in (("rla", 1e-3), ("prolip", 1e-5)):
        matrix = get_method(name).config()
        assert (matrix.iterations, matrix.learning_rate, matrix.pull) == (300, rate, None)


def test_taskres_is_adam_on_residuals_by_coops_schedule():
    data, images, _ = crowded(shots=4)
    residual = torch.nn.Parameter(torch.zeros(6, 16))
    text = data.text_features

    def logits(rows):
        return SCALE * rows @ normalize(text + 0.5 * residual, dim=-1).T

    optimizer = torch.optim.Adam([residual], weight_decay=5e-4)
    for rate in coop_rates(100, 2e-3):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        cross_entropy(logits(data.plain()), data.labels).backward()
        optimizer.step()
    model = get_method("taskres").fit(data, run=RUN)
    torch.testing.assert_close(model.weight.detach(), residual.detach(), atol=1e-4, rtol=1e-3)
    assert residual.abs().max() > 0.02
    found = model.logits(images, data.class_set())
    torch.testing.assert_close(found, logits(images).detach(), atol=1e-2, rtol=1e-3)


def test_clap_holds_each_class_as_firmly_as_zero_shot_was_right():
    data, images, _ = crowded(shots=4)
    text, labels = data.text_features, data.labels
    chances = (SCALE * data.plain() @ text.T).softmax(1)
    firm = torch.stack([chances[labels == k, k].mean() for k in range(6)])
    weight = torch.nn.Parameter(text.clone())
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    for rate in coop_rates(300, 0.1):
        optimizer.param_groups[0]["lr"] = rate
        logits = SCALE * data.plain() @ normalize(weight, dim=-1).T
        loss = cross_entropy(logits, labels) + (firm * ((weight - text) ** 2).sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model = get_method("clap").fit(data, run=RUN)
    torch.testing.assert_close(model.multipliers, firm)
    torch.testing.assert_close(model.weight.detach(), weight.detach(), atol=1e-3, rtol=1e-3)
    assert (weight - text).norm() > 0.1
    expected = SCALE * images @ normalize(weight.detach(), dim=-1).T
    found = model.logits(images, data.class_set())
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=1e-3)


def test_clap_leaves_a_class_without_shots_to_the_pull():
    data, _, _ = crowded(shots=4)
    part = data.subset((data.labels != 2).nonzero())
    model = get_method("clap").fit(part, run=RUN)
    assert model.multipliers[2] == 1 and (model.multipliers < 1).sum() == 5


def lp_plus_plus(data, gradient):
    """The loop of the public code without its bias; the paper resets the text's gradient ("last")."""
    images, text, labels = data.plain(), data.text_features, data.labels
    count, shots = len(images), 8
    sums = torch.stack([images[labels == k].sum(0) for k in range(6)])
    own = torch.stack([(images[labels == k] @ text[k]).mean() for k in range(6)])
    first = (4 * count / torch.linalg.eigvalsh(images.T @ images).max()).item()
    second = (count / (4 * ((images @ text.T) ** 2).sum(0).max())).item()
    classifier = torch.nn.Linear(16, 6, bias=False)
    classifier.weight.data = sums.clone()
    blend = (250 / shots * shots * own).mean().repeat(6).requires_grad_()
    optimizer = torch.optim.SGD(classifier.parameters(), lr=first, momentum=0.9)
    for step in range(1, 301):
        loss = cross_entropy(classifier(images) + blend * (images @ text.T), labels)
        optimizer.zero_grad()
        if gradient == "last":
            blend.grad = None
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            blend.data -= second * blend.grad.data
    return classifier.weight.detach(), blend.detach()


@pytest.mark.parametrize(("gradient", "moves"), [("last", 0.02), ("sum", 2.0)])
def test_lp_plus_plus_is_its_public_code_without_the_bias(gradient, moves):
    data, images, _ = crowded(shots=8)
    weight, blend = lp_plus_plus(data, gradient)
    method = get_method("lp_plus_plus")
    start = method.start(data, method.config(), RUN)
    assert (blend - start.blend).abs().max() > moves and (weight - start.vectors).norm() > 1
    model = method.fit(data, method.config(blend_gradient=gradient), RUN)
    torch.testing.assert_close(model.vectors.detach(), weight, atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(
        model.blend.detach() - start.blend, blend - start.blend, atol=1e-3, rtol=1e-2
    )
    expected = images @ weight.T + blend * (images @ data.text_features.T)
    found = model.logits(images, data.class_set())
    torch.testing.assert_close(found, expected, atol=5e-2, rtol=1e-3)


def gda_layer(images, labels, count):
    """Weights and biases as the public code of the few-shot experiments computes them."""
    means = torch.stack([images[labels == k].mean(0) for k in range(count)])
    centred = torch.cat([images[labels == k] - means[k] for k in range(count)])
    covariance = centred.T.cov()
    dim = images.shape[1]
    inverse = dim * torch.linalg.pinv(
        (len(centred) - 1) * covariance + covariance.trace() * torch.eye(dim).double()
    )
    weights = means @ inverse
    return weights, -torch.einsum("nd,dc,nc->n", means, inverse, means) / 2, inverse


@pytest.mark.parametrize("shots", [2, 8])  # fewer images than dimensions, and more
def test_gda_is_the_closed_form(shots):
    data, images, _ = crowded(shots=shots)
    weights, biases, _ = gda_layer(data.plain().double(), data.labels, 6)
    method = get_method("gda")
    model = method.fit(data, method.config(alpha=0.5), RUN)
    expected = SCALE * images @ data.text_features.T + 0.5 * (images.double() @ weights.T + biases)
    found = model.logits(images, data.class_set())
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-4)


def test_gda_of_new_classes_is_the_public_code_of_its_base_to_new_experiments():
    data, images, _ = crowded(shots=8)
    shots, text = data.plain().double(), strangers()
    means, inverses = [], []
    for name in text.double():
        near = shots[torch.topk(name @ shots.T, k=20).indices]
        means.append(torch.cat([near, name[None].repeat(16, 1)]).mean(0))
        covariance = (near - name).T @ (near - name) / 19
        whole = 19 * covariance + covariance.trace() * torch.eye(16).double()
        inverses.append(16 * torch.linalg.pinv(whole))
    inverse = torch.stack(inverses).mean(0)
    means = torch.stack(means)
    biases = -torch.einsum("nd,dc,nc->n", means, inverse, means) / 2
    expected = SCALE * images @ text.T + 0.5 * (images.double() @ (means @ inverse).T + biases)
    method = get_method("gda")
    model = method.fit(data, method.config(alpha=0.5, neighbours=20), RUN)
    found = model.logits(images, ClassSet(("a", "b", "c"), text))
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-4)
    # Among trained and new classes the precisions are averaged, so both forms are its ends.
    mixed = ClassSet(("cat", "a"), torch.stack([data.text_features[0], text[0]]))
    precision = (gda_layer(shots, data.labels, 6)[2] + inverses[0]) / 2
    both = torch.stack([shots[data.labels == 0].mean(0), means[0]])
    added = (
        images.double() @ (both @ precision).T
        - torch.einsum("nd,dc,nc->n", both, precision, both) / 2
    )
    expected = SCALE * images @ mixed.text_features.T + 0.5 * added
    found = model.logits(images, mixed)
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-4)


def test_gda_keeps_the_layer_of_the_last_classes_alone():
    data, images, _ = crowded(shots=4)
    model = get_method("gda").fit(data, run=RUN)
    known, new = data.class_set(), ClassSet(("a", "b", "c"), strangers())
    first = model.logits(images, new)
    assert model.prepare(new) is model.prepare(dataclasses.replace(new))
    other = ClassSet(new.names, new.text_features.flip(0))  # other prompts of the same names
    torch.testing.assert_close(model.logits(images, other), first.flip(1))
    assert model.logits(images, known).shape[1] == 6
    torch.testing.assert_close(model.logits(images, new), first)


def test_gda_of_a_damaged_file_is_refused():
    data, images, _ = crowded(shots=4)
    model = get_method("gda").fit(data, run=RUN)
    model.owners[0] = 9
    with pytest.raises(FeatureError, match="damaged"):
        model.logits(images, data.class_set())


def test_gda_chooses_its_weight_on_shots_that_are_held_out():
    data, _, _ = crowded(shots=8)
    right = {alpha: [] for alpha in ALPHAS}
    seen = []
    for learned, asked in shot_folds(data, RUN.seed):
        assert not set(learned.ids) & set(asked.ids)
        assert len(learned) + len(asked) == len(data)
        seen += asked.ids
        weights, biases, _ = gda_layer(learned.plain().double(), learned.labels, 6)
        for alpha in ALPHAS:
            added = alpha * (asked.plain().double() @ weights.T + biases)
            logits = SCALE * asked.plain() @ data.text_features.T + added
            right[alpha] += (logits.argmax(1) == asked.labels).tolist()
    assert sorted(seen) == sorted(data.ids)
    best = max(right.values(), key=sum)
    good = []
    for alpha in ALPHAS:
        changed = sum(a != b for a, b in zip(right[alpha], best, strict=True))
        if sum(best) - sum(right[alpha]) <= changed**0.5:
            good.append(alpha)
    chosen = get_method("gda").fit(data, run=RUN).record["alpha"]
    assert chosen == good[len(good) // 2] and 1 < len(good) < len(ALPHAS)


def test_folds_leave_every_class_an_image():
    for shots in (1, 2, 3, 5):
        data, _, _ = crowded(shots=shots)
        folds = list(shot_folds(data, 0))
        assert bool(folds) == (shots > 1)
        for learned, asked in folds:
            assert len(learned.labels.unique()) == 6
            assert shots > 2 or len(asked) < 6  # with two shots some classes keep both


def test_gda_of_one_image_a_class_is_zero_shot():
    """Without a second image or view there is no covariance, and the paper's inverse of it is zero."""
    data, images, _ = crowded(shots=1)
    model = get_method("gda").fit(data, run=RUN)
    expected = SCALE * images @ data.text_features.T
    torch.testing.assert_close(model.logits(images, data.class_set()), expected)
    views = torch.stack([data.plain(), normalize(data.plain() + 0.1)], 1)
    model = get_method("gda").fit(dataclasses.replace(data, image_features=views), run=RUN)
    assert len(model.images) == 12 and model.record["alpha"] == 0.1
    assert not torch.allclose(model.logits(images, data.class_set()), expected, atol=1e-2)


@pytest.mark.parametrize("rate", [1e-5, 1e-3])
def test_rla_is_adam_with_a_cosine_and_a_pull_to_the_identity(rate):
    data, images, _ = crowded(shots=4)
    matrix = torch.nn.Parameter(torch.eye(16))
    optimizer = torch.optim.Adam([matrix], lr=rate, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)

    def logits(rows):
        return SCALE * normalize(rows @ matrix.T, dim=-1) @ data.text_features.T

    for _ in range(300):
        pull = ((matrix - torch.eye(16)) ** 2).sum() / 4  # 1 / shots
        optimizer.zero_grad()
        (cross_entropy(logits(data.plain()), data.labels) + pull).backward()
        optimizer.step()
        schedule.step()
    method = get_method("rla")
    model = method.fit(data, method.config(learning_rate=rate), RUN)
    torch.testing.assert_close(model.weight.detach(), matrix.detach(), atol=1e-5, rtol=1e-4)
    assert (matrix - torch.eye(16)).abs().max() > rate
    expected = logits(torch.cat([images, strangers()])).detach()[: len(images)]
    found = model.logits(images, data.class_set())
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


def svm(rows, labels):
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    return make_pipeline(StandardScaler(), SVC(gamma="auto")).fit(rows.double(), labels)


@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 4, 5], [4, 1, 2], [5, 0]])
def test_svm_probe_is_scikit_learns_machine_among_any_of_its_classes(kept):
    data, images, _ = crowded(shots=8)
    model = get_method("svm_probe").fit(data, run=RUN)
    part = data.select_classes(kept, relabel=False)
    scaled = svm(data.plain(), data.labels)[0].transform(images.double())
    rows = svm(data.plain(), data.labels)[0].transform(part.plain().double())
    machine = svm(data.plain(), data.labels)[1].__class__(gamma="auto").fit(rows, part.labels)
    expected = torch.from_numpy(machine.decision_function(scaled))
    found = model.logits(images, data.class_set().take(kept)).double() / model.sharpness
    order = torch.tensor(kept).argsort()  # scikit-learn sorts its classes
    if len(kept) > 2:
        torch.testing.assert_close(found[:, order], expected, atol=1e-3, rtol=1e-3)
    else:
        best = torch.tensor(kept)[found.argmax(1)]
        assert torch.equal(best, torch.from_numpy(machine.predict(scaled)))


def test_svm_probe_of_two_classes():
    data, images, _ = crowded(shots=8)
    two = data.select_classes([3, 1])
    model = get_method("svm_probe").fit(two, run=RUN)
    found = model.logits(images, two.class_set()).argmax(1)
    assert torch.equal(found, torch.from_numpy(svm(two.plain(), two.labels).predict(images)))


def test_svm_probe_is_as_sure_as_it_is_right():
    data, images, labels = crowded(shots=16)
    model = get_method("svm_probe").fit(data, run=RUN)
    logits = model.logits(images, data.class_set())
    chances, right = logits.softmax(1).max(1).values, (logits.argmax(1) == labels).float()
    assert abs(float(chances.mean() - right.mean())) < 0.1
    plain = cross_entropy(logits / model.sharpness, labels)
    assert cross_entropy(logits, labels) < plain and model.sharpness != 1


def test_svm_probe_of_a_class_without_images():
    data, images, _ = crowded(shots=4)
    model = get_method("svm_probe").fit(data.subset((data.labels != 2).nonzero()), run=RUN)
    found = model.logits(images, data.class_set())
    assert (found[:, 2] == -1e4).all() and found.isfinite().all()
    assert (model.logits(images, data.class_set().take([2])) == -1e4).all()


def test_svm_probe_counts_its_votes_in_parts(monkeypatch):
    import rada.methods.svm_probe as module

    data, images, _ = crowded(shots=4)
    model = get_method("svm_probe").fit(data, run=RUN)
    whole = model.logits(images, data.class_set())
    monkeypatch.setattr(module, "_AT_ONCE", 100)
    torch.testing.assert_close(model.logits(images, data.class_set()), whole)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_views_are_seen(name):
    data, _, _ = crowded(shots=2)
    views = torch.stack([data.plain(), normalize(data.plain() + 0.2)], 1)
    several = dataclasses.replace(data, image_features=views)
    method = get_method(name)
    one, two = (
        method.fit(d, run=RUN).logits(data.plain(), data.class_set()) for d in (data, several)
    )
    sees = name not in ("lp_plus_plus", "svm_probe")
    assert torch.equal(one, two) != sees
    if sees:
        assert method.views(method.config(views=5)) == 5


def test_one_class_alone_is_refused():
    data = Features(torch.eye(2), np.array([0, 0]), ("a", "b"), text_features=torch.eye(2), scale=9)
    for name in ON_FEATURES:
        with pytest.raises(FeatureError, match=f"{name} needs images of at least 2 classes"):
            get_method(name).fit(data)
