"""Recurrent PPO with dropout: the masks of the rollout in the update, or fresh ones.

PPO weighs each action by the ratio of its probability under the new and the old policy.
Before the first gradient step both are the same policy, and the ratio is 1. With naive
dropout it is not, because the update draws other masks than the rollout did. With
consistent dropout [1] it is. No mask is stored for that: a mask is a function of
(key, episode, step), and the update draws it again from the same three.

Two tasks need memory: to name the symbol seen two steps ago, and to balance a pole
without seeing velocities. One program trains all rates and seeds of a task.

    python -m examples.recurrent_ppo

[1] Hausknecht and Wagener. Consistent Dropout for Policy Gradient Reinforcement
    Learning. 2022. arXiv:2202.11818.
"""

import argparse
import math
import os
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import rdrop

KINDS = ("consistent", "naive")
DISCOUNT, TRACE, CLIP, VALUE, ENTROPY = 0.99, 0.95, 0.2, 0.5, 0.01
OPTIMISER = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-3, eps=1e-5))
COLOURS = ("#222222", "#2a9d5c", "#8e44ad", "#c0392b", "#1f6fb4", "#e07b1a")


class Task(NamedTuple):
    """A game that hides part of its state; returns lie in [0, 1]."""

    actions: int
    length: int  # of an episode, at most
    reset: Callable[..., Any]  # key -> state
    step: Callable[..., Any]  # (state, action, key) -> (state, reward, whether it ends)
    observe: Callable[..., Any]  # state -> [D]


class Settings(NamedTuple):
    """The sizes of a run; each group of environments is a minibatch."""

    updates: int = 200
    every: int = 5  # updates, then an evaluation
    epochs: int = 4
    groups: int = 4
    rows: int = 8  # environments of a group
    steps: int = 64  # of a rollout
    units: int = 64
    per: str = "sequence"  # masks are held over an episode; or drawn per "step"


def repeat_previous(delay: int = 2, symbols: int = 4, length: int = 32) -> Task:
    """Name the symbol seen `delay` steps ago; the return is the share named right."""

    def reset(key):
        seen = jnp.zeros(delay + 1, jnp.int32)  # the newest symbol first
        return seen.at[0].set(jax.random.randint(key, (), 0, symbols)), 0

    def step(state, action, key):
        seen, now = state
        right = (action == seen[delay]) & (now >= delay)
        new = jax.random.randint(key, (1,), 0, symbols)
        state = (jnp.concatenate([new, seen[:-1]]), now + 1)
        return state, right / (length - delay), now + 1 == length

    def observe(state):
        return jax.nn.one_hot(state[0][0], symbols)

    return Task(symbols, length, reset, step, observe)


def masked_cart_pole(length: int = 200) -> Task:
    """Balance a pole on a cart; the return is the share of `length` steps survived.

    The cart of Barto, Sutton and Anderson (1983) without friction, in Euler steps of
    20 ms. Position and angle are observed, velocities are not.
    """

    def reset(key):
        return jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05), 0

    def step(state, action, key):
        (_, speed, angle, spin), now = state
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        push = (jnp.where(action == 1, 10.0, -10.0) + 0.05 * spin**2 * sin) / 1.1
        turn = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
        slopes = jnp.stack([speed, push - 0.05 * turn * cos / 1.1, spin, turn])
        new = state[0] + 0.02 * slopes
        falls = (abs(new[0]) > 2.4) | (abs(new[2]) > np.pi / 15)
        return (new, now + 1), jnp.float32(1 / length), falls | (now + 1 == length)

    def observe(state):
        return state[0][::2] * jnp.array([2.0, 20.0])

    return Task(2, length, reset, step, observe)


TASKS = {"repeat_previous": repeat_previous, "masked_cart_pole": masked_cart_pole}


class Network(nn.Module):
    """An encoder, a GRU, and the heads of policy and value."""

    actions: int
    units: int

    def setup(self):
        """The layer `rnn` has the parameters of `cell`."""
        self.encoder = nn.Dense(self.units)
        self.cell = rdrop.GRUCell(self.units)
        self.rnn = rdrop.RNN(self.cell, time_major=True)
        self.policy = nn.Dense(self.actions, kernel_init=nn.initializers.normal(0.01))
        self.critic = nn.Dense(1)

    def __call__(self, xs, dropout=None, keys=None, carry=None, resets=None):
        """Runs over a rollout [T, B, D]; returns logits and values."""
        hs = nn.tanh(self.encoder(xs))
        _, ys = self.rnn(hs, dropout, keys, initial_carry=carry, resets=resets)
        return self.policy(ys), self.critic(ys)[..., 0]

    def step(self, x, dropout, keys, carry):
        """Runs one step [B, D]; returns the carry, logits and values."""
        carry, y = self.cell(carry, nn.tanh(self.encoder(x)), dropout, keys)
        return carry, self.policy(y), self.critic(y)[..., 0]


