"""In-process training loops and single updates: their data, their reports, and the sources of a run."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch

import offrld
from offrl.errors import Conflict, InvalidInput, OffrlError, Unknown
from offrl_store import EpisodeStore
from offrld.algos import ALGORITHMS
from offrld.engine import Learner
from offrld.engine.learner.guards import Diverged

CHEAP = {"batch_size": 16}


def build(name, store, config=CHEAP, **options):
    return offrld.build(name, store, config=config, **options)


def same_state(one, other):
    mine, theirs = one.state.tensors(), other.state.tensors()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def rows_seen(learner, **options):
    """The rows of every batch of a fit."""
    seen = []

    def callback(learner, epoch, step):
        feeds = learner.trainer.feeds
        seen.append(feeds.several_steps[0].source.samples(step - 1 + feeds.selection.offset).batch.index.tolist())

    learner.fit(callback=callback, **options)
    return seen


def test_fit_by_steps_is_the_same_as_run(continuous_store):
    one, other = build("td3_bc", continuous_store, seeds=[0, 5]), build("td3_bc", continuous_store, seeds=[0, 5])
    epochs = one.fit(10, steps_per_epoch=4)
    other.run(10)
    assert same_state(one, other)
    assert [epoch for epoch, _ in epochs] == [1, 2, 3]
    assert set(epochs[0][1]) >= {"critic_loss", "time_sample_batch", "time_algorithm_update"}
    assert set(epochs[0][1]["critic_loss"]) == {0, 5}


def test_an_epoch_is_a_pass_over_all_transitions_each_time_in_another_order(continuous_store):
    learner = build("bc", continuous_store)
    learner.run(3)  # a pass starts over, wherever training stood before
    count = continuous_store.transition_count // 16
    seen = rows_seen(learner, epochs=2)
    assert len(seen) == 2 * count
    first, second = (np.concatenate(part) for part in (seen[:count], seen[count:]))
    assert len(set(first.tolist())) == len(first) == 16 * count
    assert first.tolist() != second.tolist()
    assert len(rows_seen(learner, epochs=1, shuffle=False)) == count


def test_training_uses_only_the_chosen_episodes_and_transitions(continuous_store):
    table = continuous_store.episode_table
    learner = build("bc", continuous_store)

    def episodes_of(rows):
        return {int(np.searchsorted(table["first_row"], row, side="right")) - 1 for batch in rows for row in batch}

    assert episodes_of(rows_seen(learner, steps=30, episodes=[2, 7])) == {2, 7}
    assert episodes_of(rows_seen(learner, epochs=1, episodes=continuous_store.episodes[3:6])) == {3, 4, 5}
    rows = continuous_store.episodes[4:5].transitions
    assert {row for batch in rows_seen(learner, steps=20, transitions=rows[:3]) for row in batch} == set(rows.rows[:3].tolist())
    assert episodes_of(rows_seen(learner, steps=30)) > {2, 7}
    chosen = build("bc", continuous_store, episodes=[1, 2, 3, 4], holdout=0.25)
    assert len(chosen.holdout) == 1
    assert episodes_of(rows_seen(chosen, steps=30)) == {1, 2, 3, 4} - set(chosen.holdout.tolist())
    with pytest.raises(InvalidInput):
        learner.fit(5, episodes=[99])
    with pytest.raises(InvalidInput, match="steps=N or epochs=N"):
        learner.fit(5, epochs=1)


def test_what_is_reported_after_an_epoch(continuous_store, tmp_path):
    learner, calls, logged, out = build("td3_bc", continuous_store, holdout=0.25), [], [], io.StringIO()
    epochs = learner.fit(
        6,
        steps_per_epoch=3,
        callback=lambda *call: calls.append(call[1:]),
        epoch_callback=lambda *call: calls.append(("end", *call[1:])),
        evaluators={"length": lambda learner, episodes: len(episodes), "each": lambda learner, episodes: {0: 2.5}},
        show_progress=True,
        save_to=tmp_path / "run",
        save_interval=2,
        logger=lambda *line: logged.append(line[:2]),
        verbose=True,
        output=out,
    )
    assert calls == [(1, 1), (1, 2), (1, 3), ("end", 1, 3), (2, 4), (2, 5), (2, 6), ("end", 2, 6)]
    assert logged == [(1, 3), (2, 6)]
    assert epochs[1][1]["length"] == {0: 3.0}
    assert epochs[1][1]["each"] == {0: 2.5}
    assert "validation_critic_loss" in epochs[0][1]
    assert [line.split(":")[0] for line in out.getvalue().splitlines()] == ["epoch 1, step 3", "epoch 2, step 6"]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["000000000006.safetensors"]
    rows = (tmp_path / "run" / "seed-0" / "metrics" / "length.csv").read_text().splitlines()
    assert rows == ["epoch,step,value", "1,3,3.0", "2,6,3.0"]
    again = offrld.load(tmp_path / "run", continuous_store, holdout=0.25)
    assert again.step == 6
    again.fit(3)
    learner.fit(3)
    assert same_state(again, learner)


def test_the_generator_lets_settings_change_between_epochs(continuous_store):
    learner, plain = build("td3_bc", continuous_store), build("td3_bc", continuous_store)
    plain.run(8)
    for epoch, _ in learner.fitter(8, steps_per_epoch=4):
        if epoch == 1:
            learner.reconfigure({"critic_learning_rate": 1e-2})
    assert not same_state(learner, plain)
    assert learner.config.critic_learning_rate == 1e-2
    before = {name: value.clone() for name, value in learner.state.tensors().items()}
    for bad in ({"critic_encoder.units": [8]}, {"observation_scaler": "none"}, {"alhpa": 1.0}):
        with pytest.raises(InvalidInput):
            learner.reconfigure(bad)
    assert all(torch.equal(before[name], value) for name, value in learner.state.tensors().items())
    learner.run(1)


def test_the_choice_of_episodes_survives_a_change_of_settings_between_epochs(continuous_store):
    learner, rows = build("td3_bc", continuous_store), set()

    def callback(learner, epoch, step):
        feeds = learner.trainer.feeds
        rows.update(feeds.several_steps[0].source.samples(step - 1 + feeds.selection.offset).batch.index.tolist())

    for epoch, _ in learner.fitter(24, steps_per_epoch=8, episodes=[2], callback=callback):
        learner.reconfigure({"batch_size": 16 + epoch})
    first, steps = (int(continuous_store.episode_table[name][2]) for name in ("first_row", "steps"))
    assert rows <= set(range(first, first + steps))
    learner.run(1)
    assert learner.trainer.lent is None and len(learner.trainer.batches(0)[0].reward) == 19


@pytest.mark.parametrize("values", [{"transformer.heads": 3}, {"encoder.units": [8]}])
def test_a_refused_change_of_settings_leaves_no_trace(values, continuous_store, tmp_path):
    name, config = "decision_transformer", {**CHEAP, "encoder.units": [16]}
    learner, plain = (build(name, continuous_store, config) for _ in range(2))
    learner.run(2)
    plain.run(4)
    with pytest.raises(InvalidInput):
        learner.reconfigure(values)
    learner.save(tmp_path / "here")
    again = offrld.load(tmp_path / "here", continuous_store)
    assert again.config == learner.config == plain.config
    for trained in (learner, again):
        trained.run(2)
        assert same_state(trained, plain)
        assert trained.metrics() == plain.latest()


@pytest.mark.parametrize("name", ["td3_bc", "iql", "cal_ql", "discrete_cql", "decision_transformer"])
def test_an_update_on_the_stores_batch_equals_that_of_run(name, store_for):
    algorithm = ALGORITHMS[name]
    store = store_for(algorithm)
    config = {**CHEAP, **({"reward_scaler.type": "multiply", "reward_scaler.multiplier": 3.0, "n_steps": 3} if name == "iql" else {})}
    by_run, by_hand = (build(name, store, config, seeds=[3]) for _ in range(2))
    given = by_run.config
    if algorithm.batch_kind == "windows":
        sampler = store.windows(16, given.context_size, seed=3)
    else:
        extra = {"next_action": bool(algorithm.next_action), "returns": algorithm.returns}
        sampler = store.transitions(16, seed=3, n_steps=given.n_steps, gamma=given.gamma, **extra)
    for _ in range(4):
        metrics = by_hand.update(sampler.sample())
        by_run.run(1)
        expected = by_run.metrics()
        assert {name: values[3] for name, values in metrics.items()} == pytest.approx({n: v[3] for n, v in expected.items()}, rel=1e-6)
    for one, other in zip(by_run.state.tensors().values(), by_hand.state.tensors().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert by_hand.step == 4


def test_a_callers_batch_must_have_the_required_fields(continuous_store):
    learner = build("td3_bc", continuous_store)
    with pytest.raises(InvalidInput, match=r"observation 'observation' of the batch is \[16, 6\], \[16, 3\] is needed"):
        learner.update(continuous_store.transitions(16, seed=0, frame_stack=2).sample())
    with pytest.raises(InvalidInput, match="no returns"):
        build("cal_ql", continuous_store).update(continuous_store.transitions(16, seed=0).sample())
    learner.update(continuous_store.transitions(5, seed=0).sample())  # of any size
    learner.update(continuous_store.prioritized(8, seed=0).sample())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"action": lambda a: a[:, :1]}, r"action of the batch is \[16, 1\], \[16, 2\] is needed"),  # torch would broadcast it
        ({"action": lambda a: a[:, 0]}, r"action of the batch is \[16\]"),
        ({"action": lambda a: a.astype(str)}, "action of the batch has a value that is not a finite number"),
        ({"action": lambda a: a.astype(object)}, "not a finite number"),
        ({"reward": lambda r: r[:, None]}, r"reward of the batch is \[16, 1\]; \[B\] is needed"),
        ({"reward": lambda r: r[0]}, r"reward of the batch is \[\]"),
        ({"reward": lambda r: np.where(r == r[3], np.nan, r)}, "reward of the batch has a value that is not a finite number"),
        ({"terminal": lambda t: t[:3]}, r"terminal of the batch is \[3\], \[16\] is needed"),
        ({"discount": lambda d: d[0]}, r"discount of the batch is \[\]"),
        ({"next_observation": lambda o: o[:, :2]}, r"next_observation 'observation' of the batch is \[16, 2\]"),
        ({"observation": lambda o: o.astype(complex)}, "not a finite number"),
        ({"observation": lambda o: [[1.0], [1.0, 2.0]]}, r"observation 'observation' of the batch is \[\]"),
        ({"weight": lambda w: np.array(["heavy"] * 16)}, "weight of the batch"),
        (
            dict.fromkeys(("observation", "action", "reward", "next_observation", "terminal", "discount"), lambda x: x[:0]),
            "at least one row",
        ),
    ],
)
def test_a_callers_batch_that_torch_would_broadcast_or_cut_is_refused_and_nothing_changes(continuous_store, change, words):
    learner = build("td3_bc", continuous_store)
    before, batch = learner.predict(np.zeros((1, 3))), continuous_store.transitions(16, seed=0).sample()
    with pytest.raises(InvalidInput, match=words):
        learner.update(dataclasses.replace(batch, **{name: made(getattr(batch, name)) for name, made in change.items()}))
    assert learner.step == 0
    assert np.array_equal(learner.predict(np.zeros((1, 3))), before)


def test_discrete_actions_of_a_callers_batch_must_exist(discrete_store):
    learner = build("discrete_bc", discrete_store)
    batch = discrete_store.transitions(8, seed=0).sample()
    size = learner.space_.action_size
    for action in (batch.action + 0.5, batch.action - size, batch.action + size):
        with pytest.raises(InvalidInput, match=f"action of the batch has the value .*; the choices are 0 to {size - 1}"):
            learner.update(dataclasses.replace(batch, action=action))
    learner.update(dataclasses.replace(batch, action=batch.action.astype(np.float32)))
    with pytest.raises(InvalidInput, match="a batch is a dict"):
        learner.update({"observation": batch.observation})


def test_an_invalid_source_run_is_refused_in_one_line(continuous_store):
    learner = build("td3_bc", continuous_store)
    for other, words in (("a text", "given as a str"), (None, "given as a NoneType"), ([], "has no seed"), ({}, "given as a dict")):
        with pytest.raises(InvalidInput, match=words):
            learner.copy_policy_from(other)
    with pytest.raises(InvalidInput, match="has no seed"):
        build("td3_bc", continuous_store, start=[])


@pytest.mark.parametrize(
    "options",
    [
        {"seeds": [0.5]}, {"seeds": 3}, {"seeds": "ab"}, {"threads": 0}, {"threads": 10**10}, {"threads": 1.5}, {"runner": "fast"},
        {"holdout": -1}, {"holdout": float("nan")}, {"dtype": torch.int32}, {"dtype": "float32"},
    ],
)  # fmt: skip
def test_an_argument_of_the_wrong_type_gives_a_one_line_error(continuous_store, options):
    with pytest.raises(InvalidInput) as caught:
        build("bc", continuous_store, **options)
    assert next(iter(options)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_evaluator_that_returns_no_number_is_named_and_numpys_numbers_are_accepted(continuous_store):
    learner = build("bc", continuous_store)
    for evaluator in (lambda learner, episodes: None, lambda learner, episodes: {"first": 1.0}):
        with pytest.raises(InvalidInput, match="the evaluator 'error' returned"):
            learner.fit(1, evaluators={"error": evaluator})
    learner.fit(np.int64(2), steps_per_epoch=np.int32(1))
    assert learner.step == 4


def test_export_replaces_a_file_unless_that_is_refused(continuous_store, tmp_path):
    learner, path = build("bc", continuous_store), tmp_path / "policy.onnx"
    path.write_text("notes")
    with pytest.raises(Conflict, match="exists and has other content"):
        learner.export(path, force=False)
    assert path.read_text() == "notes"
    assert learner.export(path) == path
    assert learner.export(path, force=False) == path  # the same content is not a conflict
    with pytest.raises(InvalidInput, match="it is a folder"):
        (tmp_path / "folder.onnx").mkdir()
        learner.export(tmp_path / "folder.onnx", force=False)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_observations_are_refused(continuous_store, discrete_store, value):
    for name, store in (("td3_bc", continuous_store), ("discrete_bc", discrete_store)):
        learner = build(name, store)
        observation = np.zeros((2, *learner.space_.observation["observation"][1]), np.float32)
        observation[1, 1] = value
        with pytest.raises(InvalidInput, match=f"observation has the value {value}"):
            learner.predict(observation)


def test_predict_sample_and_values(continuous_store, discrete_store):
    learner = build("iql", continuous_store, seeds=[0, 1])
    learner.run(3)
    x = np.array(continuous_store.column("observation")[:7])
    actions = learner.predict(x)
    assert actions.dtype == np.float32 and actions.shape == (7, 2)
    assert np.array_equal(actions, learner.policy(0)(torch.from_numpy(x)).detach().numpy())
    assert not np.array_equal(actions, learner.predict(x, seed=1))
    drawn = learner.sample(x, step=4)
    assert np.array_equal(drawn, learner.sample(x, step=4))
    assert not np.array_equal(drawn, learner.sample(x, step=5))
    assert not np.array_equal(drawn, actions)
    values, std = learner.predict_value(x, actions, with_std=True)
    scaled = learner.scalers.observation["observation"]
    seen = torch.from_numpy(x) if scaled is None else scaled(torch.from_numpy(x))
    params = {name: value[0].detach() for name, value in learner.state.params.items()}
    members = learner.nets.critic(params, seen, learner.scalers.action(torch.from_numpy(actions))).detach().numpy()
    np.testing.assert_allclose(values, members.mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, members.std(0), rtol=1e-3, atol=1e-6)
    with pytest.raises(InvalidInput) as error:
        learner.predict(x[0])
    assert "[None]" in error.value.hint
    with pytest.raises(Unknown, match="seed 9"):
        learner.predict(x, seed=9)
    with pytest.raises(InvalidInput, match="learns no values"):
        build("bc", continuous_store).predict_value(x, actions)

    soft = build("discrete_sac", discrete_store)
    y = np.array(discrete_store.column("observation")[:1]).repeat(4000, 0)
    shares = np.bincount(soft.sample(y), minlength=3) / 4000
    with torch.no_grad():
        expected = torch.softmax(soft.actor._acted(y[:1], None), -1)[0].numpy()
    np.testing.assert_allclose(shares, expected, atol=0.04)
    assert soft.predict(y[:2]).dtype == np.int64
    assert soft.predict_value(y[:2], [0, 2]).shape == (2,)
    with pytest.raises(InvalidInput, match="0 to 2"):
        soft.predict_value(y[:2], [0, 3])


def test_a_learner_is_created_from_an_environment_or_shapes_and_loaded_without_data(continuous_store, tmp_path):
    import gymnasium

    with gymnasium.make("Pendulum-v1") as env:
        learner = build("sac", env)
        assert learner.predict(env.reset(seed=0)[0][None]).shape == (1, 1)
    assert learner.space["source"] == "env:Pendulum-v1"
    by_hand = build("td3_bc", offrld.Shapes.of((3,), action_size=2, low=-2.0, high=2.0), {**CHEAP, "observation_scaler": "none"})
    by_hand.update(continuous_store.transitions(16, seed=0).sample())
    with pytest.raises(InvalidInput, match="no dataset"):
        by_hand.run(1)
    with pytest.raises(InvalidInput, match="standard"):
        build("td3_bc", offrld.Shapes.of((3,), action_size=2))
    with pytest.raises(InvalidInput, match="learns discrete actions"):
        build("dqn", offrld.Shapes.of((3,), action_size=2))

    trained = build("td3_bc", continuous_store, seeds=[3, 1])
    trained.run(4)
    trained.save(tmp_path / "a.safetensors")
    loaded = offrld.load(tmp_path / "a.safetensors")
    x = np.array(continuous_store.column("observation")[:7])
    for seed in (3, 1):
        assert np.array_equal(loaded.predict(x, seed=seed), trained.predict(x, seed=seed))
    assert loaded.export(tmp_path / "p.onnx", seed=1).exists()
    loaded.save(tmp_path / "b.safetensors")
    again = offrld.load(tmp_path / "b.safetensors", continuous_store.path)
    again.run(2)
    trained.run(2)
    assert same_state(again, trained)


def test_copies_between_learners(continuous_store):
    one, other = build("td3_bc", continuous_store), build("td3_bc", continuous_store, seeds=[7])
    one.run(6)

    def equal(prefix):
        mine, theirs = one.state.tensors(), other.state.tensors()
        return {name.startswith(prefix) and torch.equal(mine[name], theirs[name]) for name in mine if name.startswith(prefix)} == {True}

    other.copy_policy_from(one)
    assert equal("params/actor") and equal("target/actor") and not equal("params/critic") and not equal("optimizer/train.actor")
    other.copy_policy_optim_from(one.loaded())
    assert equal("optimizer/train.actor") and not equal("optimizer/train.critic")
    other.copy_q_function_from(one)
    other.copy_q_function_optim_from(one)
    assert same_state(one, other)
    other.reset_optimizer_states()
    assert all(not value.any() for name, value in other.state.tensors().items() if name.startswith("optimizer/"))
    small = build("td3_bc", continuous_store, {**CHEAP, "actor_encoder.units": [8]})
    before = {name: value.clone() for name, value in small.state.tensors().items()}
    with pytest.raises(InvalidInput, match=r"network 'actor' does not fit: actor\.\S+ is \[256"):
        small.copy_policy_from(one)
    assert all(torch.equal(before[name], value) for name, value in small.state.tensors().items())


def test_a_run_starts_from_another_runs_networks(continuous_store, discrete_store, tmp_path):
    source = build("iql", continuous_store, {**CHEAP, "observation_scaler": "standard"}, seeds=[1, 2])
    source.run(5)
    source.save(tmp_path / "s.safetensors")
    x = np.array(continuous_store.column("observation")[:5])
    told = []
    started = build("iql", continuous_store, seeds=[2, 9], start=tmp_path / "s.safetensors", log=told.append)
    assert np.array_equal(started.predict(x, seed=2), source.predict(x, seed=2))  # its own, scaled as it was
    assert np.array_equal(started.predict(x, seed=9), source.predict(x, seed=1))  # or the first
    assert any("scaled as in" in text for text in told)
    assert started.step == 0 and started.trainer.moves["train.critic"] == 5
    assert build("iql", continuous_store, start=source, fresh_optimizer=True).trainer.moves["train.critic"] == 0
    part = build("iql", continuous_store, seeds=[2], start=source, transfer="critics")
    assert torch.equal(part.state.params["value.head.bias"][0], source.state.params["value.head.bias"][1])
    assert not torch.equal(part.state.params["actor.head.bias"][0], source.state.params["actor.head.bias"][1])
    cloned = build("bc", continuous_store)
    actor = build("td3_bc", continuous_store, start=cloned, transfer="policy")
    assert torch.equal(actor.state.params["actor.head.bias"][0], cloned.state.params["policy.head.bias"][0])
    with pytest.raises(InvalidInput, match="has no network 'critic'"):
        build("td3_bc", continuous_store, start=cloned)
    with pytest.raises(InvalidInput, match="has no networks of its own for 'policy'"):
        build("dqn", discrete_store, start=build("dqn", discrete_store), transfer="policy")


def test_guards_in_process(continuous_store, tmp_path):
    told = []
    with pytest.raises(Diverged, match=r"of seed 0 .* by step"):
        offrld.train("td3_bc", continuous_store, steps=200, config={**CHEAP, "critic_learning_rate": 1e25}, metrics_every=5)
    learner = build("td3_bc", continuous_store, seeds=[0, 1], log=told.append)
    with torch.no_grad():
        next(value for name, value in learner.state.params.items() if name.startswith("critic."))[1] = float("nan")
    learner.fit(4, steps_per_epoch=2)
    assert list(learner.guard.stopped) == [1]
    assert any("critic_loss of seed 1 became nan by step 2" in text for text in told)
    assert learner.broken().keys() == {1}
    learner.save(tmp_path / "c.safetensors")
    assert list(offrld.load(tmp_path / "c.safetensors").guard.stopped) == [1]


def test_classic_mistakes_are_reported_before_the_first_update(tmp_path):
    from offrl_store import Episode, Field, Schema

    def warnings(scale=1.0, reward=None, steps=40, episodes=3, action=1.0, terminated=True, **config):
        path = tmp_path / f"store-{len(list(tmp_path.iterdir()))}"
        random = np.random.default_rng(0)
        schema = Schema(observation=Field("float32", (3,)), action=Field("float32", (1,), low=-1, high=1), reward=Field("float32"))
        store = EpisodeStore.create(path, schema)
        with store.writer() as writer:
            for _ in range(episodes):
                seen = (scale * random.normal(size=(steps + 1, 3))).astype(np.float32)
                earned = random.normal(size=steps).astype(np.float32) if reward is None else np.full(steps, reward, np.float32)
                writer.append(Episode(seen, action * random.uniform(-1, 1, (steps, 1)).astype(np.float32), earned, terminated))
        told, algorithm = [], ALGORITHMS["iql"]
        bounds = (np.array([-0.5]), np.array([0.5])) if config.pop("narrow", False) else None
        Learner.create(algorithm, algorithm.configure({**CHEAP, **config}), EpisodeStore.open(path), log=told.append, bounds=bounds)
        return [text for text in told if text.startswith("warning: ")]

    def one(text, **options):
        found = warnings(**options)
        return len(found) == 1 and text in found[0]

    assert warnings() == []
    assert one("observations 'observation' reach", scale=1e4)
    assert warnings(scale=1e4, observation_scaler="standard") == []
    assert one("all rewards are 1", reward=1.0)
    assert one("one episode without an end", steps=1500, episodes=1, terminated=False)
    assert one("of the actions are outside of [-1, 1]", narrow=True)


def test_another_store_is_refused_on_loading(continuous_store, tmp_path):
    from small_stores import make_store

    learner = build("bc", continuous_store)
    learner.save(tmp_path / "c.safetensors")
    other = make_store(tmp_path / "other", discrete=False, seed=4)
    with pytest.raises(OffrlError, match="snapshot"):
        offrld.load(tmp_path / "c.safetensors", other)


def test_the_step_can_be_set_and_is_saved_in_the_checkpoint(continuous_store, tmp_path):
    straight, jumped = build("bc", continuous_store), build("bc", continuous_store)
    straight.run(3)
    jumped.step = 2
    jumped.run(1)
    assert jumped.step == 3
    assert not same_state(straight, jumped)
    jumped.save(tmp_path / "at-3.safetensors")
    assert offrld.load(tmp_path / "at-3.safetensors", continuous_store).step == 3
    # The step alone says which batch comes: from the same parameters at the same step both go the same way.
    jumped.copy_policy_from(straight)
    jumped.copy_policy_optim_from(straight)
    for learner in (straight, jumped):
        learner.run(2)
    assert same_state(straight, jumped)


@pytest.mark.parametrize(("name", "text"), [("gpu", "unknown device 'gpu'"), ("cuda:97", "'cuda:97' does not exist")])
def test_a_missing_device_is_named(name, text, continuous_store):
    with pytest.raises(InvalidInput, match=text):
        build("bc", continuous_store, device=name)
    assert build("bc", continuous_store, device="cpu").step == 0
