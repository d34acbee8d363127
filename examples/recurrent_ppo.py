"""Recurrent PPO with dropout: the same masks in rollout and update, or fresh ones.

PPO weighs each action by the ratio of its probability under the new and the old policy.
Before the first gradient step the two are one policy, and the ratio is 1. With naive
dropout it is not, because the update draws other masks than the rollout did. With
consistent dropout [1] it is. Here no mask is stored for that: the masks are a function
of (key, episode, step), and the update draws them again from the same three.

Two tasks need memory: naming the symbol seen some steps ago, and balancing a pole
without seeing velocities. All rates and seeds of a task are trained in one program.

    python -m examples.recurrent_ppo

[1] Hausknecht and Wagener. Consistent Dropout for Policy Gradient Reinforcement
    Learning. 2022. arXiv:2202.11818.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import rdrop

KINDS = ("consistent", "naive")


class Task(NamedTuple):
    """A game that hides a part of its state."""

    actions: int
    reset: Callable[..., Any]  # key -> state
    step: Callable[..., Any]  # (state, action, key) -> (state, reward, done)
    observe: Callable[..., Any]  # state -> [D]


class Settings(NamedTuple):
    """The sizes of PPO; a minibatch is one group of environments."""

    updates: int = 100
    units: int = 64
    groups: int = 4
    rows: int = 8  # environments in a group
    steps: int = 64  # of a rollout
    epochs: int = 4
    learning_rate: float = 1e-3
    discount: float = 0.99
    trace: float = 0.95  # lambda of generalised advantage estimation
    clip: float = 0.2
    entropy: float = 0.01
    value: float = 0.5
    per: str = "sequence"  # lifetime of a mask: the episode, or the "step"


def repeat_previous(delay: int = 4, symbols: int = 4, length: int = 32) -> Task:
    """Name the symbol seen `delay` steps ago; the return is the share named right."""

    def reset(key):
        seen = jnp.zeros(delay + 1, jnp.int32)  # the newest first
        return seen.at[0].set(jax.random.randint(key, (), 0, symbols)), 0

    def step(state, action, key):
        seen, now = state
        right = (action == seen[delay]) & (now >= delay)
        new = jax.random.randint(key, (1,), 0, symbols)
        state = (jnp.concatenate([new, seen[:-1]]), now + 1)
        return state, right / (length - delay), now + 1 == length

    def observe(state):
        return jax.nn.one_hot(state[0][0], symbols)

    return Task(symbols, reset, step, observe)


def masked_cart_pole(length: int = 200) -> Task:
    """Balance a pole on a cart, seeing its position and angle but no velocity.

    The equations of Barto, Sutton and Anderson (1983), in Euler steps of 20 ms.
    """

    def reset(key):
        return jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05), 0

    def step(state, action, key):
        (x, v, angle, spin), now = state
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        push = (jnp.where(action == 1, 10.0, -10.0) + 0.05 * spin**2 * sin) / 1.1
        turn = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
        pull = push - 0.05 * turn * cos / 1.1
        slopes = jnp.stack([v, pull, spin, turn])
        x, v, angle, spin = new = jnp.stack([x, v, angle, spin]) + 0.02 * slopes
        fell = (abs(x) > 2.4) | (abs(angle) > np.pi / 15)
        return (new, now + 1), jnp.float32(1 / length), fell | (now + 1 == length)

    def observe(state):
        return state[0][::2] * jnp.array([2.0, 20.0])

    return Task(2, reset, step, observe)


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

    def __call__(self, xs, dropout, keys, carry, resets):
        """Runs over a rollout, xs [T, B, D]; returns logits [T, B, A], values."""
        hs = nn.tanh(self.encoder(xs))
        _, ys = self.rnn(hs, dropout, keys, initial_carry=carry, resets=resets)
        return self.policy(ys), self.critic(ys)[..., 0]

    def step(self, x, dropout, keys, carry):
        """Runs one step, x [B, D]; returns the carry, logits [B, A] and values."""
        carry, y = self.cell(carry, nn.tanh(self.encoder(x)), dropout, keys)
        return carry, self.policy(y), self.critic(y)[..., 0]


class Actor(NamedTuple):
    """A group of environments and the memory of the network in them; a row in each."""

    keys: rdrop.StreamKeys  # with `step` and `episode` of each row
    carry: Any  # [B, H]
    begins: Any  # bool[B], whether an episode begins at this step
    states: Any
    running: Any  # [B], the return so far
    returned: Any  # [B], the return of the last whole episode


class Path(NamedTuple):
    """What a group did in a rollout, each [T, B]."""

    observations: Any  # [T, B, D]
    begins: Any
    actions: Any
    log_probs: Any
    values: Any
    rewards: Any
    ends: Any


class Learner(NamedTuple):
    """Everything that a lane carries from update to update."""

    params: Any
    optimiser: Any
    actors: Actor  # [G, ...]
    key: Any
    updates: Any


class Report(NamedTuple):
    """Of one update; the ratio is measured before the parameters have changed."""

    returned: Any  # mean of the last whole episodes
    ratio: Any  # [T, B], of the first minibatch of the first epoch
    rounding: Any  # largest difference of log-probabilities, actor and loop


class PPO(NamedTuple):
    """Proximal policy optimisation of one task, with one kind of dropout."""

    task: Task
    settings: Settings
    kind: str

    @property
    def network(self):
        """The network; its parameters are an argument of all methods."""
        return Network(self.task.actions, self.settings.units)

    @property
    def optimiser(self):
        """Adam, with the norm of the gradient clipped."""
        adam = optax.adam(self.settings.learning_rate, eps=1e-5)
        return optax.chain(optax.clip_by_global_norm(0.5), adam)

    def dropout(self, rate) -> rdrop.Dropout:
        """Noise on the inputs, the state and the outputs of the recurrent layer."""
        noise = rdrop.Bernoulli(rate, per=self.settings.per)
        return rdrop.Dropout(inputs=noise, recurrent=noise, outputs=noise)

    def init(self, seed) -> Learner:
        """A new network, in environments that begin."""
        key = jax.random.key(seed)
        actors = jax.vmap(self.begin)(jax.random.split(key, self.settings.groups))
        first = jax.tree.map(lambda leaf: leaf[0], actors)
        xs = jax.vmap(self.task.observe)(first.states)[None]
        params = self.network.init(
            key, xs, None, None, first.carry, first.begins[None]
        )
        return Learner(params, self.optimiser.init(params), actors, key, 0)

    def begin(self, key) -> Actor:
        """A group of environments that begin, with a key for its masks."""
        rows = self.settings.rows
        masks, states = jax.random.split(key)
        zeros = jnp.zeros(rows, jnp.int32)
        return Actor(
            rdrop.stream_keys(masks).replace(step=zeros, episode=zeros),
            jnp.zeros((rows, self.settings.units)),
            jnp.zeros(rows, bool),
            jax.vmap(self.task.reset)(jax.random.split(states, rows)),
            jnp.zeros(rows),
            jnp.zeros(rows),
        )

    def act(self, params, dropout, actor):
        """Runs one step of the network; returns the actor, logits and values."""
        begins, keys = actor.begins, actor.keys
        keys = keys.replace(
            step=jnp.where(begins, 0, keys.step), episode=keys.episode + begins
        )
        carry = jnp.where(begins[:, None], 0, actor.carry)
        x = jax.vmap(self.task.observe)(actor.states)
        carry, logits, values = self.network.apply(
            params, x, dropout, keys, carry, method="step"
        )
        return actor._replace(keys=keys, carry=carry), logits, values

    def play(self, params, dropout, actor, key):
        """Plays a rollout with a group; returns the actor after it, and the path."""

        def step(actor, key):
            after, logits, values = self.act(params, dropout, actor)
            chosen, moved, new = jax.random.split(key, 3)
            actions = jax.random.categorical(chosen, logits)
            moved, new = (jax.random.split(k, self.settings.rows) for k in (moved, new))
            states, rewards, ends = jax.vmap(self.task.step)(
                actor.states, actions, moved
            )
            path = Path(
                jax.vmap(self.task.observe)(actor.states),
                actor.begins,
                actions,
                log_prob(logits, actions),
                values,
                rewards,
                ends,
            )
            running = actor.running + rewards
            after = Actor(
                after.keys.replace(step=after.keys.step + 1),
                after.carry,
                ends,
                where(ends, jax.vmap(self.task.reset)(new), states),
                jnp.where(ends, 0, running),
                jnp.where(ends, running, actor.returned),
            )
            return after, path

        actor, path = jax.lax.scan(
            step, actor, jax.random.split(key, self.settings.steps)
        )
        return actor, path, self.act(params, dropout, actor)[2]

    def advantages(self, path, last):
        """Generalised advantage estimation [T, B]; a time limit counts as an end."""

        def step(carry, inputs):
            after, advantage = carry
            reward, value, end = inputs
            discount = self.settings.discount * (1 - end)
            error = reward + discount * after - value
            advantage = error + discount * self.settings.trace * advantage
            return (value, advantage), advantage

        inputs = (path.rewards, path.values, path.ends)
        carry = (last, jnp.zeros_like(last))
        return jax.lax.scan(step, carry, inputs, reverse=True)[1]

    def loss(self, params, dropout, keys, carry, path, advantages, old):
        """The loss of PPO; also log-probabilities and the ratio, [T, B].

        The masks are those of the rollout if the keys are: nothing of them is stored.
        """
        logits, values = self.network.apply(
            params, path.observations, dropout, keys, carry, path.begins
        )
        log_probs = log_prob(logits, path.actions)
        ratio = jnp.exp(log_probs - old)
        gain = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        clip = self.settings.clip
        clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
        policy = -jnp.minimum(ratio * gain, clipped * gain).mean()
        error = ((values - path.values - advantages) ** 2).mean()
        spread = -(jnp.exp(jax.nn.log_softmax(logits)) * jax.nn.log_softmax(logits))
        loss = policy + self.settings.value * error
        loss -= self.settings.entropy * spread.sum(axis=-1).mean()
        return loss, (log_probs, ratio)

    def update(self, learner, rate) -> tuple[Learner, Report]:
        """A rollout, and epochs over its groups.

        A pass before the first epoch records the old log-probabilities and changes
        nothing. As it is a turn of the same loop, it is the same program: equal masks
        and parameters give bitwise equal log-probabilities. Those of the actor, which
        runs step by step, differ by rounding.
        """
        dropout, start = self.dropout(rate), learner.actors
        key = jax.random.fold_in(learner.key, learner.updates)
        keys = jax.random.split(key, self.settings.groups)
        play = partial(self.play, learner.params, dropout)
        actors, paths, last = jax.vmap(play)(start, keys)
        advantages = jax.vmap(self.advantages)(paths, last)
        optimiser = self.optimiser

        def minibatch(state, inputs, epoch):
            params, opt = state
            (actor, path, advantages), old = inputs
            keys = actor.keys
            if self.kind == "naive":
                number = learner.updates * self.settings.epochs + epoch
                keys = where(epoch > 0, keys.fold_in(number), keys)
            gradient, (log_probs, ratio) = jax.grad(self.loss, has_aux=True)(
                params, dropout, keys, actor.carry, path, advantages, old
            )
            changes, opt = optimiser.update(gradient, opt, params)
            new = (optax.apply_updates(params, changes), opt)
            return where(epoch > 0, new, state), (log_probs, ratio)

        def one_epoch(carry, epoch):
            state, old = carry
            inputs = ((start, paths, advantages), old)
            state, (log_probs, ratio) = jax.lax.scan(
                partial(minibatch, epoch=epoch), state, inputs
            )
            return (state, jnp.where(epoch > 0, old, log_probs)), ratio[0]

        carry = ((learner.params, learner.optimiser), jnp.zeros_like(paths.log_probs))
        epochs = jnp.arange(self.settings.epochs + 1)
        ((params, opt), old), ratio = jax.lax.scan(one_epoch, carry, epochs)
        report = Report(
            actors.returned.mean(), ratio[1], abs(old - paths.log_probs).max()
        )
        return Learner(params, opt, actors, learner.key, learner.updates + 1), report


def log_prob(logits, actions):
    """The log-probability of actions [...], from logits [..., A]."""
    chosen = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(chosen, actions[..., None], axis=-1)[..., 0]


def where(condition, yes, no):
    """`jnp.where` of two trees; the condition is of the first axes of their leaves."""

    def choose(a, b):
        more = (1,) * (jnp.ndim(a) - jnp.ndim(condition))
        return jnp.where(jnp.reshape(condition, jnp.shape(condition) + more), a, b)

    return jax.tree.map(choose, yes, no)