class Actor(NamedTuple):
    """A group of environments, and the memory of the network in each of its rows."""

    keys: rdrop.StreamKeys  # with `step` and `episode`, int32[B]
    carry: jax.Array  # [B, H]
    resets: jax.Array  # bool[B], whether an episode begins
    states: Any


class Rollout(NamedTuple):
    """The actor before a rollout, and its course: [T, B], observations [T, B, D]."""

    actor: Actor
    observations: jax.Array
    resets: jax.Array
    actions: jax.Array
    log_probs: jax.Array  # as the actor computed them, step by step
    values: jax.Array
    rewards: jax.Array
    ends: jax.Array
    advantages: jax.Array


class Learner(NamedTuple):
    """The values that are carried from update to update."""

    params: Any
    moments: Any  # of the optimiser
    actors: Actor  # [G, ...]
    key: jax.Array
    updates: jax.Array | int


class Report(NamedTuple):
    """Measurements of one update, before it changes any parameter."""

    ratio: jax.Array  # [T, B], of the first minibatch
    rounding: jax.Array  # largest difference of log-probabilities, actor and layer


class PPO(NamedTuple):
    """Proximal policy optimisation of a task, with one kind of dropout."""

    task: Task
    settings: Settings
    kind: str

    @property
    def network(self) -> Network:
        """The network, without parameters."""
        return Network(self.task.actions, self.settings.units)

    def dropout(self, rate) -> rdrop.Dropout:
        """Noise on the inputs, the state and the outputs of the GRU."""
        noise = rdrop.Bernoulli(rate, per=self.settings.per)
        return rdrop.Dropout(inputs=noise, recurrent=noise, outputs=noise)

    def init(self, seed) -> Learner:
        """A new network, and environments in their first episode."""
        key = jax.random.key(seed)
        actors = jax.vmap(self.begin)(jax.random.split(key, self.settings.groups))
        params = self.network.init(key, jax.vmap(self.observe)(actors))
        return Learner(params, OPTIMISER.init(params), actors, key, jnp.int32(0))

    def begin(self, key) -> Actor:
        """A group in its first episode; its masks are drawn from `key` forever."""
        rows = self.settings.rows
        zeros = jnp.zeros(rows, jnp.int32)
        keys = rdrop.stream_keys(key).replace(step=zeros, episode=zeros)
        states = jax.vmap(self.task.reset)(jax.random.split(key, rows))
        return Actor(keys, jnp.zeros((rows, self.settings.units)), zeros > 0, states)

    def observe(self, actor) -> jax.Array:
        """The observations of a group, [B, D]."""
        return jax.vmap(self.task.observe)(actor.states)

    def act(self, params, dropout, actor):
        """Runs one step of the network; returns its keys, carry, logits and values."""
        keys, resets = actor.keys, actor.resets
        step, episode = jnp.where(resets, 0, keys.step), keys.episode + resets
        keys = keys.replace(step=step, episode=episode)
        carry = jnp.where(resets[:, None], 0, actor.carry)
        arguments = (self.observe(actor), dropout, keys, carry)
        return keys, *self.network.apply(params, *arguments, method="step")

    def play(self, params, dropout, actor, key, steps) -> tuple[Actor, Rollout]:
        """Plays with a group; returns the actor afterwards, and the rollout."""

        def step(actor, key):
            keys, carry, logits, values = self.act(params, dropout, actor)
            choice, moves, fresh = jax.random.split(key, 3)
            moves, fresh = (jax.random.split(k, len(carry)) for k in (moves, fresh))
            actions = jax.random.categorical(choice, logits)
            states, *outcome = jax.vmap(self.task.step)(actor.states, actions, moves)
            rewards, ends = outcome[0], jnp.asarray(outcome[1], bool)
            states = jax.vmap(where)(ends, jax.vmap(self.task.reset)(fresh), states)
            after = Actor(keys.replace(step=keys.step + 1), carry, ends, states)
            chosen = (actions, log_prob(logits, actions), values)
            return after, (self.observe(actor), actor.resets, *chosen, rewards, ends)

        after, path = jax.lax.scan(step, actor, jax.random.split(key, steps))
        last = self.act(params, dropout, after)[-1]
        return after, Rollout(actor, *path, advantages(*path[-3:], last))

    def loss(self, params, dropout, keys, rollout, old):
        """The loss, and as auxiliary values log-probabilities and ratio, [T, B].

        The masks are those of the rollout if the keys are.
        """
        place = (dropout, keys, rollout.actor.carry, rollout.resets)
        logits, values = self.network.apply(params, rollout.observations, *place)
        log_probs = log_prob(logits, rollout.actions)
        ratio, gain = jnp.exp(log_probs - old), jax.nn.standardize(rollout.advantages)
        clipped = jnp.clip(ratio, 1 - CLIP, 1 + CLIP)
        surrogate = jnp.minimum(ratio * gain, clipped * gain).mean()
        error = ((values - rollout.values - rollout.advantages) ** 2).mean()
        policy = jax.nn.log_softmax(logits)
        entropy = -(jnp.exp(policy) * policy).sum(axis=-1).mean()
        return VALUE * error - surrogate - ENTROPY * entropy, (log_probs, ratio)

    def update(self, learner, rate) -> tuple[Learner, Report]:
        """Plays a rollout with each group, and learns from them.

        Pass 0 over the groups changes nothing, and records the old log-probabilities.
        It is a turn of the loop that learns, so that its floating-point operations are
        the same: with equal masks and parameters the ratio is exactly 1.
        """
        dropout, epochs = self.dropout(rate), self.settings.epochs
        key = jax.random.fold_in(learner.key, learner.updates)
        play = partial(self.play, learner.params, dropout, steps=self.settings.steps)
        keys = jax.random.split(key, self.settings.groups)
        actors, rollouts = jax.vmap(play)(learner.actors, keys)

        def minibatch(number, state, inputs):
            (params, moments), (rollout, old) = state, inputs
            keys = rollout.actor.keys
            if self.kind == "naive":
                fresh = keys.fold_in(1 + learner.updates * epochs + number)
                keys = where(number > 0, fresh, keys)
            differentiate = jax.grad(self.loss, has_aux=True)
            gradient, found = differentiate(params, dropout, keys, rollout, old)
            changes, moments = OPTIMISER.update(gradient, moments, params)
            new = (optax.apply_updates(params, changes), moments)
            return where(number > 0, new, state), found

        def sweep(carry, number):
            state, old = carry
            turn = partial(minibatch, number)
            state, (log_probs, ratio) = jax.lax.scan(turn, state, (rollouts, old))
            return (state, jnp.where(number > 0, old, log_probs)), ratio[0]

        carry = ((learner.params, learner.moments), jnp.zeros_like(rollouts.values))
        (state, old), ratio = jax.lax.scan(sweep, carry, jnp.arange(epochs + 1))
        learner = Learner(*state, actors, learner.key, learner.updates + 1)
        return learner, Report(ratio[1], abs(old - rollouts.log_probs).max())

    def advance(self, learner, rate):
        """Updates, then evaluates; returns the learner, the reports and two returns."""

        def update(learner, _):
            return self.update(learner, rate)

        learner, reports = jax.lax.scan(update, learner, length=self.settings.every)
        noises = (self.dropout(rate), None)
        return learner, reports, [self.evaluate(learner, noise) for noise in noises]

    def evaluate(self, learner, dropout):
        """The mean return of one episode in each environment."""
        key = jax.random.fold_in(learner.key, -1 - learner.updates)
        keys = jax.random.split(key, self.settings.groups)
        play = partial(self.play, learner.params, dropout, steps=self.task.length)
        _, rollouts = jax.vmap(lambda key: play(self.begin(key), key))(keys)
        ended = jnp.cumsum(rollouts.ends, axis=1) - rollouts.ends
        return jnp.where(ended, 0, rollouts.rewards).sum(axis=1).mean()


