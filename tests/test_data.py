"""Data by the step: samplers, functions on the host, shuffled rows, and what follows n and what does not."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import ntk_inr as ni
from ntk_inr.training import run, steps
from ntk_inr.training.sampling import epoch_words, permuted

SGD = optax.sgd(0.1)


def linear(params, x):
    return x @ params


def drawn(key, step):
    x = jax.random.uniform(key, (16, 2), minval=-1.0)
    return x, x[:, :1] - 2 * x[:, 1:]


def weighted(key, step):
    x, y = drawn(key, step)
    return x, y, jnp.where(x[:, 0] > 0, 2.0, 0.0)


def on_host(step):
    x = np.random.default_rng(step).uniform(-1, 1, (16, 2)).astype(np.float32)
    return x, x[:, :1] - 2 * x[:, 1:]


START = jnp.zeros((2, 1))
KEY = jax.random.key(5)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1000, 4099])
def test_the_order_of_an_epoch_has_each_row_once(n):
    words = np.asarray(epoch_words(KEY, 3))
    order = permuted(words, np.arange(n), n)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    np.testing.assert_array_equal(permuted(jnp.asarray(words), jnp.arange(n), n), order)


def test_orders_are_uniform():
    """Each of 6 places goes to each of 6 rows equally often over 3000 words: chi-squared of 25 degrees of freedom."""
    counts = np.zeros((6, 6))
    for words in np.random.default_rng(0).integers(0, 2**32, (3000, 8), np.uint32):
        counts[np.arange(6), permuted(words, np.arange(6), 6)] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 25 + 4 * np.sqrt(50)


def test_rows_beyond_32_bits_are_ordered_on_the_host():
    words, n = np.asarray(epoch_words(KEY, 0)), 2**36 + 1
    rows = permuted(words, np.append(np.arange(1000), n - 1), n)
    assert len(np.unique(rows)) == 1001
    assert rows.min() >= 0
    assert 2**35 < rows.max() < n


def test_shuffled_rows_on_the_host_are_those_of_arrays(x):
    x, y = jnp.asarray(x), jnp.sin(x[:, :1])
    options = {"optimizer": optax.adam(0.1), "steps": 13}
    data = ni.training.shuffled(lambda rows: (np.asarray(x)[rows], np.asarray(y)[rows]), len(x), 5, KEY, name="rows")
    one = ni.fit(linear, START, x, y, batch_size=5, key=KEY, **options)
    two = ni.fit(linear, START, data=data, **options)
    np.testing.assert_array_equal(one.losses, two.losses)
    np.testing.assert_array_equal(one.params, two.params)
    with pytest.raises(ValueError, match="batch_size is 50 but there are 23 rows"):
        ni.training.shuffled(lambda rows: (x, y), 23, 50, KEY, name="rows")


@pytest.mark.parametrize("data", [drawn, weighted, ni.host_data(on_host, name="plane")])
def test_steps_are_on_the_rows_of_the_data(data):
    """Against gradient descent written out."""
    result = ni.fit(linear, START, data=data, key=KEY, optimizer=SGD, steps=7, report_every=2)
    params, losses = np.zeros((2, 1)), []
    for t in range(7):
        batch = on_host(t) if isinstance(data, ni.training.HostData) else data(jax.random.fold_in(KEY, t), t)
        x, y, *weights = (np.asarray(part, float) for part in batch)
        w = weights[0][:, None] if weights else 1.0
        error = x @ params - y
        losses.append((w * error**2 / 2).mean())
        params = params - 0.1 * x.T @ (w * error) / len(x)
    np.testing.assert_allclose(result.losses, losses, rtol=1e-5)
    np.testing.assert_allclose(result.params, params, rtol=1e-5)
    # A report is on the rows of the step that comes, which has the loss before that step; the last on the last ones.
    assert result.history["step"].tolist() == [0, 2, 4, 6, 7]
    np.testing.assert_allclose(result.history["loss"][:4], np.asarray(losses)[[0, 2, 4, 6]], rtol=1e-5)
    assert result.psnr.shape == (5,)
    assert not result.full_batch


def test_samplers_see_the_step_and_may_hold_arrays():
    """Coarse to fine, from a table that is an argument of the compiled steps."""

    def sampler(table, key, step):
        size = jnp.where(step < 5, 4, 16)
        rows = jax.random.randint(key, (8,), 0, size)
        return table[rows], (rows >= 4)[:, None] * 1.0

    table = jnp.ones((16, 2)).at[:, 1].set(jnp.arange(16) >= 4)
    result = ni.fit(linear, START, data=Partial(sampler, table), key=KEY, optimizer=SGD, steps=200)
    assert (result.losses[:5] == 0).all()
    assert result.losses[5:].max() > 0.1
    np.testing.assert_allclose(result.params[1, 0], 1.0, atol=0.2)


def test_seeds_draw_rows_of_their_own():
    runs = ni.fit_seeds(Partial(linear), jnp.zeros((2, 2, 1)), data=drawn, key=KEY, optimizer=SGD, steps=3)
    assert not np.array_equal(runs[0].losses, runs[1].losses)


@pytest.mark.parametrize("data", [drawn, ni.host_data(on_host, name="plane")])
def test_runs_on_data_resume_with_the_same_bits_and_go_further(data, tmp_path):
    options = {"data": data, "key": KEY, "optimizer": optax.adam(0.1), "checkpoint_every": 3}
    straight = ni.fit(linear, START, **options, steps=20)
    ni.fit(linear, START, **options, steps=9, checkpoint=tmp_path)
    further = ni.fit(linear, START, **options, steps=20, checkpoint=tmp_path)
    np.testing.assert_array_equal(further.params, straight.params)
    np.testing.assert_array_equal(further.losses, straight.losses)
    with pytest.raises(FileExistsError, match=r"of this run up to step 20, beyond steps=9"):
        ni.fit(linear, START, **options, steps=9, checkpoint=tmp_path)
    other = (
        ni.host_data(on_host, name="another")
        if data is not drawn
        else (lambda key, t: drawn(jax.random.fold_in(key, t), t))
    )
    with pytest.raises(FileExistsError, match="data differ"):
        ni.fit(linear, START, **{**options, "data": other}, steps=20, checkpoint=tmp_path)


def test_further_steps_at_another_rate(tmp_path):
    def run(rate, resume=True, steps=12):
        options = {"optimizer": optax.adam(rate), "steps": steps, "checkpoint": tmp_path, "resume": resume}
        return ni.fit(linear, START, data=drawn, key=KEY, **options)

    first = run(0.1)
    with pytest.raises(FileExistsError, match=r'its rate or its schedule differ .resume="further"'):
        run(0.01, steps=20)
    further = run(0.01, "further", 20)
    np.testing.assert_array_equal(further.losses[:12], first.losses)
    assert further.steps == 20
    np.testing.assert_array_equal(run(0.01, steps=20).params, further.params)  # it is that run now
    # A schedule counts the steps that were taken without one: of 30 steps, 10 are left.
    scheduled = run(optax.linear_schedule(0.1, 0.0, 30), "further", 30)
    straight = ni.fit(
        linear,
        START,
        data=drawn,
        key=KEY,
        optimizer=optax.adam(lambda t: jnp.where(t < 12, 0.1, jnp.where(t < 20, 0.01, 0.1 * (1 - t / 30)))),
        steps=30,
    )
    np.testing.assert_allclose(scheduled.params, straight.params, rtol=1e-5)
    with pytest.raises(ValueError, match="another structure"):
        ni.fit(linear, START, data=drawn, key=KEY, optimizer=SGD, steps=30, checkpoint=tmp_path, resume="further")


def test_the_best_report_is_kept_and_resumed(tmp_path):
    """A rate that grows until it diverges: the best report is in the middle."""
    x = jnp.asarray(on_host(0)[0])
    y = x @ jnp.array([[1.0], [-2.0]])
    options = {"optimizer": optax.sgd(lambda t: 0.1 * 1.2**t), "steps": 30, "report_every": 1}
    last = ni.fit(linear, START, x, y, **options)
    best = ni.fit(linear, START, x, y, **options, keep="best")
    assert 0 < best.best_step < 30
    assert last.best_step is None
    where = int(np.argmax(last.history["psnr"]))
    assert best.best_step == last.history["step"][where]
    np.testing.assert_allclose(
        ni.training.curves.psnr(np.square(x @ best.params - y).mean()), last.history["psnr"][where], rtol=1e-5
    )
    ni.fit(linear, START, x, y, **{**options, "steps": best.best_step + 2}, keep="best", checkpoint=tmp_path)
    again = ni.fit(linear, START, x, y, **options, keep="best", checkpoint=tmp_path)
    np.testing.assert_array_equal(again.params, best.params)


def test_reports_are_on_a_sample_and_the_last_on_all(monkeypatch):
    monkeypatch.setattr(run, "FEW", 50)
    monkeypatch.setattr(run, "SAMPLE", 50)
    monkeypatch.setattr(steps, "_ROWS_AT_ONCE", 64)
    x = jax.random.uniform(KEY, (1000, 2))
    y = x[:, :1] + 0.1 * jax.random.normal(KEY, (1000, 1))
    options = {"optimizer": SGD, "batch_size": 32, "key": KEY}
    result = ni.fit(linear, START, x, y, steps=10, **options)
    whole = optax.l2_loss(x @ result.params, y).mean()
    np.testing.assert_allclose(result.history["loss"][-1], whole, rtol=1e-5)
    first = [float(ni.fit(linear, START, x, y, steps=k, **options).history["loss"][0]) for k in (1, 2)]
    assert first[0] == first[1] != float(optax.l2_loss(0 * y, y).mean())
    # A target counts once all rows have it, though the sample may say so before.
    stopped = ni.fit(linear, START, x, y, steps=500, stop_at=15.0, report_every=1, **options)
    assert stopped.status == "target reached"
    assert ni.training.curves.psnr(np.square(x @ stopped.params - y).mean()) >= 15


def test_losses_of_long_fused_calls(monkeypatch):
    """A call holds four losses at a time. Each run has its own optimizer, and so its own program."""

    def losses():
        run = ni.fit(linear, START, data=drawn, key=KEY, optimizer=optax.sgd(0.1), steps=11, report_every=11)
        return run.losses

    whole = losses()
    for module in ("steps", "course", "saver"):
        monkeypatch.setattr(f"ntk_inr.training.{module}.CALL_STEPS", 4)
    np.testing.assert_array_equal(losses(), whole)


def test_progress_ticks_by_time_with_figures():
    seen = []

    def slow(step):
        time.sleep(0.05)
        return on_host(step)

    ni.fit(
        linear, START, data=ni.host_data(slow, name="slow"), optimizer=SGD, steps=60, report_every=60,
        progress=lambda done, total, figures: seen.append((done, figures)),
    )  # fmt: skip
    assert 2 < len(seen) < 20
    assert seen[-1][0] == 60
    assert {"loss", "psnr", "batch_loss"} <= set(seen[-1][1])


def fails(step):
    raise OSError("the disk is gone")


def changes(step):
    return tuple(part[: 16 - step // 3] for part in on_host(step))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"x": np.zeros((3, 2))}, ValueError, "give x and y, or data="),
        ({"data": np.zeros(3)}, TypeError, "data is ndarray; expected sampler"),
        ({"key": None}, ValueError, "data= needs key="),
        ({"batch_size": 4}, ValueError, "batch_size=4 got data="),
        ({"optimizer": optax.lbfgs()}, ValueError, "data= got an optimizer that searches"),
        ({"data": lambda key, step: jnp.zeros(3)}, TypeError, r"data\(key, step\) gave .*expected \(x \(m, d\)"),
        ({"data": lambda key, step: (jnp.zeros(3), jnp.zeros((3, 1)))}, ValueError, r"x that data\(key, 0\) gives has"),
        ({"data": ni.host_data(fails, name="disk")}, OSError, "the disk is gone"),
        ({"data": ni.host_data(changes, name="patches")}, ValueError, r"\(15, 2\) float32.* at step 3, but \(16, 2\)"),
        ({"data": ni.host_data(lambda step: np.zeros(3), name="x")}, TypeError, "gave ndarray at step 0"),
        ({"resume": "again"}, ValueError, "unknown resume 'again'"),
        ({"keep": "worst"}, ValueError, "unknown keep 'worst'"),
        ({"report_every": 0}, ValueError, "report_every is 0"),
    ],
)
def test_bad_data(unchecked, change, kind, message):
    with pytest.raises(kind, match=message):
        ni.fit(linear, START, **{"data": drawn, "key": KEY, "optimizer": SGD, "steps": 9, **change})