def log_prob(logits, actions):
    """The log-probabilities of actions [...], from logits [..., A]."""
    policy = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(policy, actions[..., None], axis=-1)[..., 0]


def where(condition, yes, no):
    """`jnp.where` of trees."""
    return jax.tree.map(partial(jnp.where, condition), yes, no)


def advantages(values, rewards, ends, last):
    """Generalised advantage estimation, [T, B]; a time limit is an end too."""

    def step(carry, inputs):
        after, advantage = carry
        value, reward, discount = inputs
        advantage = reward + discount * (after + TRACE * advantage) - value
        return (value, advantage), advantage

    inputs = (values, rewards, DISCOUNT * (1 - ends))
    return jax.lax.scan(step, (last, jnp.zeros_like(last)), inputs, reverse=True)[1]


def train(ppo: PPO, rates, seeds: int, name: str):
    """Trains all rates and seeds in one program, spread over the devices.

    Returns:
        Returns [R, S, E, 2] of E evaluations, with noise and without; and the reports
        of all updates, [R, S, ...].
    """
    settings, began, found = ppo.settings, time.time(), []
    grid = np.meshgrid(np.float32(rates), np.arange(seeds), indexing="ij")
    rate, seed = (jnp.asarray(axis.ravel()) for axis in grid)
    mesh = jax.make_mesh((math.gcd(rate.size, jax.device_count()),), ("lane",))
    lane = PartitionSpec("lane")
    # Outside `shard_map`, where the QR of orthogonal matrices may deadlock on CPUs.
    learner = jax.jit(jax.vmap(ppo.init))(seed)
    learner, rate = jax.device_put((learner, rate), NamedSharding(mesh, lane))
    spread = partial(jax.shard_map, mesh=mesh, out_specs=lane, check_vma=False)
    advance = jax.jit(spread(jax.vmap(ppo.advance)))
    for updates in range(0, settings.updates, settings.every):
        learner, reports, returns = advance(learner, rate)
        found.append((np.stack(returns, axis=-1)[:, None], reports))
        done, mean = updates + settings.every, found[-1][0][..., 0].mean()
        print(f"{name}, {done:4} of {settings.updates} updates, ", end="")
        print(f"{time.time() - began:4.0f} s, mean return {mean:.2f}", flush=True)
    found = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *found)
    return jax.tree.map(lambda x: x.reshape(len(rates), seeds, *x.shape[1:]), found)


def over_seeds(values):
    """The mean over seeds [S, ...], and its standard error."""
    few = len(values) < 2
    return values.mean(axis=0), values.std(axis=0, ddof=not few) / len(values) ** 0.5


def row(rate, returns, reports) -> str:
    """The line of a rate: returns of the last fifth, and the ratios of all updates."""
    late = returns[:, -max(1, returns.shape[1] // 5) :].mean(axis=1)
    (noisy, quiet), (noisy_error, quiet_error) = over_seeds(late)
    line = f"{rate:6}{noisy:9.3f} ± {noisy_error:.3f}{quiet:9.3f} ± {quiet_error:.3f}"
    off = abs(reports.ratio - 1)
    line += f"{off.max():12.3g}{(off > CLIP).mean():10.1%}"
    return f"{line}{reports.rounding.max():11.1e}"


def draw(axes, title: str, rates, returns, every: int) -> None:
    """Curves of the return with noise; a band is a standard error to both sides."""
    axes.set(title=title, ylim=(0, 1), xlabel="updates", ylabel="return with noise")
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    updates = every * np.arange(1, returns.shape[2] + 1)
    for rate, curves, colour in zip(rates, returns[..., 0], COLOURS, strict=False):
        mean, error = over_seeds(curves)
        axes.plot(updates, mean, color=colour, label=f"rate {rate:g}")
        band = (mean - error, mean + error)
        axes.fill_between(updates, *band, color=colour, alpha=0.2, lw=0)


def main() -> None:
    """Trains all tasks and kinds, draws the curves and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rates", nargs="+", type=float, default=[0, 0.1, 0.25, 0.5])
    parser.add_argument("--seeds", type=int, default=8, help="of each rate")
    parser.add_argument("--updates", type=int, default=200, help="rounded up to fives")
    parser.add_argument("--per", choices=("sequence", "step"), default="sequence")
    parser.add_argument("--out", type=Path, default=Path("ppo.png"))
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    settings = Settings(options.updates, per=options.per)
    figure = Figure(figsize=(9, 3 * len(options.tasks)), layout="constrained")
    grid = figure.subplots(len(options.tasks), 2, squeeze=False)
    titles = ("with noise", "without", "|ratio - 1|", "clipped", "rounding")
    lines = [" " * 36 + "{:>17}{:>17}{:>12}{:>10}{:>11}".format(*titles)]
    for axes, (task, kind) in zip(
        grid.flat, product(options.tasks, KINDS), strict=True
    ):
        name, ppo = f"{task}, {kind}", PPO(TASKS[task](), settings, kind)
        returns, reports = train(ppo, options.rates, options.seeds, name)
        draw(axes, name, options.rates, returns, settings.every)
        for index, rate in enumerate(options.rates):
            of_rate = Report(*(leaf[index] for leaf in reports))
            lines.append(f"{name:<30}{row(rate, returns[index], of_rate)}")
    grid[0, 0].legend(frameon=False)
    figure.savefig(options.out, dpi=110)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
